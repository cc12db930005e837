"""The numba kernels; imported at first use only, because numba takes half a second to load.

Arrays are flat. Steps go four at a time, so that their voltages and their gradients stay in registers; the
voltage passes from one four to the next through a block of `width` elements in cache, and the backward
pass recomputes each four from the voltage before it. Read the assembly after a change: a loop that lost
its vector instructions is ten times slower.

`tiles` is the scale and then the shift of a normalisation, per channel and repeated to the width of a
block. It and the flags `static`, `decay`, `sigmoid` and `through` are None where they do not apply: numba
compiles one kernel for each such combination in use. `k` holds the constants that functions.py lists; 1 is
among them, because a literal would turn float32 arithmetic into float64.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from spikeformer_lt.layers.kernels import vector
from spikeformer_lt.layers.kernels.vector import (
    get,
    get_gv,
    get_gx,
    get_product,
    get_total,
    get_v,
    inner,
    put0,
    put1,
    put2,
    put3,
    put_gv,
    put_product,
    put_total,
    put_v,
    slope,
)

_LOG = logging.getLogger(__name__)
_VECTOR = zlib.crc32(Path(vector.__file__).read_bytes())


def _outer(parallel: bool = False) -> Callable[[Any], Any]:
    """A kernel, cached on disk, or compiled in each process where no folder can be written."""

    def decorate(function: Any) -> Any:
        # numba renews its cache when this file changes; the name makes it see a change of the other.
        function.__qualname__ += f"_{_VECTOR:08x}"
        options = {"nogil": True, "error_model": "numpy", "parallel": parallel}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            _LOG.info("kernels are compiled anew in this process: %s", error)
            return numba.njit(**options)(function)

    return decorate


@inner()
def _constants(k):
    return k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9]


@inner()
def _current(x, tiles, j, width):
    return x if tiles is None else x * get(tiles, j) + get(tiles, width + j)


@inner()
def _fire(current, v, c, decay):
    """Charge, spike and next voltage."""
    tau, threshold, rest, jump, hard, one = c[0], c[1], c[2], c[3], c[4], c[5]
    if decay is None:
        h = v - (v - rest) / tau + current
    else:
        h = v + (current - (v - rest)) / tau
    s = one if h >= threshold else one - one
    return h, s, h - h * s * hard + jump * s


@inner()
def _fire_back(h, s, g, gv, c, sigmoid, through):
    """Gradients of the current and of the voltage before, from those of the spike and the voltage after."""
    threshold, jump, hard, one = c[1], c[3], c[4], c[5]
    if through is not None:
        g += gv * (jump - h * hard)
    gh = g * slope(h - threshold, sigmoid, c[6], c[7], one) + gv * (one - s * hard)
    return gh * c[8], gh * c[9]


@inner()
def _one(x, o, tiles, width, v, i, spikes, so, m, k, decay):
    c = _constants(k)
    for j in range(m):
        current = _current(get(x, o + j), tiles, j, width)
        _, s, u = _fire(current, get_v(v, i + j), c, decay)
        if spikes is not None:
            put0(spikes, so + j, s)
        put_v(v, i + j, u)


@inner()
def _four(x, o, dx, tiles, width, v, i, spikes, so, n, m, k, decay):
    c = _constants(k)
    for j in range(m):
        u = get_v(v, i + j)
        p = o + j
        q = so + j
        _, s, u = _fire(_current(get(x, p), tiles, j, width), u, c, decay)
        put0(spikes, q, s)
        _, s, u = _fire(_current(get(x, p + dx), tiles, j, width), u, c, decay)
        put1(spikes, q + n, s)
        _, s, u = _fire(_current(get(x, p + 2 * dx), tiles, j, width), u, c, decay)
        put2(spikes, q + 2 * n, s)
        _, s, u = _fire(_current(get(x, p + 3 * dx), tiles, j, width), u, c, decay)
        put3(spikes, q + 3 * n, s)
        put_v(v, i + j, u)


@inner()
def _one_back(x, o, tiles, width, v, i, g, go, gv, gx, add, near, m, k, decay, sigmoid, through):
    c = _constants(k)
    for j in range(m):
        x0 = get(x, o + j)
        h, s, _ = _fire(_current(x0, tiles, j, width), get_v(v, i + j), c, decay)
        y, q = _fire_back(h, s, get(g, go + j), get_gv(gv, j), c, sigmoid, through)
        put_gv(gv, j, q)
        if add is None:
            put0(gx, o + j, y)
        else:
            put0(gx, o + j, get_gx(gx, o + j) * add + y)
        if tiles is not None:
            put_total(near, j, get_total(near, j) + y)
            put_product(near, width + j, get_product(near, width + j) + y * x0)


@inner()
def _four_back(
    x, o, dx, tiles, width, v, i, g, go, n, gv, gx, add, near, m, k, decay, sigmoid, through
):
    c = _constants(k)
    for j in range(m):
        p = o + j
        u = get_v(v, i + j)
        x0, x1, x2, x3 = get(x, p), get(x, p + dx), get(x, p + 2 * dx), get(x, p + 3 * dx)
        h0, s0, u = _fire(_current(x0, tiles, j, width), u, c, decay)
        h1, s1, u = _fire(_current(x1, tiles, j, width), u, c, decay)
        h2, s2, u = _fire(_current(x2, tiles, j, width), u, c, decay)
        h3, s3, u = _fire(_current(x3, tiles, j, width), u, c, decay)
        r = go + j
        y3, q = _fire_back(h3, s3, get(g, r + 3 * n), get_gv(gv, j), c, sigmoid, through)
        y2, q = _fire_back(h2, s2, get(g, r + 2 * n), q, c, sigmoid, through)
        y1, q = _fire_back(h1, s1, get(g, r + n), q, c, sigmoid, through)
        y0, q = _fire_back(h0, s0, get(g, r), q, c, sigmoid, through)
        put_gv(gv, j, q)
        total = (y0 + y1) + (y2 + y3)
        if add is None:
            put0(gx, p, y0)
            put1(gx, p + dx, y1)
            put2(gx, p + 2 * dx, y2)
            put3(gx, p + 3 * dx, y3)
        else:
            put0(gx, p, get_gx(gx, p) * add + total)
        if tiles is not None:
            product = (y0 * x0 + y1 * x1) + (y2 * x2 + y3 * x3)
            put_total(near, j, get_total(near, j) + total)
            put_product(near, width + j, get_product(near, width + j) + product)


@_outer()
def forward(x, static, tiles, v0, spikes, v_last, n, k, decay, width, lo, hi):
    dx = n if static is None else 0
    steps = spikes.size // n
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        if v0.size:
            v_last[i : i + m] = v0[i : i + m]
        else:
            v_last[i : i + m] = k[2]
        for t in range(0, steps - 3, 4):
            _four(x, i + t * dx, dx, tiles, width, v_last, i, spikes, i + t * n, n, m, k, decay)
        for t in range(steps - steps % 4, steps):
            _one(x, i + t * dx, tiles, width, v_last, i, spikes, i + t * n, m, k, decay)


@_outer()
def backward(x, static, tiles, v0, g, gx, n, k, decay, sigmoid, through, width, sums, lo, hi):
    dx = n if static is None else 0
    steps = g.size // n
    fours = steps // 4
    parts = fours + steps % 4
    zero = k[5] - k[5]
    v = np.empty(parts * width, x.dtype)  # the voltage before each part
    gv = np.empty(width, x.dtype)
    near = np.zeros(sums.size, x.dtype)  # the sums of one block, in its own precision
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        if v0.size:
            v[:m] = v0[i : i + m]
        else:
            v[:m] = k[2]
        for p in range(parts - 1):
            at = (p + 1) * width
            v[at : at + m] = v[at - width : at - width + m]
            first = 4 * p if p < fours else 3 * fours + p
            for t in range(first, first + (4 if p < fours else 1)):
                _one(x, i + t * dx, tiles, width, v, at, None, 0, m, k, decay)
        gv[:m] = zero
        for p in range(parts - 1, -1, -1):
            at = p * width
            if static is None:
                add = None
            else:
                add = k[5] if p < parts - 1 else zero
            if p < fours:
                o, r = i + 4 * p * dx, i + 4 * p * n
                _four_back(
                    x,
                    o,
                    dx,
                    tiles,
                    width,
                    v,
                    at,
                    g,
                    r,
                    n,
                    gv,
                    gx,
                    add,
                    near,
                    m,
                    k,
                    decay,
                    sigmoid,
                    through,
                )
            else:
                o, r = i + (3 * fours + p) * dx, i + (3 * fours + p) * n
                _one_back(
                    x,
                    o,
                    tiles,
                    width,
                    v,
                    at,
                    g,
                    r,
                    gv,
                    gx,
                    add,
                    near,
                    m,
                    k,
                    decay,
                    sigmoid,
                    through,
                )
        for j in range(near.size):
            put_total(sums, j, get_total(sums, j) + get_product(near, j))
            put_product(near, j, zero)


@_outer()
def statistics(x, pivot, sums, lo, hi):
    width = pivot.size
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            d = np.float64(get(x, i + j) - get(pivot, j))
            put_total(sums, j, get_total(sums, j) + d)
            put_product(sums, width + j, get_product(sums, width + j) + d * d)


@_outer()
def centre(gx, x, tiles, more, width, lo, hi):
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            other = get(x, i + j) * get(more, j) + get(more, width + j)
            put0(gx, i + j, get_gx(gx, i + j) * get(tiles, j) + other)


@_outer(parallel=True)
def forward_parallel(x, static, tiles, v0, spikes, v_last, n, k, decay, width, cuts):
    for p in numba.prange(cuts.size - 1):
        forward(x, static, tiles, v0, spikes, v_last, n, k, decay, width, cuts[p], cuts[p + 1])


@_outer(parallel=True)
def backward_parallel(
    x, static, tiles, v0, g, gx, n, k, decay, sigmoid, through, width, sums, cuts
):
    for p in numba.prange(cuts.size - 1):
        lo, hi = cuts[p], cuts[p + 1]
        backward(x, static, tiles, v0, g, gx, n, k, decay, sigmoid, through, width, sums[p], lo, hi)


@_outer(parallel=True)
def statistics_parallel(x, pivot, sums, cuts):
    for p in numba.prange(cuts.size - 1):
        statistics(x, pivot, sums[p], cuts[p], cuts[p + 1])


@_outer(parallel=True)
def centre_parallel(gx, x, tiles, more, width, cuts):
    for p in numba.prange(cuts.size - 1):
        centre(gx, x, tiles, more, width, cuts[p], cuts[p + 1])
