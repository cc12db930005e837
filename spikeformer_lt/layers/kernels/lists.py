"""Lists of the weights that a mask keeps, by outputs or by inputs, and the sums they lead to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeformer_lt.layers.kernels.bits import COLUMNS, MASKS, make_tuple, spread, wide_type
from spikeformer_lt.layers.kernels.jit import (
    Array,
    at,
    cut,
    flat,
    get,
    inner,
    outer,
    put0,
    put1,
    run,
)
from spikeformer_lt.layers.kernels.simd import Lanes, fma, turned, write

TILE = COLUMNS * MASKS  # columns whose sums registers hold
_STAY = np.zeros(1, np.int64)


@intrinsic
def zeros(_context, values, registers):
    """As many rows of zeros as `registers` has members."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = wide_type(signature.args[0].dtype)
        return make_tuple(context, builder, signature, [wide(None)] * len(signature.return_type))

    return types.UniTuple(Lanes(values.dtype, COLUMNS), len(registers))(values, registers), generate


@intrinsic
def spill(_context, sums, gain, shift, out, place):
    """Write ``gain sums + shift`` to 16 R places."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        by, plus = spread(builder, args[1]), spread(builder, args[2])
        kind, target = signature.args[3], at(context, builder, signature.args[3], args[3], args[4])
        for r, row in enumerate(cgutils.unpack_tuple(builder, args[0])):
            here = cgutils.gep(builder, target, args[4].type(r * COLUMNS))
            write(builder, fma(builder, row, by, plus), here, kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(sums, gain, shift, out, types.intp), generate


@inner()
def to_rows(row, out, n, made, begin, first, wide, groups, width):
    """Write 16 columns a register, of `wide` outputs, as rows of out from `begin`, at `first`.

    Registers are of `groups` columns, step by step, of which each has n.
    """
    for r in range(width):
        column = begin + r % groups * 16
        count, to = min(16, n - column), (r // groups * n + column) * made + first
        full = wide - wide % 16 if count == 16 else 0
        for c in range(0, full, 16):
            turned(row, (c * width + r) * 16, width * 16, out, to + c, made)
        for c in range(full, wide):
            for i in range(count):
                out[to + i * made + c] = row[(c * width + r) * 16 + i]


@outer
def count_kernel(lo, hi, kept, width, start):
    """Entries of rows lo to hi that are kept; those of row o in start[o + 1]."""
    for o in range(lo, hi):
        count = 0
        for i in range(o * width, (o + 1) * width):
            count += get(kept, i)
        start[o + 1] = count


@outer
def entries_kernel(lo, hi, kept, channels, taps, start, index, place):
    """The lists of rows lo to hi, of weights [out, channels, taps]."""
    width = channels * taps
    row, where = np.empty(width + 1, index.dtype), np.empty(width + 1, place.dtype)
    for o in range(lo, hi):
        count = 0
        for tap in range(taps):
            for c in range(channels):  # without a branch, which a mask would mislead
                at = o * width + c * taps + tap
                put0(row, count, np.uint32(tap * channels + c))
                put1(where, count, np.int64(at))
                count += get(kept, at)
        index[start[o] : start[o + 1]] = row[:count]
        place[start[o] : start[o + 1]] = where[:count]


@outer
def turning_kernel(lo, hi, start, index, place, free, back, where, plane, shifts):
    """Lists of the inputs from those of outputs lo to hi; free[i] is the next place of input i."""
    for o in range(lo, hi):
        for e in range(start[o], start[o + 1]):
            i, tap = index[e] % free.size, index[e] // free.size
            back[free[i]], where[free[i]] = o * plane + shifts[tap], place[e]
            free[i] += 1


@outer
def place_kernel(lo, hi, parts, start, place, out, width):
    """Write rows lo to hi of out [outputs, width]: each entry's sum over parts, else 0."""
    rows = parts.shape[0]
    out[lo * width : hi * width] = 0
    for e in range(start[lo], start[hi]):
        total = parts[0, e]
        for p in range(1, rows):
            total += parts[p, e]
        out[place[e]] = total


@dataclass(frozen=True, eq=False)
class Lists:
    """The weights that each output keeps: entries start[o] to start[o + 1]."""

    start: Array  # int64 [outputs + 1]
    index: Array  # input of each entry, by tap and then channel; uint32, ascending for an output
    place: Array  # of each entry in the flat weight
    shape: tuple[int, ...]  # of the weight

    @classmethod
    def of(cls, kept: Tensor) -> Self:
        """Lists of the entries that are True of [out, in], or [out, in, h, h]."""
        (made, channels), taps = kept.shape[:2], math.prod(kept.shape[2:])
        mask, width = flat(kept.contiguous().view(torch.uint8)), channels * taps
        start = np.zeros(made + 1, np.int64)
        cuts = cut(made, mask.size, 1)
        run(count_kernel, cuts, (mask, width, start))
        start = start.cumsum()
        index, place = np.empty(start[-1], np.uint32), np.empty(start[-1], np.int64)
        run(entries_kernel, cuts, (mask, channels, taps, start, index, place))
        return cls(start, index, place, tuple(kept.shape))

    def turned(self, plane: int = 1, shifts: Array = _STAY) -> Self:
        """The same weights by inputs; an entry of output o and of a tap has o plane + its shift."""
        channels = self.shape[1]
        assert shifts.size == math.prod(self.shape[2:])
        start = np.zeros(channels + 1, np.int64)
        start[1:] = np.bincount(self.index % channels, minlength=channels).cumsum()
        index, place = np.empty_like(self.index), np.empty_like(self.place)
        own = self.start, self.index, self.place, start[:-1].copy(), index, place, plane, shifts
        run(turning_kernel, cut(self.start.size - 1, 0, 1), own)
        return type(self)(start, index, place, self.shape)

    def placed(self, parts: Array, out: Array) -> None:
        """Write the sums over `parts`, of which the entries come first, as a flat weight."""
        made = self.start.size - 1
        args = parts, self.start, self.place, out, out.size // max(1, made)
        run(place_kernel, cut(made, out.size, 1), args)
