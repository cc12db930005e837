"""Gradients beyond the first, gradients without kernels, and what is kept for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import dispatch

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
T, ROWS, C = 3, 5, 4


def leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(T, ROWS, C, generator=generator, dtype=torch.float64)
    weight, bias = torch.full((C,), 1.3).double(), torch.full((C,), 0.5).double()
    return [t.requires_grad_() for t in (x, weight, bias)]


def spikes_of(inputs: list[Tensor]) -> Tensor:
    x, weight, bias = inputs
    fused = dispatch.norm_lif(x, weight, bias, None, None, 1e-5, None, T, NeuronConfig())
    if fused is not None:
        return fused[0]
    rows = torch.nn.functional.batch_norm(x.reshape(-1, C), None, None, weight, bias, True)
    return dispatch.lif(rows.reshape(x.shape), None, T, NeuronConfig())[0]


def test_second_derivatives_equal_those_of_torch(by_both: Both) -> None:
    def run() -> tuple[Tensor, ...]:
        inputs = leaves()
        spikes = spikes_of(inputs)
        spikes = spikes + dispatch.lif(inputs[0], None, T, NeuronConfig())[0]
        first = torch.autograd.grad(spikes.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    for expected, got in zip(*by_both(run), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_backward_kernel_that_fails_is_replaced_by_torch(
    monkeypatch: pytest.MonkeyPatch, by_both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    from spikeformer_lt.layers.kernels import lif

    def broken(*_: Any) -> None:
        raise OSError("no such kernel")

    monkeypatch.setattr(dispatch, "_broken", False)
    monkeypatch.setattr(lif, "backward", broken)

    def run() -> tuple[Tensor, ...]:
        inputs = leaves()
        spikes = spikes_of(inputs)
        monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "auto")
        return torch.autograd.grad(spikes.sum(), inputs)

    for expected, got in zip(*by_both(run), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert "no such kernel" in caplog.text


def test_only_the_input_and_values_per_channel_are_kept_for_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
    kept: list[Tensor] = []
    inputs = leaves()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        spikes_of(inputs)
    assert sorted(t.numel() for t in kept) == [C] * 4 + [T * ROWS * C]
    assert any(t.data_ptr() == inputs[0].data_ptr() for t in kept)


def test_gradients_reach_only_those_that_ask(by_both: Both) -> None:
    def run() -> Tensor:
        inputs = leaves()
        inputs[0].requires_grad_(False)
        return torch.autograd.grad(spikes_of(inputs).sum(), inputs[1:])[1]

    expected, got = by_both(run)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
