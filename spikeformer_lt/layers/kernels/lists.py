"""Lists of the weights that a mask keeps, by outputs or by inputs, and the sums they lead to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from llvmlite import ir
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
    inner,
    outer,
    run,
)
from spikeformer_lt.layers.kernels.simd import Lanes, call, fma, read, turned, write

TILE = COLUMNS * MASKS  # columns whose sums registers hold
_STAY = np.zeros(1, np.int64)
_WORD = 64  # weights whose masks are read at once
_QUICK = 16  # masks that take as long as an update of a neuron


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


@intrinsic
def _word(_context, kept, index):
    """Of 64 bytes from `index` on, one bit each: whether it is not zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.VectorType(ir.IntType(8), _WORD)
        here = at(context, builder, signature.args[0], args[0], args[1])
        some = builder.icmp_unsigned("!=", read(builder, here, wide, 1), wide(None))
        return builder.bitcast(some, ir.IntType(_WORD))

    return types.uint64(kept, types.intp), generate


def _counted(name: str) -> Any:
    @intrinsic
    def counted(_context, word):
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            own = [args[0], ir.IntType(1)(0)] if name == "cttz" else [args[0]]
            return call(builder, f"llvm.{name}.i{_WORD}", args[0].type, own)

        return types.intp(types.uint64), generate

    return counted


_first, _ones = _counted("cttz"), _counted("ctpop")


@inner()
def _kept(kept, at, count):
    """The word of `count` bytes, at most 64."""
    if count == _WORD:
        return _word(kept, at)
    word = np.uint64(0)
    for i in range(count):
        word |= np.uint64(kept[at + i] != 0) << np.uint64(i)
    return word


@outer
def count_kernel(lo, hi, kept, width, start):
    """Entries of rows lo to hi that are kept; those of row o in start[o + 1]."""
    for o in range(lo, hi):
        count = 0
        for i in range(0, width, _WORD):
            count += _ones(_kept(kept, o * width + i, min(_WORD, width - i)))
        start[o + 1] = count


@outer
def entries_kernel(lo, hi, kept, input_of, tap_of, start, index, place):
    """The lists of rows lo to hi, of weights whose flat places have such inputs and taps.

    Places are by tap and then by channel, in a list; those of one tap are in their order.
    """
    width, taps = input_of.size, tap_of[-1] + 1
    found, free = np.empty(width, np.int64), np.empty(taps + 1, np.int64)
    for o in range(lo, hi):
        count = 0
        for i in range(0, width, _WORD):
            word = _kept(kept, o * width + i, min(_WORD, width - i))
            while word:
                found[count] = i + _first(word)
                word &= word - np.uint64(1)
                count += 1
        if taps == 1:
            index[start[o] : start[o + 1]] = found[:count]
            place[start[o] : start[o + 1]] = found[:count] + o * width
            continue
        free[:] = 0
        for e in range(count):
            free[tap_of[found[e]] + 1] += 1
        free[0] = start[o]
        for tap in range(taps):
            free[tap + 1] += free[tap]
        for e in range(count):
            tap = tap_of[found[e]]
            index[free[tap]] = input_of[found[e]]
            place[free[tap]] = o * width + found[e]
            free[tap] += 1


@outer
def turning_kernel(lo, hi, start, index, place, free, back, where, channels, plane, shifts):
    """Lists of the inputs from those of outputs lo to hi; free[i] is the next place of input i.

    Without `back`, free[i] is raised by the entries of input i.
    """
    for o in range(lo, hi):
        first, tap = 0, 0
        for e in range(start[o], start[o + 1]):
            while index[e] >= first + channels:
                first, tap = first + channels, tap + 1
            i = index[e] - first
            if back is not None:
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
        cuts = cut(made, mask.size // _QUICK, 1)
        run(count_kernel, cuts, (mask, width, start))
        start = start.cumsum()
        index, place = np.empty(start[-1], np.uint32), np.empty(start[-1], np.int64)
        channel, tap = np.divmod(np.arange(width), taps)
        own = (tap * channels + channel).astype(np.uint32), tap
        run(entries_kernel, cuts, (mask, *own, start, index, place))
        return cls(start, index, place, tuple(kept.shape))

    def turned(self, plane: int = 1, shifts: Array = _STAY) -> Self:
        """The same weights by inputs; an entry of output o and of a tap has o plane + its shift."""
        channels = self.shape[1]
        assert shifts.size == math.prod(self.shape[2:])
        start = np.zeros(channels + 1, np.int64)
        index, place = np.empty_like(self.index), np.empty_like(self.place)
        whole, lines = cut(self.start.size - 1, 0, 1), (self.start, self.index, self.place)
        run(turning_kernel, whole, (*lines, start[1:], None, None, channels, plane, shifts))
        start = start.cumsum()
        free = start[:-1].copy()
        run(turning_kernel, whole, (*lines, free, index, place, channels, plane, shifts))
        return type(self)(start, index, place, self.shape)

    def placed(self, parts: Array, out: Array) -> None:
        """Write the sums over `parts`, of which the entries come first, as a flat weight."""
        made = self.start.size - 1
        args = parts, self.start, self.place, out, out.size // max(1, made)
        run(place_kernel, cut(made, out.size, 1), args)
