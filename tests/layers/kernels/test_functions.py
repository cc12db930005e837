"""Gradients beyond the first, gradients without kernels, and what is kept for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.winograd import direct
from spikeformer_lt.layers.units import product_rows

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


CALLS: dict[str, tuple[Any, Any]] = {
    "lif": ((2, 3, 16, 16), lambda x, w: dispatch.lif(x * w[0], None, 2, NeuronConfig())[0]),
    "attention": ((1, 2, 5, 3, 16), lambda x, w: dispatch.attention(x * w[0], 2, 0.5)),
    "winograd": ((1, 2, 4, 4, 16), lambda x, w: dispatch.conv(x, w.view(16, 16, 1, 1) * TAPS)),
    "lists": ((2, 3, 16), lambda x, w: dispatch.sparse(x, w, None, dispatch.Kept(KEPT), linear)),
    "oneDNN": ((2, 3, 16), lambda x, w: product_rows(x.float(), w.float(), None).double()),
}
TAPS, KEPT, linear = torch.ones(3, 3).double(), torch.ones(16, 16) > 0, torch.nn.functional.linear


@pytest.mark.parametrize("name", CALLS)
def test_several_gradients_at_once_and_their_tangents(name: str, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_mode", "numba")
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "always")
    shape, call = CALLS[name]
    x, w = (torch.randn(size).double().requires_grad_() for size in (shape, (16, 16)))
    y = call(x, w)
    grads = torch.randn(3, *y.shape).double()

    def back(grad: Tensor, **named: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (x, w), grad, retain_graph=True, **named)

    wanted = [torch.stack(each) for each in zip(*map(back, grads), strict=True)]
    with forward_ad.dual_level():
        dual = back(forward_ad.make_dual(grads[0], grads[1]))
        tangents = [forward_ad.unpack_dual(g).tangent for g in dual]
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if name == "oneDNN" else {}
    for found in (back(grads, is_grads_batched=True), torch.func.vmap(back)(grads)):
        torch.testing.assert_close(list(found), wanted, **close)
    for tangent, each in zip(tangents, wanted, strict=True):
        torch.testing.assert_close(tangent, each[1], **close)


@pytest.mark.parametrize("shape", [(2, 3, 16), (1, 2, 4, 4, 16)])
def test_second_derivatives_of_a_weight_used_twice_that_has_a_hook(
    shape: tuple[int, ...], by_both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "always")
    sizes = (16, 16, 3, 3)[: 2 if len(shape) == 3 else 4]
    start = torch.randn(shape).double(), torch.randn(sizes).double() / 8

    def run() -> tuple[Tensor, ...]:
        x, w = (value.clone().requires_grad_() for value in start)
        w.register_hook(lambda grad: grad * 2)

        def layer(x: Tensor) -> Tensor:
            if len(sizes) == 4:
                found = dispatch.conv(x, w)
                return direct(x, w) if found is None else found
            found = dispatch.sparse(x, w, None, dispatch.Kept(KEPT), linear)
            return linear(x, w) if found is None else found

        loss = layer(layer(x).tanh()).square().sum()
        (first,) = torch.autograd.grad(loss, w, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), x)[0]

    for expected, got in zip(*by_both(run), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


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
