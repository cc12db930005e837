"""Memory, threads and forks around the kernels."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import bits, dispatch, events, jit, matmul, sparse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_new_tensors_are_aligned_and_of_the_shape_asked_for(dtype: torch.dtype) -> None:
    like = torch.zeros(2, dtype=dtype)
    for shape in ((3, 5), (2, 1 << 20), (0, 4), ()):
        made = jit.new(like, shape)
        assert made.shape == shape
        assert made.dtype == dtype
        assert made.is_contiguous()
        assert made.numel() == 0 or made.data_ptr() % 64 == 0
        made.fill_(1.0)


@pytest.mark.parametrize(("n", "width"), [(1, 4), (100, 7), (4096, 4096), (10**6, 3000)])
def test_parts_cover_everything_once_in_whole_blocks(n: int, width: int) -> None:
    cuts = jit.cut(n, 10 * n, width)
    assert cuts[0] == 0
    assert cuts[-1] == n
    assert (np.diff(cuts) > 0).all()
    assert (cuts[:-1] % width == 0).all()
    assert cuts.size - 1 <= max(1, torch.get_num_threads())


def test_little_work_wakes_no_threads() -> None:
    assert jit.cut(1000, 4000, 256).size == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_runs_the_kernels_without_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = torch.full((1, 1 << 17), 1.5)
    expected = dispatch.lif(x, None, 2, NeuronConfig())[0].numpy()
    child = os.fork()
    if child == 0:
        got = dispatch.lif(x, None, 2, NeuronConfig())[0].numpy()
        os._exit(0 if np.array_equal(got, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_tape_of_before_a_fork_is_replayed_without_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "_mode", "numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = torch.full((1, 1 << 17), 1.5)
    with torch.no_grad(), dispatch.Tape() as tape:
        spikes = dispatch.lif(x, None, 2, NeuronConfig())[0].numpy()
    expected = spikes.copy()
    child = os.fork()
    if child == 0:
        spikes[:] = 2
        for step in tape.steps:
            step()
        os._exit(0 if np.array_equal(spikes, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_another_default_device_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_mode", "numba")
    x, weight = torch.ones(2, 1, 256, 48), torch.eye(48)[:16]
    with torch.device("meta"):
        made = bits.Bits.of(x)
        assert made is not None
        one = x.new_ones(16)
        currents = sparse.Product.of(weight, one, None)(made, 2)
        attended = matmul.attend_bits(made, 1, 1.0, bits.Neurons.of(NeuronConfig()))
        assert attended is not None
        found = [made.dense(), currents, attended.dense(), events.as_bytes(x)]
    assert [each.device.type for each in found] == ["cpu"] * 4
    assert torch.equal(found[0], x) and torch.equal(currents, torch.ones(2, 1, 256, 16) * 2)
