"""The fast convolution is the convolution: float64 to rounding, float32 within a stated bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import dispatch, winograd

Pair = Callable[[Callable[[], Any]], tuple[Any, Any]]
SHAPES = [((2, 3, 8, 8, 16), 48), ((1, 2, 5, 11, 32), 16), ((4, 1, 2, 3, 16), 64)]


def conv(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    found = dispatch.conv(rows, weight)
    return winograd.direct(rows, weight) if found is None else found


@pytest.mark.parametrize(("shape", "made"), SHAPES)
def test_outputs_and_gradients_in_float64(shape: tuple[int, ...], made: int, by_both: Pair) -> None:
    rows = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(made, shape[-1], 3, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(*shape[:-1], made, dtype=torch.float64)

    def run() -> list[torch.Tensor]:
        out = conv(rows, weight)
        return [out.detach(), *torch.autograd.grad(out, (rows, weight), g)]

    for direct, fast in zip(*by_both(run), strict=True):
        torch.testing.assert_close(fast, direct, rtol=0, atol=1e-13 * float(direct.abs().max()))
        assert not torch.equal(fast, direct), "both ran the same way"


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradient_that_is_asked_for(
    wanted: tuple[bool, bool], by_both: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(1, 2, 8, 8, 16).double().requires_grad_(wanted[0])
    weight = torch.randn(16, 16, 3, 3).double().requires_grad_(wanted[1])

    def run() -> list[torch.Tensor | None]:
        rows.grad = weight.grad = None
        conv(rows, weight).square().sum().backward()
        return [rows.grad, weight.grad]

    for a, b in zip(*by_both(run), strict=True):
        assert (a is None) == (b is None)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_gradients_can_be_differentiated_again(by_both: Pair) -> None:
    rows = torch.randn(1, 1, 6, 6, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, dtype=torch.float64, requires_grad=True)

    def run() -> torch.Tensor:
        (g,) = torch.autograd.grad(conv(rows, weight).pow(3).sum(), rows, create_graph=True)
        return torch.autograd.grad(g.square().sum(), weight)[0]

    torch.testing.assert_close(*by_both(run), rtol=1e-11, atol=1e-6)


def test_float32_keeps_five_digits_of_the_largest_value(by_both: Pair) -> None:
    torch.manual_seed(0)
    rows = (torch.rand(2, 2, 16, 16, 96) < 0.25).float().requires_grad_()
    weight = (torch.randn(192, 96, 3, 3) / 30).requires_grad_()
    g = torch.randn(2, 2, 16, 16, 192)

    def run() -> list[torch.Tensor]:
        out = conv(rows, weight)
        return [out.detach(), *torch.autograd.grad(out, (rows, weight), g)]

    for direct, fast in zip(*by_both(run), strict=True):
        gap = float((direct - fast).abs().max() / direct.abs().max())
        assert 0 < gap < 2e-5


def test_removed_filters_stay_silent_and_the_same_input_gives_the_same_bits() -> None:
    rows, weight = torch.randn(1, 8, 16, 16, 32), torch.randn(32, 32, 3, 3)
    weight[3] = 0
    first = dispatch.conv(rows, weight)
    assert first is not None and not first[..., 3].any()
    assert torch.equal(first, dispatch.conv(rows, weight))


def test_it_steps_aside_where_it_does_not_fit_or_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    large, weight = torch.randn(4, 8, 16, 16, 16), torch.randn(16, 16, 3, 3)
    assert dispatch.takes_conv(large, weight)
    few = torch.randn(1, 1, 16, 16, 16)
    refused = [
        (few, weight),  # 16 tiles
        (torch.randn(8, 64, 5, 5, 16), weight),  # 64 places computed for 25
        (large[..., :3], torch.randn(16, 3, 3, 3)),
        (large, torch.randn(20, 16, 3, 3)),
        (large, torch.randn(16, 16, 5, 5)),
        (large, weight.double()),
        (large.double(), weight.double()),  # float64 is torch's own unless it is asked for
    ]
    for rows, w in refused:
        assert not dispatch.takes_conv(rows, w)
        assert dispatch.conv(rows, w) is None
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
    assert dispatch.takes_conv(few, weight) and dispatch.takes_conv(*refused[-1])
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
    assert not dispatch.takes_conv(large, weight)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7, 16, 64])
@pytest.mark.parametrize(("summed", "made"), [(16, 32), (48, 96), (384, 384), (128, 64)])
def test_shares_of_the_weights_cover_them_once(summed: int, made: int, threads: int) -> None:
    parts, vectors = winograd._parts(summed, made, 16, threads)
    assert 1 <= len(parts) <= threads and vectors > 0
    seen = torch.zeros(summed, made, dtype=torch.int64)
    for c_lo, c_hi, k_lo, k_hi in parts.tolist():
        assert (c_hi - c_lo) % 16 == 0 and (k_hi - k_lo) % (16 * vectors) == 0
        seen[c_lo:c_hi, k_lo:k_hi] += 1
    assert (seen == 1).all()


def test_direct_is_torchs_convolution() -> None:
    rows, weight = torch.randn(2, 3, 6, 7, 4), torch.randn(5, 4, 3, 3)
    maps = F.conv2d(rows.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=1)
    assert torch.equal(winograd.direct(rows, weight).flatten(0, 1), maps.permute(0, 2, 3, 1))
