"""Spikes as bits, and weights as lists.

Sixteen columns of one channel and one step are the bits of one mask. Columns are tokens or pixels
of all samples in a row; a tile is as many masks as registers hold sums, steps x groups of 16
columns, which lie together. Planes are the binary digits of whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic
from torch import Tensor
from torch.utils._pytree import tree_map_only

from spikeformer_lt.layers.kernels.jit import Array, at, cut, flat, get, inner, new, outer, run
from spikeformer_lt.layers.kernels.simd import read, write

COLUMNS = 16  # of a mask
MASK = ir.IntType(16)
FIRED = ir.VectorType(ir.IntType(1), COLUMNS)
_MOST_STEPS = 16


class Row(types.Type):  # type: ignore[misc]
    """Sixteen floats: one or more registers."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"row({dtype} x {COLUMNS})")


@register_default(Row)
class _RowModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, wide_type(kind.dtype))


def wide_type(dtype: Any) -> Any:
    scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(scalar, COLUMNS)


@intrinsic
def digits(_context, x, index, masks, place, planes):
    """Write the masks of the binary digits of 16 whole numbers, one a plane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        here = at(context, builder, kind, args[0], args[1])
        row = read(builder, here, wide_type(kind.dtype), kind.dtype.bitwidth // 8)
        whole = builder.fptoui(row, ir.VectorType(ir.IntType(32), COLUMNS))
        for p in range(len(signature.args[4])):
            digit = builder.and_(whole, whole.type([1 << p] * COLUMNS))
            mask = builder.bitcast(builder.icmp_unsigned("!=", digit, whole.type(None)), MASK)
            spot = builder.add(args[3], args[3].type(p))
            write(builder, mask, at(context, builder, signature.args[2], args[2], spot), 2)
        return context.get_dummy_value()

    return types.void(x, types.intp, masks, types.intp, planes), generate


@intrinsic
def weighed(_context, masks, place, planes, out, index):
    """Write the 16 whole numbers whose digits are masks[place + 16 plane]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[3]
        wide = wide_type(kind.dtype)
        total = wide(None)
        for p in range(len(signature.args[2])):
            spot = builder.add(args[1], args[1].type(COLUMNS * p))
            mask = read(builder, at(context, builder, signature.args[0], args[0], spot), MASK, 2)
            one = wide([float(1 << p)] * COLUMNS)
            digit = builder.select(builder.bitcast(mask, FIRED), one, wide(None))
            total = builder.fadd(total, digit)
        here = at(context, builder, kind, args[3], args[4])
        write(builder, total, here, kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(masks, types.intp, planes, out, types.intp), generate


@intrinsic
def transpose(_context, a, i, step, b, j, jump):
    """Bit r of b[j + c jump] = bit c of a[i + r step], for r, c < 16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.VectorType(MASK, COLUMNS)
        rows, i, j = wide(ir.Undefined), args[1], args[4]
        for r in range(COLUMNS):
            one = builder.load(at(context, builder, signature.args[0], args[0], i))
            rows = builder.insert_element(rows, one, ir.IntType(32)(r))
            i = builder.add(i, args[2])
        for c in range(COLUMNS):
            chosen = builder.and_(rows, wide([1 << c] * COLUMNS))
            mask = builder.bitcast(builder.icmp_unsigned("!=", chosen, wide(None)), MASK)
            write(builder, mask, at(context, builder, signature.args[3], args[3], j), 2)
            j = builder.add(j, args[5])
        return context.get_dummy_value()

    place = types.intp
    return types.void(a, place, place, b, place, place), generate


@inner()
def _digit(x, i, pitch, count, p):
    mask = 0
    for c in range(count):
        mask |= (np.int64(x[i + c * pitch]) >> p & 1) << c
    return np.uint16(mask)


@outer
def pack_kernel(lo, hi, x, bits, n, channels, kinds):
    """Groups lo to hi of 16 columns of the bits of rows x [steps, n, channels] of whole numbers."""
    steps, groups, planes = kinds
    width, deep = len(steps) * len(groups), len(planes)
    near = np.zeros(16 * deep, np.uint16)
    for group in range(lo, hi):
        tile, g = group // len(groups), group % len(groups)
        count = max(0, min(16, n - group * 16))
        near[:] = 0
        for s in range(len(steps)):
            row = (s * n + group * 16) * channels
            spot = tile * deep * channels * width + s * len(groups) + g
            for c in range(0, channels - 15, 16):
                for i in range(count):
                    digits(x, row + i * channels + c, near, i * deep, planes)
                for p in range(deep):
                    transpose(near, p, deep, bits, spot + (p * channels + c) * width, width)
            for c in range(channels - channels % 16, channels):
                for p in range(deep):
                    bits[spot + (p * channels + c) * width] = _digit(x, row + c, channels, count, p)


@outer
def unpack_kernel(lo, hi, bits, x, n, channels, kinds):
    """Rows x [steps, n, channels] of the groups lo to hi of 16 columns."""
    steps, groups, planes = kinds
    width, deep = len(steps) * len(groups), len(planes)
    near = np.empty(16 * deep, np.uint16)
    for group in range(lo, hi):
        tile, g = group // len(groups), group % len(groups)
        count = min(16, n - group * 16)
        for s in range(len(steps)):
            row = (s * n + group * 16) * channels
            spot = tile * deep * channels * width + s * len(groups) + g
            for c in range(0, channels - 15, 16):
                for p in range(deep):
                    transpose(bits, spot + (p * channels + c) * width, width, near, p * 16, 1)
                for i in range(count):
                    weighed(near, i, planes, x, row + i * channels + c)
            for c in range(channels - channels % 16, channels):
                for i in range(count):
                    total = np.int64(0)
                    for p in range(deep):
                        mask = np.int64(bits[spot + (p * channels + c) * width])
                        total += (mask >> i & 1) << p
                    x[row + i * channels + c] = total


@inner()
def _halved(x):
    """Every second bit of 32."""
    x &= 0x55555555
    x = (x | x >> 1) & 0x33333333
    x = (x | x >> 2) & 0x0F0F0F0F
    x = (x | x >> 4) & 0x00FF00FF
    return (x | x >> 8) & 0xFFFF


@outer
def pool_kernel(lo, hi, bits, out, images, channels, height, width, kinds):
    """Max-pool (3x3, stride 2, padding 1) of maps; groups lo to hi of 16 columns of out.

    A row of the pool is whole groups, or a group is whole rows.
    """
    steps, groups = kinds
    S, G = len(steps), len(groups)
    across, down = width // 2, -(-height // 2)
    run_length = min(16, across)
    total = (1 << run_length) - 1
    for group in range(lo, hi):
        to = group // G * channels * S * G + group % G
        for c in range(0, channels * S * G, G):
            out[to + c] = 0
        for part in range(16 // run_length):
            place = group * 16 + part * run_length
            x, y, image = place % across, place // across % down, place // across // down
            if image >= images:
                break
            for row in range(max(2 * y - 1, 0), min(2 * y + 2, height)):
                spot = (image * height + row) * width + 2 * x
                one, low = spot // 16, spot % 16
                a = one // G * channels * S * G + one % G
                b = (one + 1) // G * channels * S * G + (one + 1) % G if run_length == 16 else a
                z = (one - 1) // G * channels * S * G + (one - 1) % G if x > 0 else a
                more = 1 if run_length == 16 else 0
                left = 1 if x > 0 else 0
                for c in range(0, channels * S * G, G):
                    v = np.int64(get(bits, a + c)) >> low | np.int64(get(bits, b + c)) * more << 16
                    even, odd = _halved(v), _halved(v >> 1)
                    found = even | odd | odd << 1 | (np.int64(get(bits, z + c)) >> 15) * left
                    out[to + c] |= np.uint16((found & total) << part * run_length)


@dataclass(frozen=True)
class RowLists:
    """The kept weights of each output: ``gain * value[e]`` of input ``index[e]``.

    Entries of output o are those from ``pointers[o]`` to ``pointers[o + 1]``, inputs ascending.
    Weights of one size for each output have the values -1 and 1.
    """

    pointers: Array  # int64 [outputs + 1]
    index: Array  # uint32 [entries]
    value: Array  # [entries]
    gain: Array  # [outputs]
    columns: int  # inputs

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Lists of the weights [out, in], or [out, in, h, w] by tap and then input, not zero."""
        if weight.dim() > 2:
            weight = weight.permute(0, 2, 3, 1).flatten(1)
        weight = weight.detach()
        kept = weight != 0
        pointers = np.zeros(len(weight) + 1, np.int64)
        np.cumsum(kept.sum(1).numpy(), out=pointers[1:])
        value, gain = weight[kept], weight.new_ones(len(weight))
        size = weight.abs().amax(1) if weight.numel() else gain
        if bool(((weight.abs() == size[:, None]) | ~kept).all()):
            value, gain = value.sign(), size
        index = kept.nonzero()[:, 1].numpy().astype(np.uint32)
        return cls(pointers, index, value.numpy(), gain.numpy(), weight.shape[1])

    @property
    def density(self) -> float:
        """Fraction of the weights kept."""
        return self.index.size / max(1, self.gain.size * self.columns)


def group_count(steps: int) -> int:
    """Groups of 16 columns in a tile of so many steps; 0 if there are too many steps."""
    return 0 if steps > _MOST_STEPS else 1 << (_MOST_STEPS // steps).bit_length() - 1


@dataclass(frozen=True, eq=False)
class Bits:
    """Whole numbers [S, ..., C] as bits; what only tensors can do makes a tensor of them.

    ``words[tile, plane, channel, step, group]`` are masks of 16 columns, which are the middle axes
    in order; those behind the last column are undefined.
    """

    words: Array  # uint16, flat
    shape: torch.Size
    groups: int
    most: int  # no number is larger
    dtype: torch.dtype

    @classmethod
    def empty(
        cls, shape: Sequence[int], dtype: torch.dtype, most: int = 1, groups: int = 0
    ) -> Self:
        """Undefined numbers."""
        groups = groups or group_count(shape[0])
        tiles = -(-math.prod(shape[1:-1]) // (COLUMNS * groups))
        size = tiles * most.bit_length() * shape[-1] * shape[0] * groups
        memory = np.empty(size + 32, np.uint16)
        skip = -memory.ctypes.data % 64 // 2
        return cls(memory[skip : skip + size], torch.Size(shape), groups, most, dtype)

    @classmethod
    def of(cls, x: Tensor, most: int = 1, groups: int = 0) -> Self:
        """The bits of whole numbers from 0 to `most`."""
        made = cls.empty(x.shape, x.dtype, most, groups)
        args = (flat(x.contiguous()), made.words, made.columns, x.shape[-1])
        cuts = cut(made.tiles * made.groups, x.numel(), 1)
        run(pack_kernel, cuts, args, counts=(*made.counts, made.planes))
        return made

    def dense(self) -> Tensor:
        """The numbers."""
        x = new(torch.empty(0, dtype=self.dtype), self.shape)
        args = (self.words, flat(x), self.columns, self.shape[-1])
        cuts = cut(-(-self.columns // 16), x.numel(), 1)
        run(unpack_kernel, cuts, args, counts=(*self.counts, self.planes))
        return x

    @property
    def columns(self) -> int:
        """Product of the middle axes."""
        return math.prod(self.shape[1:-1])

    @property
    def tiles(self) -> int:
        """Tiles of columns."""
        return -(-self.columns // (COLUMNS * self.groups))

    @property
    def planes(self) -> int:
        """Binary digits of the largest number."""
        return self.most.bit_length()

    @property
    def counts(self) -> tuple[int, int]:
        """Steps and groups of a tile."""
        return self.shape[0], self.groups

    @property
    def digits(self) -> Array:
        """Words [tile, plane, channel, step, group]."""
        lines = self.tiles, self.planes, self.shape[-1], self.shape[0], self.groups
        return self.words.reshape(lines)

    def flatten(self, start: int = 0, end: int = -1) -> Any:
        """Join some axes."""
        if not 0 < start <= end < len(self.shape) - 1:
            return self.dense().flatten(start, end)
        joined = math.prod(self.shape[start : end + 1])
        shape = *self.shape[:start], joined, *self.shape[end + 1 :]
        return replace(self, shape=torch.Size(shape))

    def tiled(self, groups: int, steps: int = 0) -> Bits:
        """The same numbers in smaller tiles, and one step repeated."""
        if groups == self.groups and steps in (0, self.shape[0]):
            return self
        S, C = self.shape[0], self.shape[-1]
        parts = self.words.reshape(self.tiles, self.planes, C, S, -1, groups)
        order = np.moveaxis(parts, 4, 1)
        if steps:
            order = np.broadcast_to(order, (*order.shape[:4], steps, groups))
        shape = (steps or S, *self.shape[1:])
        made = Bits.empty(shape, self.dtype, self.most, groups)
        made.words[:] = order.reshape(-1)[: made.words.size]
        return made

    def __add__(self, other: Any) -> Any:
        fits = isinstance(other, Bits) and other.shape[1:] == self.shape[1:]
        if not fits or 1 not in (self.most, other.most):
            return self.dense() + other
        if self.shape[0] != other.shape[0]:
            few, many = sorted((self, other), key=lambda x: x.shape[0])
            return few.tiled(many.groups, many.shape[0]) + many
        if self.most == 1:
            self, other = other, self
        made = Bits.empty(self.shape, self.dtype, self.most + 1, self.groups)
        carry, out = other.digits[:, 0], made.digits
        for p in range(self.planes):
            digit = self.digits[:, p]
            np.bitwise_xor(digit, carry, out=out[:, p])
            carry = digit & carry
        if made.planes > self.planes:
            out[:, -1] = carry
        return made

    __radd__ = __add__

    def __rsub__(self, one: Any) -> Any:
        if one == 1 and self.most == 1:
            return replace(self, words=~self.words)
        return one - self.dense()

    def __mul__(self, other: Any) -> Any:
        same = isinstance(other, Bits) and other.shape == self.shape and other.groups == self.groups
        if not same or self.most * other.most != 1:
            return self.dense() * other
        return replace(self, words=self.words & other.words)

    def __sub__(self, other: Any) -> Any:
        return self.dense() - other

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dense(), name)

    def __getitem__(self, place: Any) -> Any:
        return self.dense()[place]

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of tensors."""
        args, named = tree_map_only(cls, cls.dense, (args, kwargs or {}))
        return function(*args, **named)


def pool(x: Bits) -> Bits | None:
    """Max-pool (3x3, stride 2, padding 1) of spikes [S, B, H, W, C]; None of odd sizes."""
    S, images, height, width, channels = x.shape
    if x.most != 1 or (width not in (4, 8, 16) and width % 32):
        return None
    shape = (S, images, -(-height // 2), width // 2, channels)
    made = Bits.empty(shape, x.dtype, 1, x.groups)
    args = (x.words, made.words, images, channels, height, width)
    cuts = cut(made.tiles * made.groups, made.words.size * 64, 1)
    run(pool_kernel, cuts, args, counts=x.counts)
    return made
