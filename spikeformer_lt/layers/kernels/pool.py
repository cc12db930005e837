"""Max-pools (3x3, stride 2, padding 1) of channels-last maps: of spikes, and before a LIF.

Arrays are flat. A window over the border reads a position inside it twice instead, which changes
neither its largest value nor, with the label of that position, the first place of it. Positions of
a window have the labels 0 to 8, row by row. `factor` is -1 in channels where the smallest value is
needed; it, and `x` of the backward pass, are None where they do not apply.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels.jit import (
    Array,
    again,
    cut,
    flat,
    get,
    inner,
    new,
    once,
    outer,
    put0,
    put1,
    run,
)


@inner()
def _better(x, i, c, factor, best, top, label, here):
    """The value, its rank and its label after looking at one more position."""
    value = get(x, i + c)
    rank = value if factor is None else value * get(factor, c)
    take = (rank > top) | (rank != rank)
    return value if take else best, rank if take else top, np.int32(here) if take else label


@inner()
def _window(x, factor, out, labels, o, channels, i0, i1, i2, j0, j1, j2, r0, r2, c0, c2):
    """Pool one window: rows start at i0 to i2, columns are j0 to j2 later; r and c give labels."""
    for c in range(channels):
        best = get(x, i0 + j0 + c)
        top = best if factor is None else best * get(factor, c)
        at = np.int32(r0 + c0)  # as wide as a float: the loop keeps its vector instructions
        best, top, at = _better(x, i0 + j1, c, factor, best, top, at, r0 + 1)
        best, top, at = _better(x, i0 + j2, c, factor, best, top, at, r0 + c2)
        best, top, at = _better(x, i1 + j0, c, factor, best, top, at, 3 + c0)
        best, top, at = _better(x, i1 + j1, c, factor, best, top, at, 4)
        best, top, at = _better(x, i1 + j2, c, factor, best, top, at, 3 + c2)
        best, top, at = _better(x, i2 + j0, c, factor, best, top, at, r2 + c0)
        best, top, at = _better(x, i2 + j1, c, factor, best, top, at, r2 + 1)
        best, top, at = _better(x, i2 + j2, c, factor, best, top, at, r2 + c2)
        put0(out, o + c, best)
        put1(labels, o + c, np.uint8(at))


@outer
def pool_kernel(lo, hi, x, factor, out, labels, height, width, channels):
    """Rows `lo` to `hi` of all output rows: the chosen values and their labels."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    for p in range(lo, hi):
        h = p % rows
        first = (p // rows) * height
        i1 = (first + 2 * h) * width * channels
        up, down = h > 0, 2 * h + 1 < height
        i0 = i1 - width * channels if up else i1
        i2 = i1 + width * channels if down else i1
        r0, r2 = 0 if up else 3, 6 if down else 3
        for w in range(columns):
            left, right = w > 0, 2 * w + 1 < width
            j1 = 2 * w * channels
            j0 = j1 - channels if left else j1
            j2 = j1 + channels if right else j1
            c0, c2 = 0 if left else 1, 2 if right else 1
            o = (p * columns + w) * channels
            _window(x, factor, out, labels, o, channels, i0, i1, i2, j0, j1, j2, r0, r2, c0, c2)


@inner()
def _chosen(g, labels, i, label, zero):
    return get(g, i) if np.int32(get(labels, i)) == np.int32(label) else zero


@inner()
def _line(x, tiles, i, c, channels, s):
    if x is None:
        return s
    line = get(x, i) * get(tiles, channels + c) + get(tiles, 2 * channels + c)
    return s * get(tiles, c) + line


@inner()
def _one_window(g, labels, gx, x, tiles, i, channels, o, label):
    zero = g.dtype.type(0)
    for c in range(channels):
        s = _chosen(g, labels, o + c, label, zero)
        put0(gx, i + c, _line(x, tiles, i + c, c, channels, s))


@inner()
def _four_windows(g, labels, gx, x, tiles, i, channels, o0, o1, o2, o3, l0, l1, l2, l3):
    zero = g.dtype.type(0)
    for c in range(channels):
        s = _chosen(g, labels, o0 + c, l0, zero) + _chosen(g, labels, o1 + c, l1, zero)
        s += _chosen(g, labels, o2 + c, l2, zero) + _chosen(g, labels, o3 + c, l3, zero)
        put0(gx, i + c, _line(x, tiles, i + c, c, channels, s))


@inner()
def _windows(h, size):
    """The two windows that hold position `h` of an axis and its place in each; 64 is in none."""
    none, middle = 64, 1
    if h % 2 == 0:
        return h // 2, h // 2, middle, none
    after = (h + 1) // 2
    inside = after < (size + 1) // 2
    return h // 2, after if inside else h // 2, 2, 0 if inside else none


@outer
def pool_back(lo, hi, g, labels, gx, x, tiles, height, width, channels):
    """Rows `lo` to `hi` of all input rows: sums of the gradients of the windows that chose them.

    With `x`, these become sum * scale + (x * slope + offset), the three in `tiles` per channel.
    """
    rows, columns = (height + 1) // 2, (width + 1) // 2
    for p in range(lo, hi):
        h = p % height
        a, b, ra, rb = _windows(h, height)
        first = (p // height) * rows
        ia, ib = (first + a) * columns * channels, (first + b) * columns * channels
        for w in range(width):
            i = (p * width + w) * channels
            q, r, cq, cr = _windows(w, width)
            jq, jr = q * channels, r * channels
            if h % 2 == 0 and w % 2 == 0:
                _one_window(g, labels, gx, x, tiles, i, channels, ia + jq, 4)
            else:
                _four_windows(
                    g, labels, gx, x, tiles, i, channels, ia + jq, ia + jr, ib + jq, ib + jr,
                    3 * ra + cq, 3 * ra + cr, 3 * rb + cq, 3 * rb + cr,
                )  # fmt: skip


def pool(x: Tensor) -> Tensor:
    """The pool in torch's operations: 3x3, stride 2, padding 1, of ``[T, B, H, W, C]``."""
    maps = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 3, 2, 1)
    out: Tensor = maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return out


def max_pool(x: Tensor, factor: Array | None) -> tuple[Tensor, Tensor]:
    """The largest value of each window, after `factor`, and the label of its place (uint8)."""
    time, batch, height, width, channels = x.shape
    shape = (time, batch, (height + 1) // 2, (width + 1) // 2, channels)
    out, labels = new(x, shape), torch.empty(shape, dtype=torch.uint8)
    cuts = cut(time * batch * shape[2], out.numel() * 4, 1)
    args = (flat(x), factor, flat(out), flat(labels), height, width, channels)
    run(pool_kernel, cuts, args)
    return out, labels


def max_pool_back(g: Tensor, labels: Tensor, like: Tensor, lines: list[Array] | None) -> Tensor:
    """Gradient of the pooled maps `like`; with `lines`, of the normalisation of them before it."""
    time, batch, height, width, channels = like.shape
    gx = new(g, like.shape)
    cuts = cut(time * batch * height, gx.numel(), 1)
    data = flat(g.contiguous())
    x = tiles = None
    if lines is not None:
        x, tiles = flat(like), np.concatenate(lines).astype(data.dtype)
    args = (data, flat(labels), flat(gx), x, tiles, height, width, channels)
    run(pool_back, cuts, args)
    return gx


class PoolFunction(torch.autograd.Function):
    """Max-pool (3x3, stride 2, padding 1) of [T, B, H, W, C]; saves one byte for each output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Pool."""
        out, labels = max_pool(x, None)
        ctx.save_for_backward(x if ctx.needs_input_grad[0] else None, labels)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        """Give each gradient to the first largest value of its window."""
        x, labels = ctx.saved_tensors
        found = once(lambda: (max_pool_back(grad, labels, x, None),))
        return (again(pool, (x,), grad) if found is None else found)[0]
