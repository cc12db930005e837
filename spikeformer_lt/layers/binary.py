"""Weight binarization with a gain: ``alpha * sign(w) * mask``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def signs(weight: Tensor) -> Tensor:
    """-1 or +1 for each weight; sign(0) is +1, so that no kept weight vanishes."""
    return (weight >= 0).to(weight.dtype).mul_(2).sub_(1)


def gains(weight: Tensor, mask: Tensor, per_filter: bool = False) -> Tensor:
    """Least-squares gain of the binary weights: mean |w| over the kept ones.

    Args:
        weight: ``[out, in, kH, kW]``.
        mask: bool, the same shape; True is kept.
        per_filter: one gain for each output filter (XNOR-Net) instead of one for the layer.

    Returns:
        ``[out, 1, 1, 1]`` or ``[1, 1, 1, 1]``; 0 where nothing is kept.

    Source: Diffenderfer & Kailkhura, ICLR 2021 (arXiv 2103.09377), eq. 3: ||w*M||_1 / ||M||_0,
    with the true count of kept weights.
    """
    dims = tuple(range(1 if per_filter else 0, weight.ndim))
    kept = mask.sum(dims, keepdim=True)
    total = (weight.detach().abs() * mask).sum(dims, keepdim=True)
    return total / kept.clamp(min=1)


class EffectiveWeight(torch.autograd.Function):
    """``w * M`` or ``alpha * sign(w) * M``, straight through to weights and scores.

    Backward, for G = dL/dw_eff: dL/dw = G (all entries: removed ones may return) and
    dL/ds = G * w * sign(s) * window, where window = 1 is edge-popup and biprop. alpha is a
    constant of the step: neither paper differentiates it.

    Source: Ramanujan et al., CVPR 2020 (arXiv 1911.13299), eq. 5; arXiv 2103.09377, alg. 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scores: Tensor | None,
        mask: Tensor,
        binary: bool,
        per_filter: bool,
        window: Tensor | None,
    ) -> Tensor:
        """Return the weight the convolution runs on, exactly 0 where removed."""
        ctx.save_for_backward(weight, scores, window)
        kept = signs(weight).mul_(gains(weight, mask, per_filter)) if binary else weight
        return torch.where(mask, kept, 0.0)  # +0 even where the weight is negative or NaN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Straight-through gradients of the weight and of its scores."""
        weight, scores, window = ctx.saved_tensors
        (grad,) = grads
        grad_weight = grad if ctx.needs_input_grad[0] else None
        grad_scores = None
        if scores is not None and ctx.needs_input_grad[1]:
            grad_scores = grad * weight * torch.sign(scores)
            if window is not None:
                grad_scores = grad_scores * window
        return grad_weight, grad_scores, None, None, None, None
