"""Spiking attention of q, k and v that lie side by side, as one differentiable operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeformer_lt.layers.kernels import attention_kernels as kernels
from spikeformer_lt.layers.kernels.functions import again, once
from spikeformer_lt.layers.kernels.lanes import BYTES
from spikeformer_lt.layers.kernels.tiles import panel_vectors
from spikeformer_lt.layers.kernels.work import cut, flat, new, run

__all__ = ["AttentionFunction", "attend", "fits"]


def fits(x: Tensor, heads: int) -> bool:
    """Whether a head is whole vectors wide."""
    return x.shape[-1] % (heads * max(8, BYTES // x.element_size())) == 0


def attend(x: Tensor, heads: int, scale: float) -> Tensor:
    """``scale q k^T v`` in torch's operations, of x ``[T, B, N, 3, D]``."""
    q, k, v = x.unflatten(-1, (heads, -1)).permute(3, 0, 1, 4, 2, 5)
    out: Tensor = (q @ (k.transpose(-2, -1) @ v) * scale).transpose(2, 3).flatten(3)
    return out


def _run(alone: Any, parallel: Any, x: Tensor, other: Tensor, out: Tensor, ctx: Any) -> Tensor:
    tokens, width = x.shape[2], x.shape[-1] // ctx.heads
    lanes = BYTES // x.element_size()
    count = x.shape[0] * x.shape[1] * ctx.heads
    args = (flat(x), flat(other), *(() if out is other else (flat(out),)))
    sizes = (tokens, ctx.heads, width, flat(x[:0]).dtype.type(ctx.scale))
    cuts = cut(count, x.numel() * width, 1)
    run(alone, parallel, cuts, (*args, *sizes, panel_vectors(width, lanes), lanes))
    return out


class AttentionFunction(torch.autograd.Function):
    """``scale q k^T v`` of every head of x ``[T, B, N, 3, D]``, as ``[T, B, N, D]``; saves x.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 7-8.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, scale: float) -> Tensor:
        """Multiply k with v, then q with that."""
        ctx.save_for_backward(x)
        ctx.heads, ctx.scale = heads, scale
        out = new(x, (*x.shape[:3], x.shape[-1]))
        return _run(kernels.attend, kernels.attend_parallel, x, out, out, ctx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the other pairs."""
        (x,) = ctx.saved_tensors

        def products() -> tuple[Tensor | None, ...]:
            g, gx = grad.contiguous(), new(x, x.shape)
            back = (kernels.attend_back, kernels.attend_back_parallel)
            return (_run(*back, x, g, gx, ctx),)

        found = once(products)
        if found is None:
            found = again(lambda x: attend(x, ctx.heads, ctx.scale), (x,), grad)
        return *found, None, None
