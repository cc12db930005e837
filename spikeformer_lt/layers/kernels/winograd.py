"""A 3x3 convolution of channels-last maps by Winograd's F(4x4, 3x3): a quarter of the products.

A tile of 4x4 outputs depends on 6x6 inputs; both, and 3x3 weights, are transformed into 36 values,
number 6 r + c for row r and column c, on which a convolution is a product. Blocks of tiles are
transformed, multiplied and inverse-transformed while they are in cache. Maps are flat; a place
outside a map reads 0 and is not written. Output channels are in packed panels as wide as `vectors`
registers; the number of input channels is a multiple of 8. Results are deterministic for a given
number of threads.

Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels.jit import Array, again, cut, flat, inner, new, once, outer, run
from spikeformer_lt.layers.kernels.simd import (
    BYTES,
    down,
    gather,
    load,
    load_if,
    panel_vectors,
    scatter,
    store,
    straight,
)


@inner()
def _data(d0, d1, d2, d3, d4, d5):
    """B^T d."""
    even, odd = d4 - d2 * 4.0, d3 - d1 * 4.0
    near, far = d4 - d2, (d3 - d1) * 2.0
    first, last = d4 - d2 * 5.0 + d0 * 4.0, d5 - d3 * 5.0 + d1 * 4.0
    return first, even + odd, even - odd, near + far, near - far, last


@inner()
def _weight(g0, g1, g2):
    """G g."""
    a, b = (g0 + g2) * (-1.0 / 6.0), g1 * (1.0 / 6.0)
    c, d = g0 * (1.0 / 24.0) + g2 * (1.0 / 6.0), g1 * (1.0 / 12.0)
    return g0 * 0.25, a - b, a + b, c + d, c - d, g2


@inner()
def filter_row(m0, m1, m2, m3, m4, m5):
    """G^T m."""
    s, t = (m1 + m2) * (1.0 / 6.0), m3 + m4
    first = m0 * 0.25 - s + t * (1.0 / 24.0)
    return first, (m2 - m1) * (1.0 / 6.0) + (m3 - m4) * (1.0 / 12.0), t * (1.0 / 6.0) - s + m5


@inner()
def _out(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    a, b, c, d = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + a + c, b + d * 2.0, a + c * 4.0, b + d * 8.0 + m5


@inner()
def _out_back(y0, y1, y2, y3):
    """A y."""
    a, b = y0 + y2, y1 + y3
    c, d = y0 + y2 * 4.0, y1 * 2.0 + y3 * 8.0
    return y0, a + b, a - b, c + d, c - d, y3


@inner()
def _place(t, height, width):
    """First row and column, and image, of tile t."""
    down, across = (height + 3) // 4, (width + 3) // 4
    image = t // (down * across)
    t -= image * down * across
    return 4 * (t // across), 4 * (t % across), image


@inner()
def _column(x, i, step, j, width, r0, r1, r2, r3, r4, r5):
    ok = (j >= 0) & (j < width)
    return _data(
        load_if(x, i, ok & r0),
        load_if(x, i + step, ok & r1),
        load_if(x, i + 2 * step, ok & r2),
        load_if(x, i + 3 * step, ok & r3),
        load_if(x, i + 4 * step, ok & r4),
        load_if(x, i + 5 * step, ok & r5),
    )


@inner()
def put(v, i, pitch, values):
    store(v, i, values[0])
    store(v, i + pitch, values[1])
    store(v, i + 2 * pitch, values[2])
    store(v, i + 3 * pitch, values[3])
    store(v, i + 4 * pitch, values[4])
    store(v, i + 5 * pitch, values[5])


@inner()
def input_transform(x, v, t, slot, pitch, height, width, channels, lo, hi, lanes):
    """Transformed inputs of tile t, channels lo to hi, at [place, slot, channel - lo] of v."""
    h, w, image = _place(t, height, width)
    top, step = h - 1, width * channels
    r0, r1, r2, r3 = top >= 0, True, top + 2 < height, top + 3 < height
    r4, r5 = top + 4 < height, top + 5 < height
    base = ((image * height + top) * width + w - 1) * channels
    for c in range(lo, hi, lanes):
        i = base + c
        a = _column(x, i, step, w - 1, width, r0, r1, r2, r3, r4, r5)
        b = _column(x, i + channels, step, w, width, r0, r1, r2, r3, r4, r5)
        d = _column(x, i + 2 * channels, step, w + 1, width, r0, r1, r2, r3, r4, r5)
        e = _column(x, i + 3 * channels, step, w + 2, width, r0, r1, r2, r3, r4, r5)
        f = _column(x, i + 4 * channels, step, w + 3, width, r0, r1, r2, r3, r4, r5)
        g = _column(x, i + 5 * channels, step, w + 4, width, r0, r1, r2, r3, r4, r5)
        o = slot * (hi - lo) + c - lo
        put(v, o, pitch, _data(a[0], b[0], d[0], e[0], f[0], g[0]))
        put(v, o + 6 * pitch, pitch, _data(a[1], b[1], d[1], e[1], f[1], g[1]))
        put(v, o + 12 * pitch, pitch, _data(a[2], b[2], d[2], e[2], f[2], g[2]))
        put(v, o + 18 * pitch, pitch, _data(a[3], b[3], d[3], e[3], f[3], g[3]))
        put(v, o + 24 * pitch, pitch, _data(a[4], b[4], d[4], e[4], f[4], g[4]))
        put(v, o + 30 * pitch, pitch, _data(a[5], b[5], d[5], e[5], f[5], g[5]))


@inner()
def _side(y, i, step, ok, r1, r2, r3):
    return _out_back(
        load_if(y, i, ok),
        load_if(y, i + step, ok & r1),
        load_if(y, i + 2 * step, ok & r2),
        load_if(y, i + 3 * step, ok & r3),
    )


@inner()
def gradient_transform(y, m, t, slot, pitch, height, width, channels, lo, hi, lanes):
    """Transformed gradient of tile t's outputs, stored as in :func:`input_transform`."""
    h, w, image = _place(t, height, width)
    step = width * channels
    r1, r2, r3 = h + 1 < height, h + 2 < height, h + 3 < height
    base = ((image * height + h) * width + w) * channels
    for c in range(lo, hi, lanes):
        i = base + c
        a = _side(y, i, step, True, r1, r2, r3)
        b = _side(y, i + channels, step, w + 1 < width, r1, r2, r3)
        d = _side(y, i + 2 * channels, step, w + 2 < width, r1, r2, r3)
        e = _side(y, i + 3 * channels, step, w + 3 < width, r1, r2, r3)
        o = slot * (hi - lo) + c - lo
        put(m, o, pitch, _out_back(a[0], b[0], d[0], e[0]))
        put(m, o + 6 * pitch, pitch, _out_back(a[1], b[1], d[1], e[1]))
        put(m, o + 12 * pitch, pitch, _out_back(a[2], b[2], d[2], e[2]))
        put(m, o + 18 * pitch, pitch, _out_back(a[3], b[3], d[3], e[3]))
        put(m, o + 24 * pitch, pitch, _out_back(a[4], b[4], d[4], e[4]))
        put(m, o + 30 * pitch, pitch, _out_back(a[5], b[5], d[5], e[5]))


@inner()
def line(m, i, step):
    return (
        load(m, i),
        load(m, i + step),
        load(m, i + 2 * step),
        load(m, i + 3 * step),
        load(m, i + 4 * step),
        load(m, i + 5 * step),
    )


@inner()
def _row_out(y, i, channels, left, r, a, b, d, e, f, g):
    done = _out(a[r], b[r], d[r], e[r], f[r], g[r])
    store(y, i, done[0])
    if left > 1:
        store(y, i + channels, done[1])
    if left > 2:
        store(y, i + 2 * channels, done[2])
    if left > 3:
        store(y, i + 3 * channels, done[3])


@inner()
def output_transform(m, y, t, slot, pitch, height, width, channels, lo, wide, lanes):
    """Outputs of tile t, channels lo to lo + wide, from the products at [place, slot] of m."""
    h, w, image = _place(t, height, width)
    base = ((image * height + h) * width + w) * channels + lo
    down, left, step = height - h, width - w, width * channels
    for c in range(0, wide, lanes):
        o, i = slot * wide + c, base + c
        # sums over rows first; place [row, column] is 6 row + column
        a = _out(*line(m, o, 6 * pitch))
        b = _out(*line(m, o + pitch, 6 * pitch))
        d = _out(*line(m, o + 2 * pitch, 6 * pitch))
        e = _out(*line(m, o + 3 * pitch, 6 * pitch))
        f = _out(*line(m, o + 4 * pitch, 6 * pitch))
        g = _out(*line(m, o + 5 * pitch, 6 * pitch))
        _row_out(y, i, channels, left, 0, a, b, d, e, f, g)
        if down > 1:
            _row_out(y, i + step, channels, left, 1, a, b, d, e, f, g)
        if down > 2:
            _row_out(y, i + 2 * step, channels, left, 2, a, b, d, e, f, g)
        if down > 3:
            _row_out(y, i + 3 * step, channels, left, 3, a, b, d, e, f, g)


@inner()
def spread(gw, i, step, values):
    scatter(gw, i, step, values[0])
    scatter(gw, i + 1, step, values[1])
    scatter(gw, i + 2, step, values[2])


@inner()
def filter_vectors(w, i, s, step, u, o, pitch):
    """Transformed 3x3 filters at i, s apart, of a vector of outputs, `step` apart."""
    a = _weight(gather(w, i, step), gather(w, i + 3 * s, step), gather(w, i + 6 * s, step))
    i += s
    b = _weight(gather(w, i, step), gather(w, i + 3 * s, step), gather(w, i + 6 * s, step))
    i += s
    d = _weight(gather(w, i, step), gather(w, i + 3 * s, step), gather(w, i + 6 * s, step))
    put(u, o, pitch, _weight(a[0], b[0], d[0]))
    put(u, o + 6 * pitch, pitch, _weight(a[1], b[1], d[1]))
    put(u, o + 12 * pitch, pitch, _weight(a[2], b[2], d[2]))
    put(u, o + 18 * pitch, pitch, _weight(a[3], b[3], d[3]))
    put(u, o + 24 * pitch, pitch, _weight(a[4], b[4], d[4]))
    put(u, o + 30 * pitch, pitch, _weight(a[5], b[5], d[5]))


_GAP = 16  # values between places, so that they do not all map to the same set of the cache


@outer
def filter_transform(lo, hi, w, u, summed, made, step_in, step_out, flip, vectors, lanes):
    """Transformed filters u[place, panel, in, column] of the outputs of lanes lo to hi.

    The nine values of a filter are adjacent, those of the next input `step_in` further, of the next
    output `step_out`; `flip` rotates them by 180 degrees.
    """
    cols = vectors * lanes
    pitch = summed * made
    for group in range(lo, hi):
        panel, column = group // vectors, group % vectors * lanes
        for c in range(summed):
            i = group * lanes * step_out + c * step_in + (8 if flip else 0)
            s = -1 if flip else 1
            o = (panel * summed + c) * cols + column
            filter_vectors(w, i, s, step_out, u, o, pitch)


@outer
def convolve_kernel(lo, hi, x, u, y, height, width, summed, made, vectors, lanes, block, depth):
    """Outputs y of the tiles lo to hi; products go over `depth` input channels at a time."""
    cols = vectors * lanes
    panels = made // cols
    pitch, pitch_m = block * summed + _GAP, block * cols + _GAP
    v, m = np.empty(36 * pitch, x.dtype), np.empty(36 * pitch_m, x.dtype)
    for first in range(lo, hi, block):
        count = min(block, hi - first)
        for t in range(count):
            input_transform(x, v, first + t, t, pitch, height, width, summed, 0, summed, lanes)
        for panel in range(panels):
            for p in range(36):
                base = (p * panels + panel) * summed
                for c in range(0, summed, depth):
                    straight(
                        vectors, v, p * pitch + c, summed, u, (base + c) * cols, cols,
                        m, p * pitch_m, cols, count, min(depth, summed - c), c > 0,
                    )  # fmt: skip
            for t in range(count):
                output_transform(
                    m, y, first + t, t, pitch_m, height, width, made, panel * cols, cols, lanes
                )


@outer
def weights_back_kernel(
    lo, hi, x, g, gw, tiles, height, width, summed, made, vectors, lanes, block, parts
):
    """Gradient gw [out, in, 9] of the weights; each part holds bounds of inputs and of outputs."""
    for part in range(lo, hi):
        c_lo, c_hi = parts[part, 0], parts[part, 1]
        k_lo, k_hi = parts[part, 2], parts[part, 3]
        wide, tall, cols = k_hi - k_lo, c_hi - c_lo, vectors * lanes
        pitch, pitch_m = block * tall + _GAP, block * wide + _GAP
        pitch_u = tall * wide + _GAP
        v, m = np.empty(36 * pitch, x.dtype), np.empty(36 * pitch_m, x.dtype)
        total = np.empty(36 * pitch_u, x.dtype)
        for first in range(0, tiles, block):
            count = min(block, tiles - first)
            for t in range(count):
                input_transform(x, v, first + t, t, pitch, height, width, summed, c_lo, c_hi, lanes)
                gradient_transform(
                    g, m, first + t, t, pitch_m, height, width, made, k_lo, k_hi, lanes
                )
            for p in range(36):
                for k in range(0, wide, cols):
                    down(
                        vectors, v, p * pitch, tall, m, p * pitch_m + k, wide,
                        total, p * pitch_u + k, wide, tall, count, first > 0,
                    )  # fmt: skip
        for c in range(tall):
            for k in range(0, wide, lanes):
                o = c * wide + k
                a = filter_row(*line(total, o, 6 * pitch_u))
                b = filter_row(*line(total, o + pitch_u, 6 * pitch_u))
                d = filter_row(*line(total, o + 2 * pitch_u, 6 * pitch_u))
                e = filter_row(*line(total, o + 3 * pitch_u, 6 * pitch_u))
                f = filter_row(*line(total, o + 4 * pitch_u, 6 * pitch_u))
                h = filter_row(*line(total, o + 5 * pitch_u, 6 * pitch_u))
                step = 9 * summed
                i = (k_lo + k) * step + (c_lo + c) * 9
                spread(gw, i, step, filter_row(a[0], b[0], d[0], e[0], f[0], h[0]))
                spread(gw, i + 3, step, filter_row(a[1], b[1], d[1], e[1], f[1], h[1]))
                spread(gw, i + 6, step, filter_row(a[2], b[2], d[2], e[2], f[2], h[2]))


_BLOCK = 48  # tiles transformed and multiplied together; 24 and 96 are as fast
_DEPTH = 128  # channels summed at a time: that height of a panel stays in the first cache
_WORTH, _WORTH_KNOWN = 96, 16  # tiles from which it pays, with and without transforming filters


@lru_cache(maxsize=1024)
def suits(
    rows: Sequence[int], weight: Sequence[int], itemsize: int, known: bool = False
) -> tuple[bool, bool]:
    """Whether the kernels apply to maps [T, B, H, W, C] and weights [C', C, 3, 3], and are faster.

    They apply to whole vectors of channels, and are faster than a direct convolution of large maps,
    or of smaller ones where the transformed filters are `known`.
    """
    lanes, (height, width) = BYTES // itemsize, rows[2:4]
    fits = tuple(weight[2:]) == (3, 3) and rows[-1] == weight[1] and min(height, width) >= 2
    fits = fits and weight[0] % lanes == 0 and weight[1] % max(lanes, 8) == 0
    wasted = (-height % 4 + height) * (-width % 4 + width) > 1.6 * height * width
    return fits, not wasted and _tiles(rows) >= (_WORTH_KNOWN if known else _WORTH)


def _tiles(rows: Sequence[int]) -> int:
    height, width = rows[2:4]
    return rows[0] * rows[1] * -(-height // 4) * -(-width // 4)


def transformed_filters(weight: Tensor, backward: bool = False) -> tuple[Array, int]:
    """Transformed filters, of the gradient of the inputs if `backward`, and the panel width."""
    made, summed = weight.shape[:2]
    steps = (9, 9 * summed)
    if backward:
        made, summed, steps = summed, made, (steps[1], steps[0])
    lanes = BYTES // weight.element_size()
    vectors = panel_vectors(made, lanes)
    data = flat(weight.contiguous())
    transformed: Array = np.empty(4 * data.size, data.dtype)
    cuts = cut(made // lanes, transformed.size, 1)
    args = (data, transformed, summed, made, *steps, backward, vectors, lanes)
    run(filter_transform, cuts, args)
    return transformed, vectors


def convolve(rows: Tensor, weight: Tensor, backward: bool = False, known: Any = None) -> Tensor:
    """The convolution of rows [T, B, H, W, C]; `known` are its filters if transformed already.

    With `backward`, rows are the gradient of its outputs, and the result is that of its inputs.
    """
    filters, vectors = known or transformed_filters(weight, backward)
    summed, made = rows.shape[-1], weight.shape[1 if backward else 0]
    out = new(rows, (*rows.shape[:-1], made))
    height, width = rows.shape[2:4]
    lanes = BYTES // rows.element_size()
    tiles = _tiles(rows.shape)
    cuts = cut(tiles, filters.size // 36 * tiles, 1)
    sizes = (height, width, summed, made, vectors, lanes, _BLOCK, _DEPTH)
    args = (flat(rows), filters, flat(out), *sizes)
    run(convolve_kernel, cuts, args)
    return out


def _parts(summed: int, made: int, lanes: int, threads: int) -> tuple[Array, int]:
    """Bounds of inputs and outputs of each thread's share of the weights; panel width.

    A share transforms its own inputs and outputs; the fewest channels transformed twice are best.
    """
    shares = [
        (a, b)
        for a in range(1, threads + 1)
        for b in range(1, threads // a + 1)
        if summed % (a * max(lanes, 8)) == 0 and made % (b * lanes) == 0
    ]
    a, b = max(shares, key=lambda s: (s[0] * s[1], -(summed // s[0] + made // s[1])))
    tall, wide = summed // a, made // b
    bounds = [
        (i * tall, (i + 1) * tall, j * wide, (j + 1) * wide) for i in range(a) for j in range(b)
    ]
    return np.array(bounds), panel_vectors(wide, lanes)


def weights_back(rows: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight [C', C, 3, 3] from rows and the gradient of the outputs."""
    made, summed = weight.shape[:2]
    lanes = BYTES // rows.element_size()
    tiles = _tiles(rows.shape)
    threads = cut(made * summed, made * summed * tiles, 1).size - 1
    parts, vectors = _parts(summed, made, lanes, threads)
    gw = weight.new_empty(weight.shape)
    sizes = (tiles, *rows.shape[2:4], summed, made, vectors, lanes, _BLOCK)
    args = (flat(rows), flat(grad), flat(gw), *sizes, parts)
    cuts = np.arange(len(parts) + 1)
    run(weights_back_kernel, cuts, args)
    return gw


def direct(rows: Tensor, weight: Tensor) -> Tensor:
    """The convolution in torch's operations, of ``[T, B, H, W, C]``."""
    maps = F.conv2d(rows.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=1)
    out: Tensor = maps.permute(0, 2, 3, 1).unflatten(0, rows.shape[:2])
    return out


class WinogradFunction(torch.autograd.Function):
    """Convolution (3x3, stride 1, padding 1) of ``[T, B, H, W, C]``; saves rows and weight.

    Source: Lavin & Gray, CVPR 2016 (arXiv 1509.09308), section 4.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(rows, weight)
        return convolve(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Convolve with the rotated filters, and multiply transformed inputs and gradients."""
        rows, weight = ctx.saved_tensors

        def kernels() -> tuple[Tensor | None, ...]:
            g = grad.contiguous()
            gx = convolve(g, weight, True) if ctx.needs_input_grad[0] else None
            return gx, weights_back(rows, g, weight) if ctx.needs_input_grad[1] else None

        found = once(kernels)
        return again(direct, (rows, weight), grad) if found is None else found
