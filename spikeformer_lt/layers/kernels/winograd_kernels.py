"""The numba kernels of a 3x3 convolution by Winograd's F(4x4, 3x3): a quarter of the products.

Blocks of tiles are turned into planes, multiplied plane by plane and turned back while they are in
cache. Channels that are produced stand in panels as wide as `vectors` registers; those that are
summed over are a multiple of 8. All of it is deterministic for a given number of threads.

Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import numba
import numpy as np

from spikeformer_lt.layers.kernels.tiles import down, straight
from spikeformer_lt.layers.kernels.vector import inner, outer
from spikeformer_lt.layers.kernels.winograd_planes import (
    column_back,
    data_in,
    grad_in,
    planes_out,
    spread,
    weight_back,
    weight_in,
)

_GAP = 16  # values between planes, so that they do not all meet in the same set of the cache


@outer()
def planes(w, u, summed, made, step_in, step_out, flip, vectors, lanes, lo, hi):
    """Weight planes u[plane, panel, in, column] of the outputs of lanes lo to hi.

    The nine values of a weight lie together, those of the next input `step_in` further, of the next
    output `step_out`; `flip` turns them by half a turn.
    """
    cols = vectors * lanes
    pitch = summed * made
    for group in range(lo, hi):
        panel, column = group // vectors, group % vectors * lanes
        for c in range(summed):
            i = group * lanes * step_out + c * step_in + (8 if flip else 0)
            s = -1 if flip else 1
            o = (panel * summed + c) * cols + column
            weight_in(w, i, s, step_out, u, o, pitch)


@outer()
def convolve(x, u, y, height, width, summed, made, vectors, lanes, block, depth, lo, hi):
    """Outputs y of the tiles lo to hi; products go over `depth` input channels at a time."""
    cols = vectors * lanes
    panels = made // cols
    pitch, pitch_m = block * summed + _GAP, block * cols + _GAP
    v, m = np.empty(36 * pitch, x.dtype), np.empty(36 * pitch_m, x.dtype)
    for first in range(lo, hi, block):
        count = min(block, hi - first)
        for t in range(count):
            data_in(x, v, first + t, t, pitch, height, width, summed, 0, summed, lanes)
        for panel in range(panels):
            for p in range(36):
                base = (p * panels + panel) * summed
                for c in range(0, summed, depth):
                    straight(
                        vectors, v, p * pitch + c, summed, u, (base + c) * cols, cols,
                        m, p * pitch_m, cols, count, min(depth, summed - c), c > 0,
                    )  # fmt: skip
            for t in range(count):
                planes_out(
                    m, y, first + t, t, pitch_m, height, width, made, panel * cols, cols, lanes
                )


@inner()
def _part_back(
    x, g, gw, tiles, height, width, summed, made, vectors, lanes, block, c_lo, c_hi, k_lo, k_hi
):
    wide, tall, cols = k_hi - k_lo, c_hi - c_lo, vectors * lanes
    pitch, pitch_m = block * tall + _GAP, block * wide + _GAP
    pitch_u = tall * wide + _GAP
    v, m = np.empty(36 * pitch, x.dtype), np.empty(36 * pitch_m, x.dtype)
    total = np.empty(36 * pitch_u, x.dtype)
    for first in range(0, tiles, block):
        count = min(block, tiles - first)
        for t in range(count):
            data_in(x, v, first + t, t, pitch, height, width, summed, c_lo, c_hi, lanes)
            grad_in(g, m, first + t, t, pitch_m, height, width, made, k_lo, k_hi, lanes)
        for p in range(36):
            for k in range(0, wide, cols):
                down(
                    vectors, v, p * pitch, tall, m, p * pitch_m + k, wide,
                    total, p * pitch_u + k, wide, tall, count, first > 0,
                )  # fmt: skip
    for c in range(tall):
        for k in range(0, wide, lanes):
            o = c * wide + k
            a = column_back(total, o, 6 * pitch_u)
            b = column_back(total, o + pitch_u, 6 * pitch_u)
            d = column_back(total, o + 2 * pitch_u, 6 * pitch_u)
            e = column_back(total, o + 3 * pitch_u, 6 * pitch_u)
            f = column_back(total, o + 4 * pitch_u, 6 * pitch_u)
            h = column_back(total, o + 5 * pitch_u, 6 * pitch_u)
            step = 9 * summed
            i = (k_lo + k) * step + (c_lo + c) * 9
            spread(gw, i, step, weight_back(a[0], b[0], d[0], e[0], f[0], h[0]))
            spread(gw, i + 3, step, weight_back(a[1], b[1], d[1], e[1], f[1], h[1]))
            spread(gw, i + 6, step, weight_back(a[2], b[2], d[2], e[2], f[2], h[2]))


@outer()
def weights_back(
    x, g, gw, tiles, height, width, summed, made, vectors, lanes, block, parts, lo, hi
):
    """Gradient gw [out, in, 9] of the weights; each part holds bounds of inputs and of outputs."""
    for part in range(lo, hi):
        _part_back(
            x, g, gw, tiles, height, width, summed, made, vectors, lanes, block,
            parts[part, 0], parts[part, 1], parts[part, 2], parts[part, 3],
        )  # fmt: skip


@outer(parallel=True)
def planes_parallel(w, u, summed, made, step_in, step_out, flip, vectors, lanes, cuts):
    for p in numba.prange(cuts.size - 1):
        planes(
            w, u, summed, made, step_in, step_out, flip, vectors, lanes, cuts[p], cuts[p + 1]
        )  # fmt: skip


@outer(parallel=True)
def convolve_parallel(x, u, y, height, width, summed, made, vectors, lanes, block, depth, cuts):
    for p in numba.prange(cuts.size - 1):
        convolve(
            x, u, y, height, width, summed, made, vectors, lanes, block, depth, cuts[p], cuts[p + 1]
        )  # fmt: skip


@outer(parallel=True)
def weights_back_parallel(
    x, g, gw, tiles, height, width, summed, made, vectors, lanes, block, parts, cuts
):
    for p in numba.prange(cuts.size - 1):
        weights_back(
            x, g, gw, tiles, height, width, summed, made, vectors, lanes, block, parts,
            cuts[p], cuts[p + 1],
        )  # fmt: skip
