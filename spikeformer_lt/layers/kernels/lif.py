"""The numba kernels of the LIF neuron, forward and backward, and of what comes before it.

That is a batch normalisation, and a max-pool (3x3, stride 2, padding 1) of channels-last maps.

Arrays are flat; those of a normalisation are rows of channels. Steps go four at a time, so that
their voltages and gradients stay in registers; the voltage passes from one four to the next through
a block of elements in cache, and the backward pass recomputes each four from the voltage before it.
Read the assembly after a change: a loop that lost its vector instructions is ten times slower.

`tiles` is the scale and then the shift of a normalisation, per channel and repeated to the `width`
of a block. It and the flags `static` (x has one step for all), `decay` (of the input), `sigmoid`
(else atan) and `through` (gradients pass the reset) are None where they do not apply: numba
compiles a kernel for each combination in use. `k` holds the :func:`constants`; 1 is among them,
because a literal would turn float32 arithmetic into float64.

A pool's window over the border reads a position inside it twice instead, which changes neither its
largest value nor the first place of it. Labels are 0 to 8, row by row. `factor` is -1 in channels
where the smallest value is needed, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels.jit import (
    Array,
    again,
    cut,
    flat,
    get,
    get_gv,
    get_gx,
    get_product,
    get_total,
    get_v,
    inner,
    new,
    once,
    outer,
    put0,
    put1,
    put2,
    put3,
    put_gv,
    put_product,
    put_total,
    put_v,
    run,
    slope,
)
from spikeformer_lt.layers.kernels.reference import norm_lif, pool

# Measured on caches of 48 kB and 1 MB; between half and twice of these the clock hardly moves.
_BLOCK = 4096  # elements of a block of the LIF kernels
_STARTS = 65536  # voltages that a block may hold for the backward pass
_SUMS_BLOCK = 1024  # elements of a block of the statistics


@outer
def statistics(lo, hi, sums, x, pivot):
    """Sums of x - pivot and of its square, in float64."""
    width = pivot.size
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            d = np.float64(get(x, i + j) - get(pivot, j))
            put_total(sums, j, get_total(sums, j) + d)
            put_product(sums, width + j, get_product(sums, width + j) + d * d)


@outer
def centre(lo, hi, gx, x, tiles):
    """Turn the gradient of the output into that of x: scale g + slope x + offset, of the tiles."""
    width = tiles.size // 3
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            line = get(x, i + j) * get(tiles, width + j) + get(tiles, 2 * width + j)
            put0(gx, i + j, get_gx(gx, i + j) * get(tiles, j) + line)


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
def _sum(s, stream, j):
    return s if stream is None else s + get(stream, j)


@inner()
def _one(x, tiles, v, spikes, stream, i, k, decay):
    c = _constants(k)
    for j in range(v.size):
        _, s, u = _fire(_current(get(x, j), tiles, j), get_v(v, j), c, decay)
        if spikes is not None:
            put0(spikes, j, _sum(s, stream, i + j))
        put_v(v, j, u)


@inner()
def _four(x, dx, tiles, v, spikes, stream, i, n, k, decay):
    c = _constants(k)
    for j in range(v.size):
        u = get_v(v, j)
        _, s, u = _fire(_current(get(x, j), tiles, j), u, c, decay)
        put0(spikes, j, _sum(s, stream, i + j))
        _, s, u = _fire(_current(get(x, j + dx), tiles, j), u, c, decay)
        put1(spikes, j + n, _sum(s, stream, i + j + n))
        _, s, u = _fire(_current(get(x, j + 2 * dx), tiles, j), u, c, decay)
        put2(spikes, j + 2 * n, _sum(s, stream, i + j + 2 * n))
        _, s, u = _fire(_current(get(x, j + 3 * dx), tiles, j), u, c, decay)
        put3(spikes, j + 3 * n, _sum(s, stream, i + j + 3 * n))
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


@outer
def forward(lo, hi, x, static, tiles, v0, spikes, stream, v_last, n, k, decay, width):
    dx = n if static is None else 0
    steps = spikes.size // n
    for i in range(lo, hi, width):
        v = v_last[i : min(i + width, hi)]
        _start(v, v0, i, k[2])
        for t in range(0, steps - 3, 4):
            o = i + t * n
            _four(x[i + t * dx :], dx, tiles, v, spikes[o:], stream, o, n, k, decay)
        for t in range(steps - steps % 4, steps):
            _one(x[i + t * dx :], tiles, v, spikes[i + t * n :], stream, i + t * n, k, decay)


@outer
def backward(lo, hi, sums, x, static, tiles, v0, g, gx, n, k, decay, sigmoid, through, width):
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
                _one(x[i + t * dx :], tiles, v, None, None, 0, k, decay)
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


def _fold(sums: Array, channels: int) -> Array:
    """Sums [parts, 2 width] over the parts and the repeats of a channel: [2, channels]."""
    folded: Array = sums.reshape(sums.shape[0], 2, -1, channels).sum(axis=(0, 2))
    return folded


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


@cache
def constants(p: NeuronConfig, dtype: Any) -> Array:
    """The array that the kernels call k; not to be written."""
    steepness = p.steepness if p.surrogate == "sigmoid" else p.steepness / 2
    jump, hard = (-p.v_threshold, 0.0) if p.v_reset is None else (p.v_reset, 1.0)
    values = [p.tau, p.v_threshold, p.v_rest, jump, hard, 1.0, steepness, np.pi * steepness]
    values += [1.0 / p.tau if p.decay_input else 1.0, 1.0 - 1.0 / p.tau]
    return np.array(values, dtype)


class Work:
    """One LIF layer's input, constants and division into parts.

    `x` and `v` are contiguous; `rows` are scale and shift of a normalisation before the neurons.
    """

    def __init__(
        self, x: Tensor, v: Tensor | None, T: int, p: NeuronConfig,
        rows: Sequence[Array] | None = None,
    ) -> None:  # fmt: skip
        self.x, self.p, self.T = x, p, T
        self.data = x.detach().view(-1).numpy()
        self.n = self.data.size // x.shape[0]
        self.channels = 1 if rows is None else x.shape[-1]
        block = max(256, min(_BLOCK, _STARTS // (T // 4 + 3)))
        self.width = self.channels * max(1, block // self.channels)
        self.cuts = cut(self.n, self.n * T, self.width)
        self.head = (
            self.data,
            True if x.shape[0] == 1 else None,
            None if rows is None else self.tiles(rows),
            self.data[:0] if v is None else v.view(-1).numpy(),
        )

    def tiles(self, rows: Sequence[Array]) -> Array:
        """Values per channel, each row repeated to the width of a block."""
        tiled = np.empty((len(rows), self.width // self.channels, self.channels), self.data.dtype)
        for own, row in zip(tiled, rows, strict=True):
            own[:] = row
        return tiled.reshape(-1)

    def forward(
        self, spikes: Tensor | None = None, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Spikes, plus a `stream`, in the memory given (that of x too), and the last voltage."""
        spikes = new(self.x, (self.T, *self.x.shape[1:])) if spikes is None else spikes
        v_last = new(self.x, self.x.shape[1:])
        own = None if stream is None else flat(stream)
        arrays = spikes.view(-1).numpy(), own, v_last.view(-1).numpy()
        k = constants(self.p, self.data.dtype)
        args = (*self.head, *arrays, self.n, k, self.p.decay_input or None, self.width)
        run(forward, self.cuts, args)
        return spikes, v_last

    def backward(self, grad: Tensor) -> tuple[Tensor, Array]:
        """Gradient of the current; per channel of a normalisation, sums of it and of it times x."""
        gx, p = new(self.x, self.x.shape), self.p
        flags = (p.decay_input, p.surrogate == "sigmoid", not p.detach_reset)
        sums = np.zeros((self.cuts.size - 1, 0 if self.head[2] is None else 2 * self.width))
        arrays = (flat(grad.contiguous()), flat(gx), self.n, constants(p, self.data.dtype))
        args = (*self.head, *arrays, *(flag or None for flag in flags), self.width)
        run(backward, self.cuts, args, sums)
        return gx, _fold(sums, self.channels)

    def centre(self, gx: Tensor, rows: Sequence[Array]) -> None:
        """Turn `gx` into gx * scale + (x * slope + offset), with rows of values per channel."""
        cuts = cut(gx.numel(), gx.numel(), self.width)
        run(centre, cuts, (flat(gx), self.data, self.tiles(rows)))


def norm_rows(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[list[Array], Array]:
    """Scale and shift of a normalisation per channel, and 1 / sqrt(var + eps), in float64."""
    inverse = 1.0 / np.sqrt(var.detach().numpy().astype(np.float64) + eps)
    scale = inverse if weight is None else inverse * weight.detach().numpy()
    shift = -mean.detach().numpy() * scale
    return [scale, shift if bias is None else shift + bias.detach().numpy()], inverse


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all axes but the last, summed in float64."""
    data, channels = flat(x), x.shape[-1]
    pivot = data[:channels]
    repeats = max(1, _SUMS_BLOCK // channels)
    cuts = cut(data.size, data.size, channels * repeats)
    sums = np.zeros((cuts.size - 1, 2 * channels * repeats))
    args = (data, np.tile(pivot, repeats))
    run(statistics, cuts, args, sums)
    first, second = _fold(sums, channels) * (channels / data.size)
    mean, var = pivot + first, np.maximum(second - first * first, 0.0)
    return torch.from_numpy(mean.astype(data.dtype)), torch.from_numpy(var.astype(data.dtype))


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
    """Batch normalisation over the last axis where `mean` is given, a max-pool if `pooled`, LIF.

    Saves x and four values per channel; backward computes the voltages again. Pooling comes first:
    the largest input of a window, or the smallest where the scale is negative, gives its largest
    output. That saves a quarter of x and a byte for each of it, too.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
        var: Tensor | None, batch: bool, eps: float, v: Tensor | None, T: int, p: NeuronConfig,
        pooled: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the steps; `batch` says that mean and var are those of x."""
        rows = maps = labels = None
        if mean is not None and var is not None:
            rows, _ = norm_rows(weight, bias, mean, var, eps)
        if pooled and rows is not None:
            factor = None if (rows[0] > 0).all() else np.sign(rows[0]).astype(flat(x[:0]).dtype)
            maps, labels = max_pool(x, factor)
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
            if mean is None:
                return Work(x, v, T, p).backward(grad)[0], None, None
            rows, inverse = norm_rows(weight, bias, mean, var, eps)
            work = Work(x if maps is None else maps, v, T, p, rows)
            g, sums = work.backward(grad)
            lines, *own = norm_back(x, mean, rows[0], inverse, sums, batch)
            if maps is None:
                work.centre(g, lines)
            else:
                g = max_pool_back(g, labels, x, lines)
            return g, None if weight is None else own[0], None if bias is None else own[1]

        def operations(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            norm = mean, var, weight, bias
            return norm_lif(x, norm, batch, eps, v, T, p, maps is not None)

        gradients = once(kernels)
        if gradients is None:
            gradients = again(operations, (x, weight, bias), grad)
        return *gradients, *(None,) * 8


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
