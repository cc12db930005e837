"""The kernels as differentiable operations on torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import dispatch, pool
from spikeformer_lt.layers.kernels.dispatch import KernelError
from spikeformer_lt.layers.kernels.launch import Array, Work, flat, norm_rows
from spikeformer_lt.layers.kernels.reference import NeuronConfig, lif_loop


def once(kernels: Callable[[], tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...] | None:
    """Gradients by the kernels; None if they must be differentiable themselves, or if one fails."""
    if torch.is_grad_enabled():
        return None
    try:
        return kernels()
    except KernelError as error:
        dispatch.give_up(error)
        return None


def again(
    operations: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients by running plain torch operations again, differentiable if required."""
    graph = torch.is_grad_enabled()
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(operations(*inputs), wanted, grad, create_graph=graph))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)


def norm_back(
    x: Tensor, mean: Tensor, scale: Array, inverse: Array, sums: Array, batch: bool
) -> tuple[list[Array], Tensor, Tensor]:
    """Backward of a normalisation of `x` from the sums, per channel, of g and of g times x.

    Returns:
        Scale, slope and offset, so that the gradient of x is g * scale + (x * slope + offset); the
        gradients of weight and bias.
    """
    total = sums[0]
    middle = flat(mean).astype(np.float64)
    product = sums[1] - middle * total
    slope, offset = np.zeros_like(total), np.zeros_like(total)
    if batch:
        share = scale * (x.shape[-1] / x.numel())
        slope = -share * product * inverse * inverse
        offset = -share * total - middle * slope
    g_weight, g_bias = torch.from_numpy(product * inverse), torch.from_numpy(total)
    return [scale, slope, offset], g_weight.to(x.dtype), g_bias.to(x.dtype)


class LIFFunction(torch.autograd.Function):
    """Spikes and last voltage of x, [T|1, ...]; backward recomputes the voltages from x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor | None, T: int, p: NeuronConfig
    ) -> tuple[Tensor, Tensor]:
        """Run the steps."""
        ctx.save_for_backward(x, v)
        ctx.p = p
        spikes, v_last = Work(x, v, T, p).forward()
        ctx.mark_non_differentiable(v_last)
        return spikes, v_last

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Run them backward."""
        x, v = ctx.saved_tensors
        T, p = grad.shape[0], ctx.p
        gradients = once(lambda: (Work(x, v, T, p).backward(grad)[0],))
        if gradients is None:
            gradients = again(lambda x: lif_loop(x, v, T, p)[0], (x,), grad)
        return *gradients, None, None, None


class PoolFunction(torch.autograd.Function):
    """Max-pool (3x3, stride 2, padding 1) of [T, B, H, W, C]; saves one byte for each output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Pool."""
        out, labels = pool.max_pool(x, None)
        ctx.save_for_backward(x if ctx.needs_input_grad[0] else None, labels)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        """Give each gradient to the first largest value of its window."""
        x, labels = ctx.saved_tensors
        found = once(lambda: (pool.max_pool_back(grad, labels, x, None),))
        return (again(pool.pool, (x,), grad) if found is None else found)[0]


class NormLIFFunction(torch.autograd.Function):
    """Batch normalisation over the last axis, a max-pool if `pooled`, then LIF.

    Saves x and four values per channel. A normalisation rises or falls with its input, channel by
    channel, so pooling comes first: the largest input of a window, or the smallest where the scale
    is negative, gives its largest output. That saves a quarter of x and a byte for each of it, too.
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
        p: NeuronConfig,
        pooled: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run the steps; `batch` says that mean and var are those of x."""
        rows, _ = norm_rows(weight, bias, mean, var, eps)
        maps = labels = None
        if pooled:
            factor = None if (rows[0] > 0).all() else np.sign(rows[0]).astype(flat(x[:0]).dtype)
            maps, labels = pool.max_pool(x, factor)
        ctx.save_for_backward(x, maps, labels, weight, bias, mean, var, v)
        ctx.batch, ctx.eps, ctx.p = batch, eps, p
        spikes, v_last = Work(x if maps is None else maps, v, T, p, rows).forward()
        ctx.mark_non_differentiable(v_last)
        return spikes, v_last

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Run them backward, then through the pool and the normalisation."""
        x, maps, labels, weight, bias, mean, var, v = ctx.saved_tensors
        T, p, batch, eps = grad.shape[0], ctx.p, ctx.batch, ctx.eps

        def kernels() -> tuple[Tensor | None, ...]:
            rows, inverse = norm_rows(weight, bias, mean, var, eps)
            work = Work(x if maps is None else maps, v, T, p, rows)
            g, sums = work.backward(grad)
            lines, *own = norm_back(x, mean, rows[0], inverse, sums, batch)
            if maps is None:
                work.centre(g, lines)
            else:
                g = pool.max_pool_back(g, labels, x, lines)
            return g, None if weight is None else own[0], None if bias is None else own[1]

        def operations(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            m, s = (None, None) if batch else (mean, var)
            y = F.batch_norm(x.reshape(-1, x.shape[-1]), m, s, weight, bias, batch, 0.0, eps)
            y = y.reshape(x.shape)
            return lif_loop(y if maps is None else pool.pool(y), v, T, p)[0]

        gradients = once(kernels)
        if gradients is None:
            gradients = again(operations, (x, weight, bias), grad)
        return *gradients, *(None,) * 8
