from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from spikeformer_lt.layers.subnet import EffectiveWeight, gains, signs


def drawn(seed: int, kept: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, 3, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 4, 3, 3, generator=generator) < kept
    return weight, mask


def effective(
    weight: torch.Tensor,
    scores: torch.Tensor | None,
    mask: torch.Tensor,
    binary: bool = True,
    per_filter: bool = False,
    window: torch.Tensor | None = None,
) -> torch.Tensor:
    return EffectiveWeight.apply(weight, scores, mask, (binary, per_filter, None), window)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sign_of_zero_is_plus_one(dtype: torch.dtype) -> None:
    weight = torch.tensor([-2.0, -0.0, 0.0, 3.0], dtype=dtype)
    assert signs(weight).tolist() == [-1.0, 1.0, 1.0, 1.0]
    assert signs(weight).dtype == dtype


@given(st.integers(0, 10**6), st.floats(0.02, 1), st.booleans())
def test_the_gain_is_the_least_squares_one(seed: int, kept: float, per_filter: bool) -> None:
    weight, mask = drawn(seed, kept)
    binary = signs(weight) * mask

    def error(gain: torch.Tensor) -> torch.Tensor:
        loss = (weight * mask - gain * binary).square()
        return loss.sum((1, 2, 3)) if per_filter else loss.sum()

    gain = gains(weight, mask, per_filter)
    assert gain.shape == ((6, 1, 1, 1) if per_filter else (1, 1, 1, 1))
    for step in (1e-3, 0.1, 1.0):
        assert (error(gain) <= error(gain + step)).all()
        assert (error(gain) <= error(gain - step)).all()
    # <w M, b> / <b, b>: the normal equation of the problem, solved another way.
    flat = (weight * mask).flatten(1), binary.flatten(1)
    dims = (1,) if per_filter else (0, 1)
    projected = (flat[0] * flat[1]).sum(dims) / flat[1].square().sum(dims).clamp(min=1)
    assert torch.allclose(gain.flatten(), projected.flatten(), rtol=1e-12, atol=0)


def test_the_gain_counts_the_weights_that_are_kept() -> None:
    weight = torch.tensor([1.0, -3.0, 100.0, 5.0]).view(2, 2, 1, 1)
    mask = torch.tensor([True, True, False, True]).view(2, 2, 1, 1)
    assert gains(weight, mask).flatten().tolist() == [3.0]
    assert gains(weight, mask, per_filter=True).flatten().tolist() == [2.0, 5.0]


def test_a_filter_without_weights_has_gain_zero_and_not_nan() -> None:
    weight, mask = drawn(0)
    mask[2] = False
    assert gains(weight, mask, per_filter=True)[2].item() == 0.0
    assert gains(weight, torch.zeros_like(mask)).item() == 0.0


@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_binary_weights_are_minus_the_gain_zero_or_plus_the_gain(
    seed: int, kept: float, per_filter: bool
) -> None:
    weight, mask = drawn(seed, kept)
    out = effective(weight, None, mask, per_filter=per_filter)
    gain = gains(weight, mask, per_filter)
    rows = zip(out, gain.expand(6, 1, 1, 1), strict=True) if per_filter else [(out, gain)]
    for values, one in rows:
        assert set(values.unique().tolist()) <= {-one.item(), 0.0, one.item()}
    assert torch.equal(out != 0, mask)
    assert torch.equal(out[mask].sign(), weight[mask].sign())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.fault(47)
def test_removed_entries_are_plus_zero_whatever_the_weight_is(binary: bool) -> None:
    weight = torch.tensor([-1.0, float("nan"), float("inf"), -0.0, 2.0]).view(5, 1, 1, 1)
    mask = torch.tensor([False, False, False, False, True]).view(5, 1, 1, 1)
    if binary:
        weight[1:3] = -7.0
    out = effective(weight, None, mask, binary).flatten()
    assert out.tolist() == [0.0, 0.0, 0.0, 0.0, 2.0]
    assert not torch.signbit(out).any()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("per_filter", [False, True])
def test_the_score_gradient_is_that_of_edge_popup_written_out(
    binary: bool, per_filter: bool
) -> None:
    """dL/ds = dL/dw_eff * w * sign(s), by autograd of |s| * w with the forward value put in."""
    weight, mask = drawn(1)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    scores = torch.randn_like(weight)
    ours, explicit = scores.clone().requires_grad_(), scores.clone().requires_grad_()

    out = F.conv2d(x, effective(weight, ours, mask, binary, per_filter))
    out.sin().sum().backward()

    value = gains(weight, mask, per_filter) * weight.sign() * mask if binary else weight * mask
    straight = explicit.abs() * weight
    F.conv2d(x, value + straight - straight.detach()).sin().sum().backward()
    assert torch.allclose(ours.grad, explicit.grad, rtol=1e-9, atol=1e-12)
    assert ours.grad[~mask].abs().min() > 0, "removed entries must be able to return"

    by_hand = value.clone().requires_grad_()
    F.conv2d(x, by_hand).sin().sum().backward()
    identity = (by_hand.grad * weight) * scores.sign()
    assert torch.allclose(ours.grad, identity, rtol=1e-12, atol=1e-14)


def test_the_window_scales_the_score_gradient_alone() -> None:
    weight, mask = drawn(2)
    window = torch.rand_like(weight)
    grads = []
    for used in (None, window):
        w, s = (t.clone().requires_grad_() for t in (weight, weight.flip(0)))
        effective(w, s, mask, window=used).square().sum().backward()
        grads.append((w.grad, s.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.allclose(grads[1][1], grads[0][1] * window, rtol=1e-12, atol=0)


@pytest.mark.parametrize("binary", [False, True])
def test_latent_weights_take_the_gradient_of_the_effective_ones_straight_through(
    binary: bool,
) -> None:
    weight, mask = drawn(3)
    latent = weight.clone().requires_grad_()
    out = effective(latent, None, mask, binary)
    out.retain_grad()
    out.sin().sum().backward()
    assert torch.equal(latent.grad, out.grad)
    assert latent.grad[~mask].abs().min() > 0


def test_frozen_weights_get_no_gradient() -> None:
    weight, mask = drawn(4)
    scores = torch.randn_like(weight, requires_grad=True)
    effective(weight, scores, mask).sum().backward()
    assert weight.grad is None
    assert scores.grad is not None
