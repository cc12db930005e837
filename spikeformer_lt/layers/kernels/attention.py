"""Spiking attention, q (k^T v) of all heads, as one differentiable operation without copies.

`x` holds q, k and v side by side, [T B, N, 3, h d]; a head is d columns of each. Sums of spikes are
integers, so the order of the products changes nothing in the outputs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.layers.kernels.autograd import again, once
from spikeformer_lt.layers.kernels.jit import inner, outer
from spikeformer_lt.layers.kernels.launch import cut, flat, new, run
from spikeformer_lt.layers.kernels.simd import BYTES, down, load, panel_vectors, store, straight


@inner()
def _between(a, i, lead, b, j, jump, c, width, tokens, vectors, lanes):
    """C [d, d] = a^T b, of the d columns at i of a and at j of b."""
    cols = vectors * lanes
    for k in range(0, width, cols):
        down(vectors, a, i, lead, b, j + k, jump, c, k, width, width, tokens, False)


@inner()
def _through(a, i, lead, b, c, k, pitch, width, tokens, scale, vectors, lanes):
    """The d columns at k of c = scale a b, of the d columns at i of a and b [d, d]."""
    cols = vectors * lanes
    for p in range(0, width, cols):
        straight(vectors, a, i, lead, b, p, width, c, k + p, pitch, tokens, width, False)
    for n in range(tokens):
        for p in range(k + n * pitch, k + n * pitch + width, lanes):
            store(c, p, load(c, p) * scale)


@outer()
def attend_kernel(x, out, tokens, heads, width, scale, vectors, lanes, lo, hi):
    """Heads lo to hi of out [T B, N, h d]."""
    dim = heads * width
    keys = np.empty(width * width, x.dtype)
    for h in range(lo, hi):
        row, column = h // heads * tokens, h % heads * width
        q = row * 3 * dim + column
        k, v = q + dim, q + 2 * dim
        _between(x, k, 3 * dim, x, v, 3 * dim, keys, width, tokens, vectors, lanes)
        o = row * dim + column
        _through(x, q, 3 * dim, keys, out, o, dim, width, tokens, scale, vectors, lanes)


@outer()
def attend_back(x, g, gx, tokens, heads, width, scale, vectors, lanes, lo, hi):
    """Heads lo to hi of the gradient of x, from that of the output."""
    dim = heads * width
    lead = 3 * dim
    between = np.empty(width * width, x.dtype)
    for h in range(lo, hi):
        row, column = h // heads * tokens, h % heads * width
        q, o = row * lead + column, row * dim + column
        k, v = q + dim, q + 2 * dim
        _between(x, v, lead, x, k, lead, between, width, tokens, vectors, lanes)
        _through(g, o, dim, between, gx, q, lead, width, tokens, scale, vectors, lanes)
        _between(g, o, dim, x, q, lead, between, width, tokens, vectors, lanes)
        _through(x, v, lead, between, gx, k, lead, width, tokens, scale, vectors, lanes)
        _between(x, q, lead, g, o, dim, between, width, tokens, vectors, lanes)
        _through(x, k, lead, between, gx, v, lead, width, tokens, scale, vectors, lanes)


@outer(parallel=True)
def attend_parallel(x, out, tokens, heads, width, scale, vectors, lanes, cuts):
    for p in numba.prange(cuts.size - 1):
        attend_kernel(x, out, tokens, heads, width, scale, vectors, lanes, cuts[p], cuts[p + 1])


@outer(parallel=True)
def attend_back_parallel(x, g, gx, tokens, heads, width, scale, vectors, lanes, cuts):
    for p in numba.prange(cuts.size - 1):
        attend_back(x, g, gx, tokens, heads, width, scale, vectors, lanes, cuts[p], cuts[p + 1])


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
        return _run(attend_kernel, attend_parallel, x, out, out, ctx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the other pairs."""
        (x,) = ctx.saved_tensors

        def products() -> tuple[Tensor | None, ...]:
            g, gx = grad.contiguous(), new(x, x.shape)
            back = (attend_back, attend_back_parallel)
            return (_run(*back, x, g, gx, ctx),)

        found = once(products)
        if found is None:
            found = again(lambda x: attend(x, ctx.heads, ctx.scale), (x,), grad)
        return *found, None, None
