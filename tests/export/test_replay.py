"""A recorded forward gives the bits of the call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt.errors import DataError, ExportError
from spikeformer_lt.export.inference import CompactModel, compact
from spikeformer_lt.layers.kernels import bits, dispatch
from spikeformer_lt.layers.neuron import NeuronState, carry


@pytest.mark.parametrize("mode", ["torch", "numba"])
@pytest.mark.parametrize("kind", ["heaviside", "lists", "events"])
def test_a_replay_gives_the_bits_of_the_call(kind, mode, net, cnn, images, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_mode", mode)
    model = cnn("resnet of events") if kind == "events" else net(activation="heaviside")[0]
    run = compact(model)
    if kind == "lists":
        run.use_lists("always")
        assert any(layer.lists for layer in run.layers)
    x = images(model, 2)
    replay, found = run.graphed(x), []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(replay(torch.rand_like(x) + x))
        torch.manual_seed(seed)
        assert torch.equal(found[-1], run(torch.rand_like(x) + x))
    assert not torch.equal(found[0], found[1])
    with pytest.raises(DataError, match="record another"):
        replay(x[:1])
    with pytest.raises(DataError, match="input holds nan"):
        replay(torch.full_like(x, float("nan")))


def test_threads_and_streams_beside_a_replay_get_their_own_logits(net, images) -> None:
    torch.set_num_threads(1)
    model = net(patches=0.0)[0]
    run, x = compact(model), images(model, 2)
    replay, inputs = run.graphed(x), [x + i / 8 for i in range(6)]
    wanted = [run(given) for given in inputs]

    def calls(i: int) -> int:
        torch.set_num_threads(1)
        return sum(not torch.equal(replay(inputs[i]), wanted[i]) for _ in range(10))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(calls, range(6))) == [0] * 6
    begun = NeuronState()
    with carry(begun):
        assert torch.equal(replay(x), wanted[0])
    assert begun.voltages
    with carry(begun), pytest.raises(ExportError, match="a carried state"):
        run.graphed(x)


def test_values_that_the_recorded_planes_do_not_hold_end_a_replay() -> None:
    x = (torch.arange(512.0).view(1, 32, 16) % 2).contiguous()
    with dispatch.Tape() as tape:
        made = bits.Bits.of(x)
        assert made is not None
        out = (made + made).dense()

    def again(value: float) -> Tensor:
        x.fill_(value)
        for step in tape.steps:
            step()
        return out

    assert bool((again(1.0) == 2.0).all()) and not again(0.0).any()
    with pytest.raises(dispatch.ReplayError, match="whole numbers"):
        again(0.5)
    assert bool((again(1.0) == 2.0).all())


class Reads(nn.Module):
    """Scales by a value that Python sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


class Leaves(nn.Module):
    """Computes in numpy."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.numpy()))


@pytest.mark.parametrize(("part", "said"), [(Reads(), "gives Python"), (Leaves(), "outside of")])
def test_what_cannot_be_recorded_is_refused(part: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        CompactModel(part, None).graphed(torch.rand(2, 3, 4, 4))


def test_a_network_on_two_devices_is_refused() -> None:
    with pytest.raises(ExportError, match=r"tensors on \['cpu', 'meta'\].*call the network itself"):
        CompactModel(nn.Linear(3, 3, device="meta"), None).graphed(torch.rand(2, 3))
