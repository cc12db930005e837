"""Spikes as bits: how they are packed, and what makes bits of bits: sums, pools and neurons.

Sixteen columns of one channel and one step are the bits of one mask. Columns are tokens or pixels
of all samples in a row; a tile is as many masks as registers hold sums of, steps x groups of 16
columns, which lie together. Planes are the binary digits of whole numbers. Of neurons the steps are
in one tile: voltages stay in registers, no current is written, and spikes leave as bits.

AVX-512 adds under masks, and registers hold the sums of 16; AVX2 spreads masks over words, of four.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self, TypeVar

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.utils._pytree import tree_map_only

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels.dispatch import ReplayError
from spikeformer_lt.layers.kernels.jit import (
    Array,
    at,
    cut,
    flat,
    get,
    inner,
    new,
    outer,
    put0,
    repeat,
    run,
)
from spikeformer_lt.layers.kernels.simd import BYTES, Lanes, call, fma, read, splat, vector, write

Made = TypeVar("Made")
COLUMNS = 16  # of a mask
MASK = ir.IntType(16)
FIRED = ir.VectorType(ir.IntType(1), COLUMNS)
MASKS = 16 if BYTES == 64 else 4  # of a tile, unless it has more steps
_MOST_STEPS = 16


def wide_type(dtype: Any) -> Any:
    """LLVM's type of a row, 16 floats: one or more registers."""
    return vector(dtype, COLUMNS)


@intrinsic
def packed(_context, x, i, lead, bits, o, apart, pitch, planes):
    """Masks bits[o + c apart + p pitch] of 16 rows of x and its columns i + c, c < 16, in plane p.

    Returns -1 where a value is no whole number that the planes hold, else 0.
    """
    count = len(planes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        wide, width = wide_type(kinds[0].dtype), kinds[0].dtype.bitwidth // 8
        whole, words = ir.IntType(64), ir.VectorType(ir.IntType(32), COLUMNS)
        found, wrong = [words(None)] * count, words(None)
        for r in range(COLUMNS):
            here = builder.add(args[1], builder.mul(args[2], whole(r)))
            value = read(builder, at(context, builder, kinds[0], args[0], here), wide, width)
            if count == 1:
                fired = builder.fcmp_unordered("!=", value, wide(None))
                other = builder.fcmp_unordered("!=", value, wide([1.0] * COLUMNS))
                bad = builder.and_(fired, other)
                own = builder.select(fired, words([1 << r] * COLUMNS), words(None))
                found[0] = builder.or_(found[0], own)
            else:
                low = builder.fcmp_ordered(">=", value, wide(None))
                high = builder.fcmp_ordered("<", value, wide([float(1 << count)] * COLUMNS))
                inside = builder.and_(low, high)  # outside, the conversion is undefined
                number = builder.fptosi(builder.select(inside, value, wide(None)), words)
                exact = builder.fcmp_ordered("==", builder.sitofp(number, wide), value)
                bad = builder.not_(builder.and_(inside, exact))
                for p in range(count):
                    digit = builder.lshr(number, words([p] * COLUMNS))
                    own = builder.and_(digit, words([1] * COLUMNS))
                    found[p] = builder.or_(found[p], builder.shl(own, words([r] * COLUMNS)))
            wrong = builder.or_(wrong, builder.sext(bad, words))
        for p, masks in enumerate(found):
            short = builder.trunc(masks, ir.VectorType(MASK, COLUMNS))
            for c in range(COLUMNS):
                place = builder.add(args[4], builder.mul(args[5], whole(c)))
                place = builder.add(place, builder.mul(args[6], whole(p)))
                one = builder.extract_element(short, ir.IntType(32)(c))
                builder.store(one, at(context, builder, kinds[3], args[3], place))
        return call(builder, f"llvm.vector.reduce.or.v{COLUMNS}i32", words.element, [wrong])

    place = types.intp
    return types.int32(x, place, place, bits, place, place, place, planes), generate


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


def spread(builder: Any, value: Any) -> Any:
    """A row of one value."""
    return splat(builder, value, COLUMNS)


def make_tuple(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
    """The tuple that an intrinsic returns."""
    return context.make_tuple(builder, signature.return_type, values)


@intrinsic
def fire(_context, sums, gain, shift, k, soft, out, place, steps, groups):
    """Write the spikes, from rest, of LIF neurons on the currents ``gain sums + shift``.

    One step of sums stands for all. `k`: rest, share of the voltage that stays, threshold, and
    what the voltage becomes at a spike, or with `soft` what is added to it.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = cgutils.unpack_tuple(builder, args[0])
        kind, count = signature.args[3], len(signature.args[8])
        rest, stay, threshold, reset = (
            spread(builder, builder.load(at(context, builder, kind, args[3], args[6].type(i))))
            for i in range(4)
        )
        by, plus = spread(builder, args[1]), spread(builder, args[2])
        target = at(context, builder, signature.args[5], args[5], args[6])
        rows = [fma(builder, row, by, plus) for row in rows]
        for g in range(count):
            v = rest
            for t in range(len(signature.args[7])):
                v = fma(builder, v, stay, rows[(t * count + g) % len(rows)])
                fired = builder.fcmp_ordered(">=", v, threshold)
                mask = builder.bitcast(fired, MASK)
                write(builder, mask, cgutils.gep(builder, target, args[6].type(t * count + g)), 2)
                low = reset if signature.args[4] == types.none else builder.fadd(v, reset)
                v = builder.select(fired, low, v)
        return context.get_dummy_value()

    place = types.intp
    return types.void(sums, gain, shift, k, soft, out, place, steps, groups), generate


@intrinsic
def taken(_context, x, index, pitch, steps):
    """The rows at index, index + pitch, ..., one a step."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, index, rows = signature.args[0], args[1], []
        for _ in range(len(signature.return_type)):
            here = at(context, builder, kind, args[0], index)
            rows.append(read(builder, here, wide_type(kind.dtype), kind.dtype.bitwidth // 8))
            index = builder.add(index, args[2])
        return make_tuple(context, builder, signature, rows)

    result = types.UniTuple(Lanes(x.dtype, COLUMNS), len(steps))
    return result(x, types.intp, types.intp, steps), generate


@intrinsic
def moved(_context, high, low, by, valid):
    """The bits of low and then high, moved down, where valid."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        return builder.and_(call(builder, f"llvm.fshr.i{kind.width}", kind, args[:3]), args[3])

    return high(high, high, high, high), generate


@inner()
def window(words, tile, plane, planes, width, per, total, taps, moves, rest, valid, near, o):
    """Copies of a tile's bits, one a tap, as the taps of a convolution see them."""
    for tap in range(taps):
        for u in range(per):
            here = tile * per + u
            ok = valid[tap * total + here]
            j = min(max(here + moves[tap], 0), total - 1)
            i = min(max(here + moves[tap] + 1, 0), total - 1)
            a = ((j // per * planes + plane) * width) * per + j % per
            b = ((i // per * planes + plane) * width) * per + i % per
            to = o + tap * width * per + u
            by = rest[tap]
            if per == 1:  # a loop of its own, for vector instructions
                for c in range(width):
                    put0(near, to + c, moved(get(words, b + c), get(words, a + c), by, ok))
            else:
                for c in range(0, width * per, per):
                    put0(near, to + c, moved(get(words, b + c), get(words, a + c), by, ok))


@outer
def pack_kernel(lo, hi, x, bits, wrong, n, channels, kinds):
    """Groups lo to hi of 16 columns of the bits of rows x [steps, n, channels].

    wrong[group] is not 0 in the first group with a value that is no whole number of the planes.
    """
    steps, groups, planes = kinds
    width, deep, rest = len(steps) * len(groups), len(planes), channels % 16
    plane = channels * width
    edge, corner = np.zeros(16 * channels, x.dtype), np.zeros(256, x.dtype)
    near = np.empty(16 * deep, np.uint16)
    for group in range(lo, hi):
        tile, g = group // len(groups), group % len(groups)
        count = max(0, min(16, n - group * 16))
        for s in range(len(steps)):
            rows, i = x, (s * n + group * 16) * channels
            if count < 16:
                edge[:] = 0
                edge[: count * channels] = x[i : i + count * channels]
                rows, i = edge, 0
            o = tile * deep * plane + s * len(groups) + g
            for c in range(0, channels - rest, 16):
                bad = packed(rows, i + c, channels, bits, o + c * width, width, plane, planes)
                wrong[group] |= bad
            if rest:
                for r in range(16):
                    first = i + (r + 1) * channels - rest
                    corner[r * 16 : r * 16 + rest] = rows[first : first + rest]
                wrong[group] |= packed(corner, 0, 16, near, 0, 1, 16, planes)
                for p in range(deep):
                    for c in range(rest):
                        bits[o + p * plane + (channels - rest + c) * width] = near[p * 16 + c]
        if wrong[group]:
            return


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


@outer
def neurons_kernel(lo, hi, x, gain, shift, k, soft, bits, n, channels, kinds):
    """Bits of LIF neurons on the currents x [given, n, channels], groups lo to hi of 16 columns."""
    given, steps, groups, one = kinds
    width, T = len(steps) * len(groups), len(steps)
    near = np.zeros(16 * T, np.uint16)
    for group in range(lo, hi):
        tile, g = group // len(groups), group % len(groups)
        count = max(0, min(16, n - group * 16))
        spot = tile * channels * width + g
        for c in range(0, channels, 16):
            for i in range(count):
                place = (group * 16 + i) * channels + c
                now = taken(x, place, n * channels, given)
                fire(now, gain, shift, k, soft, near, i * T, steps, one)
            for t in range(T):
                transpose(near, t, T, bits, spot + c * width + t * len(groups), width)


def group_count(steps: int) -> int:
    """Groups of 16 columns in a tile of so many steps; 0 if there are too many steps."""
    return 0 if steps > _MOST_STEPS else 1 << max(1, (MASKS // steps).bit_length()) - 1


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
    def of(cls, x: Tensor, most: int = 1, groups: int = 0) -> Self | None:
        """The bits of whole numbers from 0 to `most`; None if a value is none of the planes."""
        made = cls.empty(x.shape, x.dtype, most, groups)
        wrong = np.zeros(made.tiles * made.groups, np.int32)
        args = (flat(x.contiguous()), made.words, wrong, made.columns, x.shape[-1])
        run(pack_kernel, cut(wrong.size, x.numel(), 1), args, counts=(*made.counts, made.planes))
        return None if wrong.any() else repeat(checked, made, wrong)

    def dense(self) -> Tensor:
        """The numbers."""
        x = new(torch.empty(0, dtype=self.dtype, device="cpu"), self.shape)
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
        return self.words.reshape(self.tiles, self.planes, self.shape[-1], *self.counts)

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
        repeat(lambda: np.copyto(made.words, order.reshape(-1)[: made.words.size]))
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
        repeat(_add, self.digits, other.digits[:, 0], made.digits)
        return made

    __radd__ = __add__

    def __rsub__(self, one: Any) -> Any:
        if one == 1 and self.most == 1:
            return replace(self, words=repeat(np.invert, self.words, np.empty_like(self.words)))
        return one - self.dense()

    def __mul__(self, other: Any) -> Any:
        same = isinstance(other, Bits) and other.shape == self.shape and other.groups == self.groups
        if not same or self.most * other.most != 1:
            return self.dense() * other
        words = repeat(np.bitwise_and, self.words, other.words, np.empty_like(self.words))
        return replace(self, words=words)

    def __sub__(self, other: Any) -> Any:
        return self.dense() - other

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dense(), name)

    def __getitem__(self, place: Any) -> Any:
        return self.dense()[place]

    def __len__(self) -> int:
        return self.shape[0]

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of tensors."""
        args, named = tree_map_only(cls, cls.dense, (args, kwargs or {}))
        return function(*args, **named)


def _densely(name: str) -> Callable[..., Any]:
    def operator(self: Bits, *others: Any) -> Any:
        others = tuple(x.dense() if isinstance(x, Bits) else x for x in others)
        return getattr(self.dense(), name)(*others)

    return operator


_OPERATORS = (
    *("rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "rpow", "matmul", "rmatmul"),
    *("eq", "ne", "lt", "le", "gt", "ge", "neg", "abs", "bool", "float", "int", "iter"),
)
for _name in _OPERATORS:  # what a tensor does, a tensor of the numbers does; == gives a tensor
    setattr(Bits, f"__{_name}__", _densely(f"__{_name}__"))
Bits.__hash__ = object.__hash__  # type: ignore[method-assign]


def checked(made: Made, wrong: Array) -> Made:
    """What a kernel made, unless it found `wrong` values in a replay; then a ReplayError."""
    if wrong.any():
        wrong[:] = 0
        raise ReplayError("these values are no whole numbers that the layer reads")
    return made


def _add(digits: Array, carry: Array, out: Array) -> None:
    """Sums of numbers and bits, all by their digits."""
    planes = digits.shape[1]
    for p in range(planes):
        digit = digits[:, p]
        np.bitwise_xor(digit, carry, out=out[:, p])
        carry = digit & carry
    if out.shape[1] > planes:
        out[:, -1] = carry


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


@dataclass(frozen=True)
class Neurons:
    """Constants of neurons that start from rest; of stateless ones nothing stays of a voltage."""

    rest: float
    stay: float
    threshold: float
    reset: float
    soft: bool
    scale: float  # of a current
    shift: float

    @classmethod
    @cache
    def of(cls, p: NeuronConfig) -> Self:
        """Those of LIF neurons."""
        soft = p.v_reset is None
        reset = -p.v_threshold if p.v_reset is None else p.v_reset
        scale = 1.0 / p.tau if p.decay_input else 1.0
        return cls(p.v_rest, 1.0 - 1.0 / p.tau, p.v_threshold, reset, soft, scale, p.v_rest / p.tau)

    @classmethod
    @cache
    def stateless(cls, threshold: float) -> Self:
        """Spikes where a current reaches the threshold."""
        return cls(0.0, 0.0, threshold, 0.0, False, 1.0, 0.0)

    def constants(self, dtype: Any) -> Array:
        """The array `k` of :func:`fire`."""
        return np.array([self.rest, self.stay, self.threshold, self.reset], dtype)


def fires(current: Tensor, T: int, neurons: Neurons) -> Bits:
    """Spikes [T, ..., C] of neurons, from rest, on a current [T|1, ..., C]; 16 divides C."""
    S, C = current.shape[0], current.shape[-1]
    T = S if neurons.stay == 0.0 else T
    made = Bits.empty((T, *current.shape[1:]), current.dtype)
    x = flat(current.contiguous())
    k, scalar = neurons.constants(x.dtype), x.dtype.type
    constants = scalar(neurons.scale), scalar(neurons.shift), k, neurons.soft or None
    args = (x, *constants, made.words, made.columns, C)
    cuts = cut(made.tiles * made.groups, current.numel() * T, 1)
    run(neurons_kernel, cuts, args, counts=(S, *made.counts, 1))
    return made
