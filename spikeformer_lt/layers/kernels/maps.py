"""Gradients of the inputs of 3x3 convolutions, by lists of the kept weights.

Registers hold the sums of one input channel over whole rows of maps. The gradients of the outputs
lie by channels, each row with a zero behind it, so that a tap reads at a fixed distance: an entry
is one addition to each register.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeformer_lt.layers.kernels.bits import COLUMNS, make_tuple, spread, wide_type
from spikeformer_lt.layers.kernels.jit import at, cut, flat, inner, new, outer, run
from spikeformer_lt.layers.kernels.lists import TILE, Lists, spill, to_rows, zeros
from spikeformer_lt.layers.kernels.simd import fma, loop, read, turned, vector

_HALF = 8  # columns of a row that lie together
_BLOCK = 64  # channels of a piece of work
_NEAR = 1 << 20  # bytes of a tile's gradients, beyond which nothing is gained


@dataclass(frozen=True)
class Tile:
    """What registers hold of maps of `height` and 8 `eights` columns: whole maps or some rows."""

    height: int
    eights: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Tile | None:
        """The tile for maps [..., H, W, C], if there is one."""
        height, width = shape[-3:-1]
        fits = width % _HALF == 0 and width <= TILE and height > 1
        return cls(height, width // _HALF) if fits else None

    @property
    def rows(self) -> int:
        """Rows of a map."""
        return min(self.height, TILE // (_HALF * self.eights))

    @property
    def maps(self) -> int:
        """Maps, of which each has all its rows if there is more than one."""
        return max(1, TILE // (_HALF * self.eights * self.height))

    @property
    def pitch(self) -> int:
        """Distance of rows."""
        return _HALF * self.eights + 1

    @property
    def plane(self) -> int:
        """Distance of channels: a row above and below each map, and a zero before them all."""
        return self.maps * (self.rows + 2) * self.pitch + 1

    @property
    def counts(self) -> tuple[int, ...]:
        """What the kernel is compiled for; the last are its registers."""
        columns = self.maps * self.rows * _HALF * self.eights
        return self.eights, self.rows, self.maps, -(-columns // COLUMNS)

    @property
    def filled(self) -> float:
        """The share of the registers' columns, in all strips of a map, that hold some of it."""
        strips = -(-self.height // self.rows)
        columns = self.maps * self.height * _HALF * self.eights
        return columns / (strips * self.counts[3] * COLUMNS)

    def fits(self, made: int, size: int = 4) -> bool:
        """Whether the gradients of `made` outputs, numbers of so many bytes, stay in a cache."""
        return made * self.plane * size <= _NEAR

    @property
    def places(self) -> tuple[int, int]:
        """The distances of channels and of rows, which lists of the inputs are made for."""
        return self.plane, self.pitch


def by_inputs(kept: Lists, plane: int, pitch: int) -> Lists:
    """Lists of the inputs of a convolution; entries say where to read, from an output's place on.

    A tap's own is behind the place above and to the left.
    """
    shifts = [(2 - i) * pitch + 2 - j for i in range(3) for j in range(3)]
    return kept.turned(plane, np.array(shifts))


@intrinsic
def mapped(_context, sums, near, index, value, first, last, kinds):
    """Sums plus value[e] times what `near` has from index[e] on, for e from first to last."""
    eights, rows, maps, _ = map(len, kinds)

    def where(chunk: int) -> int:
        row, column = divmod(chunk, eights)
        number, row = divmod(row, rows)
        number = min(number, maps - 1)  # behind the last: read again and not written
        return (number * (rows + 2) + row) * (_HALF * eights + 1) + _HALF * column

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        scalar = kinds[1].dtype
        wide, half, size = wide_type(scalar), vector(scalar, _HALF), scalar.bitwidth // 8
        base = at(context, builder, kinds[1], args[1], ir.IntType(64)(0))
        order = ir.VectorType(ir.IntType(32), COLUMNS)(list(range(COLUMNS)))

        def body(e: Any, before: Any) -> Any:
            entry = builder.load(at(context, builder, kinds[2], args[2], e))
            start = cgutils.gep(builder, base, builder.zext(entry, ir.IntType(64)))
            weight = spread(builder, builder.load(at(context, builder, kinds[3], args[3], e)))

            def here(chunk: int, kind: Any) -> Any:
                place = cgutils.gep(builder, start, ir.IntType(64)(where(chunk)))
                return read(builder, place, kind, size)

            after = []
            for r, total in enumerate(before):
                if where(2 * r + 1) == where(2 * r) + _HALF:
                    row = here(2 * r, wide)
                else:
                    row = builder.shuffle_vector(here(2 * r, half), here(2 * r + 1, half), order)
                after.append(fma(builder, weight, row, total))
            return after

        found = loop(builder, args[4], args[5], cgutils.unpack_tuple(builder, args[0]), body)
        return make_tuple(context, builder, signature, found)

    whole = types.intp
    return sums(sums, near, index, value, whole, whole, kinds), generate


@inner()
def _near(g, base, count, channels, near, to, plane, wide, block):
    """Rows of maps, `count` positions from `base` on, by channels: each row of `wide` at `to`."""
    for c in range(0, channels, 16):
        for p in range(0, count, 16):
            here = min(p, count - 16)
            row, column = here // wide, here % wide
            place = c * plane + to + row * (wide + 1) + column
            if wide % 16 == 0:
                turned(g, (base + here) * channels + c, channels, near, place, plane)
            else:
                turned(g, (base + here) * channels + c, channels, block, 0, 16)
                after = place + 8 if column + 8 < wide else place - column + wide + 1
                for k in range(16):
                    for v in range(8):
                        near[place + k * plane + v] = block[k * 16 + v]
                    for v in range(8):
                        near[after + k * plane + v] = block[k * 16 + 8 + v]


@outer
def inputs_kernel(lo, hi, g, start, index, value, out, images, height, made, block, plane, kinds):
    """Gradients `out` of the inputs from those of `made` outputs, g; pieces lo to hi.

    A piece is one tile and one block of channels.
    """
    eights, rows, maps, registers = kinds
    wide, width, channels = 8 * len(eights), len(registers), start.size - 1
    count, strips = -(-channels // block), -(-height // len(rows))
    near, turn = np.empty(made * plane, g.dtype), np.empty(256, g.dtype)
    row = np.empty(block * width * 16, g.dtype)
    one, none, held = g.dtype.type(1), g.dtype.type(0), -1
    for piece in range(lo, hi):
        tile, first = piece // count, piece % count * block
        image, top = tile // strips * len(maps), tile % strips * len(rows)
        number = min(len(maps), images - image)
        begin = (image * height + top) * wide
        if tile != held:
            held = tile
            near[:] = 0
            above, below = max(0, top - 1), min(height, top + len(rows) + 1)
            for m in range(number):
                to = (m * (len(rows) + 2) + above - top + 1) * (wide + 1) + 1
                base = ((image + m) * height + above) * wide
                _near(g, base, (below - above) * wide, made, near, to, plane, wide, turn)
        some = min(block, channels - first)
        for c in range(first, first + some):
            sums = mapped(
                zeros(value, registers), near, index, value, start[c], start[c + 1], kinds
            )
            spill(sums, one, none, row, (c - first) * width * 16)
        end = begin + number * min(len(rows), height - top) * wide
        to_rows(row, out, end, channels, begin, first, some, width, width)


def inputs_back(grad: Tensor, tile: Tile, lists: Lists, weight: Tensor) -> Tensor:
    """Gradient [..., H, W, C] of the inputs from that of the outputs, [..., H, W, C'].

    `lists` are those of the tile's places.
    """
    made, channels = weight.shape[:2]
    out = new(grad, (*grad.shape[:-1], channels))
    images = grad.shape[:-3].numel()
    tiles = -(-images // tile.maps) * -(-tile.height // tile.rows)
    pieces = tiles * -(-channels // _BLOCK)
    cuts = cut(pieces, lists.index.size * tiles * COLUMNS, 1)
    value = flat(weight).take(lists.place)
    args = (flat(grad), lists.start, lists.index, value, flat(out), images, tile.height, made,
            _BLOCK, tile.plane)  # fmt: skip
    run(inputs_kernel, cuts, args, counts=tile.counts)
    return out
