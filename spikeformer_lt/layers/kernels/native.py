"""The numba kernels; imported at first use only, because numba takes half a second to load.

All of them are in this one file: numba renews a cached kernel when its own file changes, not when another
file that it calls into does. Arrays are flat. Work is cut into blocks of W elements, so that the voltages,
the normalised input and (backward) the recomputed h[t] stay in cache over all T steps. Inner loops are
functions over slices that start at 0 and have at most two written arrays: only then does LLVM prove, or
check at run time, that they do not overlap, and vectorises (40 times, measured by reading the assembly and
the clock). `one` and `zero` come from an array of the data's own type, since a literal would turn float32
arithmetic into float64.

`tiles` holds the scale and the shift of a normalisation, per channel and repeated to the width of a block;
it is empty where there is none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_LOG = logging.getLogger(__name__)


def _jit(parallel: bool = False, fastmath: Any = False) -> Callable[[Any], Any]:
    """numba.njit that is cached on disk, or compiled in each process where no folder can be written."""
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "parallel": parallel,
        "fastmath": fastmath,
    }

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            _LOG.info("kernels are compiled anew in this process: %s", error)
            return numba.njit(**options)(function)

    return decorate


@intrinsic
def _power_of_two(_context: Any, shifted: Any) -> Any:
    """2^n for the n that adding 1.5 * 2^(mantissa bits) left in the low bits of a float."""
    wide = shifted == types.float64
    bits, mantissa, bias = (64, 52, 1023) if wide else (32, 23, 127)

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(bits)
        n = builder.bitcast(args[0], integer)
        exponent = builder.add(builder.shl(n, integer(mantissa)), integer(bias << mantissa))
        return builder.bitcast(exponent, ir.DoubleType() if wide else ir.FloatType())

    return shifted(shifted), generate


def _exp_minus(z: float) -> float:
    """exp(-z) for z >= 0 in operations that vectorise (libm's exp is a call per element)."""
    raise NotImplementedError


@overload(_exp_minus, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp_minus_for(z: Any) -> Any:
    single = z == types.float32
    f = np.float32 if single else np.float64
    # exp(-z) = 2^n exp(r), n = round(-z / ln 2), r = -z - n ln 2 with ln 2 in two parts; Taylor on |r| < 0.35
    top, magic = (f(87.0), f(12582912.0)) if single else (f(708.0), f(6755399441055744.0))
    head = f(0.693359375)
    tail = f(math.log(2.0) - 0.693359375)
    log2e = f(-1.0 / math.log(2.0))
    c = [f(1.0 / math.factorial(k)) for k in range(14)]
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = c

    def reduced(z: Any) -> Any:  # pragma: no cover
        bounded = top if z > top else z  # noqa: FURB136 - a NaN must stay
        shifted = bounded * log2e + magic
        n = shifted - magic
        return shifted, (-bounded - n * head) - n * tail

    split = numba.njit(fastmath={"contract"}, error_model="numpy")(reduced)

    def exp_single(z: Any) -> Any:  # pragma: no cover
        shifted, r = split(z)
        p = (((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1
        return (p * r + c0) * _power_of_two(shifted)

    def exp_double(z: Any) -> Any:  # pragma: no cover
        shifted, r = split(z)
        p = (((((c13 * r + c12) * r + c11) * r + c10) * r + c9) * r + c8) * r + c7
        p = (((((p * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1
        return (p * r + c0) * _power_of_two(shifted)

    return exp_single if single else exp_double


# Rounding may differ from torch's in the derivative, never in the voltage: no contraction anywhere else.
@_jit(fastmath={"contract"})
def _slope(u, sigmoid, a, b, one):  # type: ignore[no-untyped-def]
    if sigmoid:
        e = _exp_minus(abs(u * a))
        return a * e / ((one + e) * (one + e))
    return a / (one + (b * u) * (b * u))


@_jit()
def _fire(current, v, k, decay):  # type: ignore[no-untyped-def]
    """Charge, spike and next voltage."""
    tau, threshold, rest, jump, hard, one = k
    h = v + (current - (v - rest)) / tau if decay else v - (v - rest) / tau + current
    s = one if h >= threshold else one - one
    return h, s, h - h * s * hard + jump * s


@_jit()
def _step(x, v, out, k, decay, voltage):  # type: ignore[no-untyped-def]
    c = (k[0], k[1], k[2], k[3], k[4], k[5])
    for j in range(v.size):
        h, s, v[j] = _fire(x[j], v[j], c, decay)
        out[j] = h if voltage else s


@_jit()
def _step_norm(x, scale, shift, v, out, k, decay, voltage):  # type: ignore[no-untyped-def]
    c = (k[0], k[1], k[2], k[3], k[4], k[5])
    for j in range(v.size):
        h, s, v[j] = _fire(x[j] * scale[j] + shift[j], v[j], c, decay)
        out[j] = h if voltage else s


@_jit()
def _step_back(h, g, gv, gx, k, sigmoid, add):  # type: ignore[no-untyped-def]
    threshold, jump, hard, one = k[1], k[3], k[4], k[5]
    through, a, b, gain, leak = k[6], k[7], k[8], k[9], k[10]
    zero = one - one
    for j in range(gv.size):
        s = hard if h[j] >= threshold else zero
        gs = g[j] + gv[j] * ((jump - h[j] * hard) * through)
        gh = gs * _slope(h[j] - threshold, sigmoid, a, b, one) + gv[j] * (one - s)
        gv[j] = gh * leak
        gx[j] = gx[j] + gh * gain if add else gh * gain


@_jit()
def _reduce(gy, x, total, product):  # type: ignore[no-untyped-def]
    for j in range(gy.size):
        total[j] += gy[j]
        product[j] += np.float64(gy[j]) * np.float64(x[j])


@_jit()
def _squares(x, pivot, total, square):  # type: ignore[no-untyped-def]
    for j in range(x.size):
        d = np.float64(x[j] - pivot[j])
        total[j] += d
        square[j] += d * d


@_jit()
def _through_norm(gx, x, scale, slope, offset):  # type: ignore[no-untyped-def]
    for j in range(gx.size):
        gx[j] = gx[j] * scale[j] + (x[j] * slope[j] + offset[j])


@_jit()
def forward(x, tiles, v0, spikes, v_last, n, k, decay, width, lo, hi):  # type: ignore[no-untyped-def]
    static = x.size == n
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        v = v_last[i : i + m]
        if v0.size:
            v[:] = v0[i : i + m]
        else:
            v[:] = k[2]
        for t in range(spikes.size // n):
            o = i if static else t * n + i
            out = spikes[t * n + i : t * n + i + m]
            if tiles.size:
                _step_norm(x[o : o + m], tiles[0], tiles[1], v, out, k, decay, False)
            else:
                _step(x[o : o + m], v, out, k, decay, False)


@_jit()
def backward(x, tiles, v0, g, gx, n, k, decay, sigmoid, width, sums, lo, hi):  # type: ignore[no-untyped-def]
    static = x.size == n
    steps = g.size // n
    h = np.empty((steps, width), x.dtype)
    voltage = np.empty(width, x.dtype)
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        v = voltage[:m]
        if v0.size:
            v[:] = v0[i : i + m]
        else:
            v[:] = k[2]
        for t in range(steps):
            o = i if static else t * n + i
            if tiles.size:
                _step_norm(x[o : o + m], tiles[0], tiles[1], v, h[t, :m], k, decay, True)
            else:
                _step(x[o : o + m], v, h[t, :m], k, decay, True)
        v[:] = k[5] - k[5]
        for t in range(steps - 1, -1, -1):
            o = i if static else t * n + i
            later = static and t < steps - 1
            out = gx[o : o + m]
            _step_back(h[t, :m], g[t * n + i : t * n + i + m], v, out, k, sigmoid, later)
            if tiles.size and (t == 0 or not static):
                _reduce(out, x[o : o + m], sums[0], sums[1])


@_jit()
def statistics(x, pivot, sums, lo, hi):  # type: ignore[no-untyped-def]
    width = pivot.size
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        _squares(x[i : i + m], pivot, sums[0], sums[1])


@_jit()
def centre(gx, x, tiles, more, lo, hi):  # type: ignore[no-untyped-def]
    width = tiles.shape[1]
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        _through_norm(gx[i : i + m], x[i : i + m], tiles[0], more[0], more[1])


@_jit(parallel=True)
def forward_parallel(x, tiles, v0, spikes, v_last, n, k, decay, width, cuts):  # type: ignore[no-untyped-def]
    for p in numba.prange(cuts.size - 1):
        forward(x, tiles, v0, spikes, v_last, n, k, decay, width, cuts[p], cuts[p + 1])


@_jit(parallel=True)
def backward_parallel(x, tiles, v0, g, gx, n, k, decay, sigmoid, width, sums, cuts):  # type: ignore[no-untyped-def]
    for p in numba.prange(cuts.size - 1):
        backward(x, tiles, v0, g, gx, n, k, decay, sigmoid, width, sums[p], cuts[p], cuts[p + 1])


@_jit(parallel=True)
def statistics_parallel(x, pivot, sums, cuts):  # type: ignore[no-untyped-def]
    for p in numba.prange(cuts.size - 1):
        statistics(x, pivot, sums[p], cuts[p], cuts[p + 1])


@_jit(parallel=True)
def centre_parallel(gx, x, tiles, more, cuts):  # type: ignore[no-untyped-def]
    for p in numba.prange(cuts.size - 1):
        centre(gx, x, tiles, more, cuts[p], cuts[p + 1])
