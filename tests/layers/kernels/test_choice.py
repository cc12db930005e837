"""Which path a tensor takes, and what happens when the fast one breaks."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import dispatch

LARGE = 4096


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_broken", False)
    monkeypatch.setattr(dispatch, "_mode", "auto")


def test_auto_takes_large_float32_tensors_on_the_cpu() -> None:
    x = torch.zeros(4, 8)
    assert dispatch.takes_numba(x, LARGE)
    assert dispatch.takes_numba(torch.nn.Parameter(x), LARGE)
    assert not dispatch.takes_numba(x, LARGE - 1)
    assert not dispatch.takes_numba(x.double(), LARGE)
    assert not dispatch.takes_numba(x.bfloat16(), LARGE)
    assert not dispatch.takes_numba(x.to("meta"), LARGE)
    assert not dispatch.takes_numba(x[:, :0], LARGE)


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(4, 8)
    monkeypatch.setattr(dispatch, "_mode", "")  # as at the start of a process
    monkeypatch.setenv("SPIKEFORMER_KERNELS", "torch")
    assert not dispatch.takes_numba(x, LARGE)
    monkeypatch.setenv("SPIKEFORMER_KERNELS", "numba")
    assert dispatch.mode() == "torch", "the environment is read once"
    assert dispatch.set_mode() == "numba"
    assert dispatch.takes_numba(x, 1)
    assert dispatch.takes_numba(x.double(), 1)
    assert not dispatch.takes_numba(x.half(), 1)
    assert dispatch.set_mode("auto") == "auto"
    assert not dispatch.takes_numba(x, 1)
    monkeypatch.setattr(dispatch, "_mode", "")
    monkeypatch.setenv("SPIKEFORMER_KERNELS", "nmba")
    with pytest.raises(ConfigError, match="auto, torch or numba"):
        dispatch.takes_numba(x, 1)


def test_whatever_watches_operations_gets_torch_operations() -> None:
    x = torch.zeros(4, 8)
    with FlopCounterMode(display=False):
        assert not dispatch.takes_numba(x, LARGE)
    seen = []
    torch.func.vmap(lambda row: seen.append(dispatch.takes_numba(row, LARGE)) or row)(x)
    torch.func.grad(lambda t: seen.append(dispatch.takes_numba(t, LARGE)) or t.sum())(x)
    assert seen == [False, False]


def broken(*_: Any) -> None:
    raise OSError("no such kernel")


def test_a_kernel_that_fails_is_replaced_by_torch_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from spikeformer_lt.layers.kernels import lif

    x = torch.rand(4, LARGE) * 2
    monkeypatch.setattr(dispatch, "_mode", "torch")
    expected = dispatch.lif(x, None, 4, NeuronConfig())
    monkeypatch.setattr(dispatch, "_mode", "auto")
    monkeypatch.setattr(lif, "forward", broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for a, b in zip(dispatch.lif(x, None, 4, NeuronConfig()), expected, strict=True):
                assert torch.equal(a, b)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "OSError: no such kernel" in caplog.text
    assert not dispatch.takes_numba(x, LARGE)


def test_a_kernel_that_fails_is_an_error_where_numba_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from spikeformer_lt.layers.kernels import lif

    monkeypatch.setattr(lif, "forward", broken)
    monkeypatch.setattr(dispatch, "_mode", "numba")
    with pytest.raises(ConfigError, match="no such kernel.*use auto or torch"):
        dispatch.lif(torch.zeros(4, 8), None, 4, NeuronConfig())


def test_without_numba_torch_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    dispatch.load.cache_clear()
    monkeypatch.setitem(sys.modules, "spikeformer_lt.layers.kernels.lif", None)
    spikes, _ = dispatch.lif(torch.full((1, LARGE), 1.5), None, 2, NeuronConfig())
    assert spikes.sum() == LARGE
    dispatch.load.cache_clear()
    assert "ModuleNotFoundError" in caplog.text or "ImportError" in caplog.text
