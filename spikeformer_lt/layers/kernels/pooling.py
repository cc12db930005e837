"""Max-pools of channels-last maps as differentiable operations: of spikes, and before a LIF."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import pool_kernels
from spikeformer_lt.layers.kernels.functions import again, norm_back, norm_rows, once, spikes_of
from spikeformer_lt.layers.kernels.reference import LIFParams
from spikeformer_lt.layers.kernels.work import Array, Work, cut, flat, new, run

__all__ = ["NormPoolLIFFunction", "PoolFunction", "pool"]


def pool(x: Tensor) -> Tensor:
    """The pool in torch's operations: 3x3, stride 2, padding 1, of ``[T, B, H, W, C]``."""
    maps = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 3, 2, 1)
    out: Tensor = maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return out


def _forward(x: Tensor, factor: Array | None) -> tuple[Tensor, Tensor]:
    """The largest value of each window, after `factor`, and the label of its place (uint8)."""
    time, batch, height, width, channels = x.shape
    shape = (time, batch, (height + 1) // 2, (width + 1) // 2, channels)
    out, labels = new(x, shape), torch.empty(shape, dtype=torch.uint8)
    cuts = cut(time * batch * shape[2], out.numel() * 4, 1)
    args = (flat(x), factor, flat(out), flat(labels), height, width, channels)
    run(pool_kernels.pool, pool_kernels.pool_parallel, cuts, args)
    return out, labels


def _backward(g: Tensor, labels: Tensor, like: Tensor, lines: list[Array] | None) -> Tensor:
    """Gradient of what was pooled; with `lines`, that of the normalisation of `like` before it."""
    time, batch, height, width, channels = like.shape
    gx = new(g, like.shape)
    cuts = cut(time * batch * height, gx.numel(), 1)
    data = flat(g.contiguous())
    x = tiles = None
    if lines is not None:
        x, tiles = flat(like), np.concatenate(lines).astype(data.dtype)
    args = (data, flat(labels), flat(gx), x, tiles, height, width, channels)
    run(pool_kernels.pool_back, pool_kernels.pool_back_parallel, cuts, args)
    return gx


class PoolFunction(torch.autograd.Function):
    """The pool of ``[T, B, H, W, C]``; saves one byte for each output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Pool."""
        out, labels = _forward(x, None)
        ctx.save_for_backward(x if ctx.needs_input_grad[0] else None, labels)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        """Give each gradient to the first largest value of its window."""
        x, labels = ctx.saved_tensors
        found = once(lambda: (_backward(grad, labels, x, None),))
        return (again(pool, (x,), grad) if found is None else found)[0]


class NormPoolLIFFunction(torch.autograd.Function):
    """Batch normalisation over the last axis, the pool, then LIF.

    A normalisation rises or falls with its input, channel by channel, so pooling comes first: the
    largest input of a window, or the smallest where the scale is negative, gives its largest
    output. Saves x, a quarter of it, a byte for each of that quarter, and four values per channel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        batch: bool,
        eps: float,
        v: Tensor | None,
        T: int,
        p: LIFParams,
    ) -> tuple[Tensor, Tensor]:
        """Run the steps; `batch` says that mean and var are those of x."""
        rows, _ = norm_rows(weight, bias, mean, var, eps)
        factor = None if (rows[0] > 0).all() else np.sign(rows[0]).astype(flat(x[:0]).dtype)
        pooled, labels = _forward(x, factor)
        ctx.save_for_backward(x, pooled, labels, weight, bias, mean, var, v)
        ctx.batch, ctx.eps, ctx.p = batch, eps, p
        spikes, v_last = Work(pooled, v, T, p, rows).forward()
        ctx.mark_non_differentiable(v_last)
        return spikes, v_last

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Run them backward, then through the pool and the normalisation at once."""
        x, pooled, labels, weight, bias, mean, var, v = ctx.saved_tensors
        T, p, batch, eps = grad.shape[0], ctx.p, ctx.batch, ctx.eps

        def kernels() -> tuple[Tensor | None, ...]:
            rows, inverse = norm_rows(weight, bias, mean, var, eps)
            g, sums = Work(pooled, v, T, p, rows).backward(grad)
            lines, *own = norm_back(x, mean, rows[0], inverse, sums, batch)
            gx = _backward(g, labels, x, lines)
            return gx, None if weight is None else own[0], None if bias is None else own[1]

        def operations(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            m, s = (None, None) if batch else (mean, var)
            y = F.batch_norm(x.reshape(-1, x.shape[-1]), m, s, weight, bias, batch, 0.0, eps)
            return spikes_of(pool(y.reshape(x.shape)), v, T, p)

        gradients = once(kernels)
        if gradients is None:
            gradients = again(operations, (x, weight, bias), grad)
        return *gradients, *(None,) * 7
