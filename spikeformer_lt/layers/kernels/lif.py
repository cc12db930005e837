"""The numba kernels of the LIF neuron, forward and backward, alone or after a normalisation.

Arrays are flat; those of a normalisation are rows of channels. Steps go four at a time, so that
their voltages and gradients stay in registers; the voltage passes from one four to the next through
a block of elements in cache, and the backward pass recomputes each four from the voltage before it.
Read the assembly after a change: a loop that lost its vector instructions is ten times slower.

`tiles` is the scale and then the shift of a normalisation, per channel and repeated to the `width`
of a block. It and the flags `static` (x has one step for all), `decay` (of the input), `sigmoid`
(else atan) and `through` (gradients pass the reset) are None where they do not apply: numba
compiles a kernel for each combination in use. `k` holds the constants that launch.py lists; 1 is
among them, because a literal would turn float32 arithmetic into float64.
"""

from __future__ import annotations

import numba
import numpy as np

from spikeformer_lt.layers.kernels.jit import (
    get,
    get_gv,
    get_gx,
    get_product,
    get_total,
    get_v,
    inner,
    outer,
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


@outer()
def statistics(x, pivot, sums, lo, hi):
    """Sums of x - pivot and of its square, in float64."""
    width = pivot.size
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            d = np.float64(get(x, i + j) - get(pivot, j))
            put_total(sums, j, get_total(sums, j) + d)
            put_product(sums, width + j, get_product(sums, width + j) + d * d)


@outer()
def centre(gx, x, tiles, lo, hi):
    """Turn the gradient of the output into that of x, with the scale, slope and offset in tiles.

    The line in x takes out what x does to the mean and to the variance.
    """
    width = tiles.size // 3
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            line = get(x, i + j) * get(tiles, width + j) + get(tiles, 2 * width + j)
            put0(gx, i + j, get_gx(gx, i + j) * get(tiles, j) + line)


@outer(parallel=True)
def statistics_parallel(x, pivot, sums, cuts):
    for p in numba.prange(cuts.size - 1):
        statistics(x, pivot, sums[p], cuts[p], cuts[p + 1])


@outer(parallel=True)
def centre_parallel(gx, x, tiles, cuts):
    for p in numba.prange(cuts.size - 1):
        centre(gx, x, tiles, cuts[p], cuts[p + 1])


@inner()
def _constants(k):
    return k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9]


@inner()
def _current(x, tiles, j):
    return x if tiles is None else x * get(tiles, j) + get(tiles, tiles.size // 2 + j)


@inner()
def _fire(current, v, c, decay):
    """Charge, spike and next voltage."""
    tau, threshold, rest, jump, hard, one = c[0], c[1], c[2], c[3], c[4], c[5]
    if decay is None:  # noqa: SIM108 - numba leaves out a whole branch, not half an expression
        h = v - (v - rest) / tau + current
    else:
        h = v + (current - (v - rest)) / tau
    s = one if h >= threshold else one - one
    return h, s, h - h * s * hard + jump * s


@inner()
def _fire_back(h, s, g, gv, c, sigmoid, through):
    """Gradients of current and voltage before, from those of spike and voltage after."""
    threshold, jump, hard, one = c[1], c[3], c[4], c[5]
    if through is not None:
        g += gv * (jump - h * hard)
    gh = g * slope(h - threshold, sigmoid, c[6], c[7], one) + gv * (one - s * hard)
    return gh * c[8], gh * c[9]


@inner()
def _one(x, tiles, v, spikes, k, decay):
    c = _constants(k)
    for j in range(v.size):
        _, s, u = _fire(_current(get(x, j), tiles, j), get_v(v, j), c, decay)
        if spikes is not None:
            put0(spikes, j, s)
        put_v(v, j, u)


@inner()
def _four(x, dx, tiles, v, spikes, n, k, decay):
    c = _constants(k)
    for j in range(v.size):
        u = get_v(v, j)
        _, s, u = _fire(_current(get(x, j), tiles, j), u, c, decay)
        put0(spikes, j, s)
        _, s, u = _fire(_current(get(x, j + dx), tiles, j), u, c, decay)
        put1(spikes, j + n, s)
        _, s, u = _fire(_current(get(x, j + 2 * dx), tiles, j), u, c, decay)
        put2(spikes, j + 2 * n, s)
        _, s, u = _fire(_current(get(x, j + 3 * dx), tiles, j), u, c, decay)
        put3(spikes, j + 3 * n, s)
        put_v(v, j, u)


@inner()
def _one_back(x, tiles, v, g, gv, gx, static, near, k, decay, sigmoid, through):
    c = _constants(k)
    half = near.size // 2
    for j in range(v.size):
        x0 = get(x, j)
        h, s, _ = _fire(_current(x0, tiles, j), get_v(v, j), c, decay)
        y, q = _fire_back(h, s, get(g, j), get_gv(gv, j), c, sigmoid, through)
        put_gv(gv, j, q)
        if static is None:
            put0(gx, j, y)
        else:
            put0(gx, j, get_gx(gx, j) + y)
        if tiles is not None:
            put_total(near, j, get_total(near, j) + y)
            put_product(near, half + j, get_product(near, half + j) + y * x0)


@inner()
def _four_back(x, dx, tiles, v, g, n, gv, gx, static, near, k, decay, sigmoid, through):
    c = _constants(k)
    half = near.size // 2
    for j in range(v.size):
        u = get_v(v, j)
        x0, x1, x2, x3 = get(x, j), get(x, j + dx), get(x, j + 2 * dx), get(x, j + 3 * dx)
        h0, s0, u = _fire(_current(x0, tiles, j), u, c, decay)
        h1, s1, u = _fire(_current(x1, tiles, j), u, c, decay)
        h2, s2, u = _fire(_current(x2, tiles, j), u, c, decay)
        h3, s3, u = _fire(_current(x3, tiles, j), u, c, decay)
        y3, q = _fire_back(h3, s3, get(g, j + 3 * n), get_gv(gv, j), c, sigmoid, through)
        y2, q = _fire_back(h2, s2, get(g, j + 2 * n), q, c, sigmoid, through)
        y1, q = _fire_back(h1, s1, get(g, j + n), q, c, sigmoid, through)
        y0, q = _fire_back(h0, s0, get(g, j), q, c, sigmoid, through)
        put_gv(gv, j, q)
        total = (y0 + y1) + (y2 + y3)
        if static is None:
            put0(gx, j, y0)
            put1(gx, j + dx, y1)
            put2(gx, j + 2 * dx, y2)
            put3(gx, j + 3 * dx, y3)
        else:
            put0(gx, j, get_gx(gx, j) + total)
        if tiles is not None:
            product = (y0 * x0 + y1 * x1) + (y2 * x2 + y3 * x3)
            put_total(near, j, get_total(near, j) + total)
            put_product(near, half + j, get_product(near, half + j) + product)


@inner()
def _start(v, v0, i, rest):
    if v0.size:
        v[:] = v0[i : i + v.size]
    else:
        v[:] = rest


@inner()
def _add(near, sums):
    """Move the sums of one block, in the precision of the data, to the sums of all."""
    half = near.size // 2
    zero = near.dtype.type(0)
    for j in range(half):
        put_total(sums, j, get_total(sums, j) + get_total(near, j))
        put_total(near, j, zero)
    for j in range(half, near.size):
        put_product(sums, j, get_product(sums, j) + get_product(near, j))
        put_product(near, j, zero)


@outer()
def forward(x, static, tiles, v0, spikes, v_last, n, k, decay, width, lo, hi):
    dx = n if static is None else 0
    steps = spikes.size // n
    for i in range(lo, hi, width):
        v = v_last[i : min(i + width, hi)]
        _start(v, v0, i, k[2])
        for t in range(0, steps - 3, 4):
            _four(x[i + t * dx :], dx, tiles, v, spikes[i + t * n :], n, k, decay)
        for t in range(steps - steps % 4, steps):
            _one(x[i + t * dx :], tiles, v, spikes[i + t * n :], k, decay)


@outer()
def backward(x, static, tiles, v0, g, gx, n, k, decay, sigmoid, through, width, sums, lo, hi):
    dx = n if static is None else 0
    steps = g.size // n
    fours = steps // 4
    parts = fours + steps % 4
    starts = np.empty((parts, width), x.dtype)  # the voltage before each part
    block = np.empty(width, x.dtype)
    near = np.zeros(sums.size, x.dtype)
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        _start(starts[0, :m], v0, i, k[2])
        for p in range(1, parts):
            v = starts[p, :m]
            v[:] = starts[p - 1, :m]
            last = 4 * p if p <= fours else 3 * fours + p
            for t in range(last - 4 if p <= fours else last - 1, last):
                _one(x[i + t * dx :], tiles, v, None, k, decay)
        gv = block[:m]
        gv[:] = k[5] - k[5]
        if static is not None:
            gx[i : i + m] = k[5] - k[5]
        for p in range(parts - 1, -1, -1):
            t = 4 * p if p < fours else 3 * fours + p
            xt, gt, gxt, v = x[i + t * dx :], g[i + t * n :], gx[i + t * dx :], starts[p, :m]
            if p < fours:
                _four_back(
                    xt, dx, tiles, v, gt, n, gv, gxt, static, near, k, decay, sigmoid, through
                )
            else:
                _one_back(xt, tiles, v, gt, gv, gxt, static, near, k, decay, sigmoid, through)
        _add(near, sums)


@outer(parallel=True)
def forward_parallel(x, static, tiles, v0, spikes, v_last, n, k, decay, width, cuts):
    for p in numba.prange(cuts.size - 1):
        forward(x, static, tiles, v0, spikes, v_last, n, k, decay, width, cuts[p], cuts[p + 1])


@outer(parallel=True)
def backward_parallel(
    x, static, tiles, v0, g, gx, n, k, decay, sigmoid, through, width, sums, cuts
):
    for p in numba.prange(cuts.size - 1):
        lo, hi = cuts[p], cuts[p + 1]
        backward(x, static, tiles, v0, g, gx, n, k, decay, sigmoid, through, width, sums[p], lo, hi)
