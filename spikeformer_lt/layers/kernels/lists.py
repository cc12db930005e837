"""Lists of the weights that a mask keeps, by outputs or by inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.layers.kernels.jit import Array, cut, flat, get, outer, put0, put1, run


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
def turning_kernel(lo, hi, start, index, place, free, turned, where):
    """Lists of the inputs from those of outputs lo to hi; free[i] is the next place of input i."""
    for o in range(lo, hi):
        for e in range(start[o], start[o + 1]):
            i = index[e]
            turned[free[i]], where[free[i]] = o, place[e]
            free[i] += 1


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

    def turned(self) -> Self:
        """The same weights of [out, in] by inputs, whose entries have outputs for an index."""
        start = np.zeros(self.shape[1] + 1, np.int64)
        start[1:] = np.bincount(self.index, minlength=self.shape[1]).cumsum()
        index, place = np.empty_like(self.index), np.empty_like(self.place)
        own = self.start, self.index, self.place, start.copy(), index, place
        run(turning_kernel, cut(self.start.size - 1, 0, 1), own)
        return type(self)(start, index, place, self.shape)
