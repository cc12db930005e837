"""Products of spikes with lists of the weights that are kept, and the neurons behind them.

Adding a weight to the sums of the columns that fired is one masked addition of 16 columns. A list
has the places and values of the weights that one output kept; of binary weights the values are
signs, and one gain follows. The steps of a neuron are in one tile: voltages stay in registers, no
current is written, and spikes leave as bits.

AVX-512 has such additions; elsewhere LLVM replaces them, and the dense kernels are faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Self

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels.bits import (
    COLUMNS,
    FIRED,
    MASK,
    Bits,
    Row,
    RowLists,
    transpose,
    wide_type,
)
from spikeformer_lt.layers.kernels.jit import (
    Array,
    at,
    cut,
    flat,
    get,
    get_gx,
    inner,
    new,
    outer,
    put0,
    run,
)
from spikeformer_lt.layers.kernels.simd import read, splat, write

_BLOCK = 64  # outputs of a piece of work
_NO_TAPS: tuple[Any, ...] = (None, None, None)
_FEW = 4  # channels for each one with a spike, from which empty masks are looked for


def _spread(builder: Any, value: Any) -> Any:
    return splat(builder, value, COLUMNS)


def _tuple(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
    return context.make_tuple(builder, signature.return_type, values)


@intrinsic
def zeros(_context, values, registers):
    """As many rows of zeros as `registers` has members."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = wide_type(signature.args[0].dtype)
        return _tuple(context, builder, signature, [wide(None)] * len(signature.return_type))

    return types.UniTuple(Row(values.dtype), len(registers))(values, registers), generate


@intrinsic
def doubled(_context, sums):
    """All sums times two."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = cgutils.unpack_tuple(builder, args[0])
        return _tuple(context, builder, signature, [builder.fadd(x, x) for x in rows])

    return sums(sums), generate


@intrinsic
def listed(_context, sums, bits, base, index, value, first, last, rare):
    """Sums plus value[e] where bits[base + index[e] R + r] are set, for e from first to last.

    With `rare`, entries whose R masks are all empty are looked for, and skipped.
    """
    width = len(sums)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = cgutils.unpack_tuple(builder, args[0])
        masks = at(context, builder, signature.args[1], args[1], args[2])
        places = at(context, builder, signature.args[3], args[3], args[2].type(0))
        values = at(context, builder, signature.args[4], args[4], args[2].type(0))
        entry = builder.block
        head, body, add, end, done = (
            builder.append_basic_block(f"listed.{name}")
            for name in ("head", "body", "add", "end", "done")
        )
        builder.branch(head)
        builder.position_at_end(head)
        e = builder.phi(args[5].type)
        before = [builder.phi(x.type) for x in start]
        builder.cbranch(builder.icmp_signed("<", e, args[6]), body, done)
        builder.position_at_end(body)
        place = builder.load(cgutils.gep(builder, places, e))
        offset = builder.mul(builder.zext(place, e.type), e.type(width))
        here = cgutils.gep(builder, masks, offset)
        if signature.args[7] == types.none:
            builder.branch(add)
        else:
            whole = read(builder, here, ir.IntType(COLUMNS * width), 2)
            builder.cbranch(builder.icmp_unsigned("==", whole, whole.type(0)), end, add)
        builder.position_at_end(add)
        weight = _spread(builder, builder.load(cgutils.gep(builder, values, e)))
        after = []
        for r, total in enumerate(before):
            mask = read(builder, cgutils.gep(builder, here, e.type(r)), MASK, 2)
            chosen = builder.bitcast(mask, FIRED)
            after.append(builder.select(chosen, builder.fadd(total, weight), total))
        builder.branch(end)
        builder.position_at_end(end)
        found = [builder.phi(x.type) for x in start]
        for phi, old, added in zip(found, before, after, strict=True):
            phi.add_incoming(added, add)
            if signature.args[7] != types.none:
                phi.add_incoming(old, body)
        following = builder.add(e, e.type(1))
        builder.branch(head)
        e.add_incoming(args[5], entry)
        e.add_incoming(following, end)
        for phi, x, y in zip(before, start, found, strict=True):
            phi.add_incoming(x, entry)
            phi.add_incoming(y, end)
        builder.position_at_end(done)
        return _tuple(context, builder, signature, before)

    whole = types.intp
    return sums(sums, bits, whole, index, value, whole, whole, rare), generate


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = "f32" if a.type.element == ir.FloatType() else "f64"
    signature = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fma.v{COLUMNS}{kind}"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [a, b, c])


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
            _spread(builder, builder.load(at(context, builder, kind, args[3], args[6].type(i))))
            for i in range(4)
        )
        by, plus = _spread(builder, args[1]), _spread(builder, args[2])
        target = at(context, builder, signature.args[5], args[5], args[6])
        rows = [_fma(builder, row, by, plus) for row in rows]
        for g in range(count):
            v = rest
            for t in range(len(signature.args[7])):
                v = _fma(builder, v, stay, rows[(t * count + g) % len(rows)])
                fired = builder.fcmp_ordered(">=", v, threshold)
                mask = builder.bitcast(fired, MASK)
                write(builder, mask, cgutils.gep(builder, target, args[6].type(t * count + g)), 2)
                low = reset if signature.args[4] == types.none else builder.fadd(v, reset)
                v = builder.select(fired, low, v)
        return context.get_dummy_value()

    place = types.intp
    return types.void(sums, gain, shift, k, soft, out, place, steps, groups), generate


@intrinsic
def spill(_context, sums, gain, shift, out, place):
    """Write ``gain sums + shift`` to 16 R places."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        by, plus = _spread(builder, args[1]), _spread(builder, args[2])
        kind, target = signature.args[3], at(context, builder, signature.args[3], args[3], args[4])
        for r, row in enumerate(cgutils.unpack_tuple(builder, args[0])):
            here = cgutils.gep(builder, target, args[4].type(r * COLUMNS))
            write(builder, _fma(builder, row, by, plus), here, kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(sums, gain, shift, out, types.intp), generate


@intrinsic
def taken(_context, x, index, pitch, steps):
    """The rows at index, index + pitch, ..., one a step."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, index, rows = signature.args[0], args[1], []
        for _ in range(len(signature.return_type)):
            here = at(context, builder, kind, args[0], index)
            rows.append(read(builder, here, wide_type(kind.dtype), kind.dtype.bitwidth // 8))
            index = builder.add(index, args[2])
        return _tuple(context, builder, signature, rows)

    result = types.UniTuple(Row(x.dtype), len(steps))
    return result(x, types.intp, types.intp, steps), generate


@intrinsic
def moved(_context, high, low, by, valid):
    """The bits of low and then high, moved down, where valid."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        name = f"llvm.fshr.i{kind.width}"
        known = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), name
        )
        return builder.and_(builder.call(known, args[:3]), args[3])

    return high(high, high, high, high), generate


@inner()
def _sums(registers, bits, base, plane, planes, index, value, first, last, counts):
    """Sums of one list over all planes; base is that of the lowest, and plane their distance."""
    sums = zeros(value, registers)
    for p in range(planes - 1, -1, -1):
        sums = doubled(sums)
        if counts[p] > 1:
            sums = listed(sums, bits, base + p * plane, index, value, first, last, None)
        elif counts[p] == 1:
            sums = listed(sums, bits, base + p * plane, index, value, first, last, True)
    return sums


@inner()
def _count(bits, base, plane, planes, width, counts):
    """Say of each plane of a tile whether no channel (0), few (1) or many (2) have a spike."""
    for p in range(planes):
        busy = 0
        for c in range(0, plane, width):
            some = bits[base] & 0
            for r in range(width):
                some |= get(bits, base + p * plane + c + r)
            busy += some != 0
        counts[p] = 0 if busy == 0 else 1 if busy * width * _FEW < plane else 2


@inner()
def _window(words, tile, plane, planes, width, per, total, taps, moves, rest, valid, near, o):
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
            if per == 1:
                for c in range(width):
                    put0(near, to + c, moved(get(words, b + c), get(words, a + c), by, ok))
            else:
                for c in range(0, width * per, per):
                    put0(near, to + c, moved(get(words, b + c), get(words, a + c), by, ok))


@outer
def product_kernel(
    lo, hi, words, planes, channels, pointers, index, value, gain, shift, moves, rest, valid, k,
    soft, out, n, block, kinds,
):  # fmt: skip
    """Spikes, or without `k` currents, of the products with the lists; pieces lo to hi.

    A piece is one tile and one block of outputs. A convolution has the `moves` of its taps, by
    words and the `rest`, and where they are valid.
    """
    steps, groups, registers = kinds
    made, width = gain.size, len(registers)
    count = -(-made // block)
    bits = words.view(np.uint16)
    plane = channels * width
    counts = np.empty(planes, np.int64)
    held = -1
    if moves is not None:
        total, per = valid.size // moves.size, len(groups) * 16 // (words.itemsize * 8)
        plane *= moves.size
        size = plane * 2 // words.itemsize
        near = np.empty(planes * size, words.dtype)
        bits = near.view(np.uint16)
    row = np.empty(width * 16 if k is None else 0, value.dtype)
    for piece in range(lo, hi):
        tile, first = piece // count, piece % count * block
        base = 0 if moves is not None else tile * planes * plane
        if tile != held:
            held = tile
            if moves is not None:
                for p in range(planes):
                    _window(
                        words, tile, p, planes, channels * (width // len(groups)), per, total,
                        moves.size, moves, rest, valid, near, p * size,
                    )  # fmt: skip
            counts[0] = 2
            if planes > 1:
                _count(bits, base, plane, planes, width, counts)
        for o in range(first, min(first + block, made)):
            sums = _sums(
                registers, bits, base, plane, planes, index, value, pointers[o], pointers[o + 1],
                counts,
            )  # fmt: skip
            if k is None:
                spill(sums, gain[o], shift[o], row, 0)
                for r in range(width):
                    s, column = r // len(groups), (tile * len(groups) + r % len(groups)) * 16
                    for c in range(min(16, n - column)):
                        out[(s * n + column + c) * made + o] = row[r * 16 + c]
            else:
                place = (tile * made + o) * len(steps) * len(groups)
                fire(sums, gain[o], shift[o], k, soft, out, place, steps, groups)


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
                fire(
                    taken(x, place, n * channels, given),
                    gain,
                    shift,
                    k,
                    soft,
                    near,
                    i * T,
                    steps,
                    one,
                )
            for t in range(T):
                transpose(near, t, T, bits, spot + c * width + t * len(groups), width)


@intrinsic
def attended(_context, sums, bits, base, table, place, pitch, jump, count, steps, groups):
    """Sums plus table[place + s jump + e pitch] where bits[base + e R + s G + g] are set.

    Entries are e < count; steps have values of their own here.
    """
    width, apart = len(sums), len(groups)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = cgutils.unpack_tuple(builder, args[0])
        masks = at(context, builder, signature.args[1], args[1], args[2])
        values = at(context, builder, signature.args[3], args[3], args[4])
        entry, body = builder.block, builder.append_basic_block("attended.body")
        done = builder.append_basic_block("attended.done")
        builder.branch(body)
        builder.position_at_end(body)
        e = builder.phi(args[7].type)
        before = [builder.phi(x.type) for x in start]
        here = cgutils.gep(builder, masks, builder.mul(e, e.type(width)))
        spot = cgutils.gep(builder, values, builder.mul(e, args[5]))
        after = []
        for r, total in enumerate(before):
            if r % apart == 0:
                step = builder.mul(args[6], e.type(r // apart))
                weight = _spread(builder, builder.load(cgutils.gep(builder, spot, step)))
            mask = read(builder, cgutils.gep(builder, here, e.type(r)), MASK, 2)
            added = builder.fadd(total, weight)
            after.append(builder.select(builder.bitcast(mask, FIRED), added, total))
        following = builder.add(e, e.type(1))
        builder.cbranch(builder.icmp_signed("<", following, args[7]), body, done)
        e.add_incoming(e.type(0), entry)
        e.add_incoming(following, body)
        for phi, x, y in zip(before, start, after, strict=True):
            phi.add_incoming(x, entry)
            phi.add_incoming(y, body)
        builder.position_at_end(done)
        return _tuple(context, builder, signature, after)

    whole = types.intp
    own = (bits, whole, table, whole, whole, whole, whole, steps, groups)
    return sums(sums, *own), generate


@intrinsic
def common(_context, a, b):
    """How many bits two words share."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        known = ir.FunctionType(kind, [kind])
        count = cgutils.get_or_insert_function(builder.module, known, f"llvm.ctpop.i{kind.width}")
        return builder.call(count, [builder.and_(*args)])

    return a(a, a), generate


@outer
def attend_kernel(lo, hi, words, out, near, heads, depth, gain, shift, k, soft, kinds):
    """Spikes of ``gain q k^T v + shift``, of heads lo to hi of all samples, `near` tiles each.

    Keys times values are counts of tokens in both; a query then adds the counts of its channels.
    """
    steps, groups, registers = kinds
    T, G = len(steps), len(groups)
    bits = words.view(np.uint16)
    per = G * 16 // (words.itemsize * 8)
    width = T * per  # words of a channel
    dim = heads * depth
    keys, values = np.empty(depth, words.dtype), np.empty(depth, words.dtype)
    counts, table = np.empty(depth, words.dtype), np.empty(T * depth * depth, k.dtype)
    for piece in range(lo, hi):
        first, head = piece // heads * near, piece % heads * depth
        for s in range(T):
            table_s = table[s * depth * depth :]
            table_s[: depth * depth] = 0
            for tile in range(first, first + near):
                for u in range(per):
                    base = (tile * 3 * dim + head) * width + s * per + u
                    for c in range(depth):
                        keys[c] = words[base + (dim + c) * width]
                        values[c] = words[base + (2 * dim + c) * width]
                    for c in range(depth):
                        for d in range(depth):
                            put0(counts, d, common(keys[c], get(values, d)))
                        for d in range(depth):
                            put0(
                                table_s,
                                c * depth + d,
                                get_gx(table_s, c * depth + d) + get(counts, d),
                            )
        for tile in range(first, first + near):
            base = (tile * 3 * dim + head) * T * G
            for d in range(depth):
                sums = attended(
                    zeros(table, registers), bits, base, table, d, depth, depth * depth, depth,
                    steps, groups,
                )  # fmt: skip
                fire(
                    sums, gain, shift, k, soft, out, (tile * dim + head + d) * T * G, steps, groups
                )


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


@lru_cache(maxsize=256)
def _taps(images: int, height: int, width: int, size: int, groups: int) -> tuple[Array, ...]:
    """Of each tap of a square kernel: words and bits to move by, and the columns with an input."""
    kind = {1: np.uint16, 2: np.uint32}.get(groups, np.uint64)
    bits = np.dtype(kind).itemsize * 8
    columns = images * height * width
    tiles = -(-columns // (16 * groups))
    place = np.arange(columns)
    x, y = place % width, place // width % height
    around = [
        (i, j)
        for i in range(-(size // 2), size // 2 + 1)
        for j in range(-(size // 2), size // 2 + 1)
    ]
    valid = np.zeros((len(around), tiles * 16 * groups), bool)
    for tap, (i, j) in enumerate(around):
        valid[tap, :columns] = (y + i >= 0) & (y + i < height) & (x + j >= 0) & (x + j < width)
    move = np.array([i * width + j for i, j in around])
    words = np.packbits(valid, axis=1, bitorder="little").view(kind).ravel()
    return move // bits, (move % bits).astype(kind), words


@dataclass(frozen=True)
class Product:
    """A linear map, or a convolution that keeps the size of its maps, of bits by lists.

    Args:
        lists: the kept weights.
        bias: [out], of the dtype of the weights.
        neurons: those that follow; None puts out the currents.
        size: side of the kernel of a convolution; 0 for a linear map.
    """

    lists: RowLists
    gain: Array
    shift: Array
    neurons: Neurons | None
    k: Array | None
    size: int = 0

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, neurons: Neurons | None) -> Self:
        """The product with the weights [out, in], or [out, in, h, h], that are not zero."""
        lists, shift = RowLists.of(weight), flat(bias.contiguous())
        gain, k, scalar = lists.gain, None, shift.dtype.type
        if neurons is not None:
            gain, shift = gain * scalar(neurons.scale), shift * scalar(neurons.scale)
            shift, k = shift + scalar(neurons.shift), neurons.constants(shift.dtype)
        return cls(lists, gain, shift, neurons, k, weight.shape[-1] if weight.dim() > 2 else 0)

    def __call__(self, x: Bits, T: int) -> Any:
        """Spikes [T, ..., out], or currents [S, ..., out], of x [S, ..., in], S being T or 1."""
        S, made, taps = x.shape[0], self.gain.size, _NO_TAPS
        if self.neurons is None or self.neurons.stay == 0.0:
            T = S
        shape = (T, *x.shape[1:-1], made)
        result: Any
        if self.k is None:
            result = new(torch.empty(0, dtype=x.dtype), shape)
            out = flat(result)
        else:
            result = Bits.empty(shape, x.dtype, 1, x.groups if T == S else 0)
            out, x = result.words, x.tiled(result.groups)
        words = x.words
        if self.size:
            taps = _taps(*x.shape[1:4], self.size, x.groups)
            words = words.view(taps[2].dtype)
        lines = (self.lists.pointers, self.lists.index, self.lists.value, self.gain, self.shift)
        soft = self.neurons is not None and self.neurons.soft
        args = (words, x.planes, x.shape[-1], *lines, *taps, self.k, soft or None, out, x.columns)
        counts = T, x.groups, S * x.groups
        pieces = x.tiles * -(-made // _BLOCK)
        work = self.lists.index.size * x.tiles * 16 * x.groups
        run(product_kernel, cut(pieces, work, 1), (*args, _BLOCK), counts=counts)
        return result


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


def attend(x: Bits, heads: int, scale: float, neurons: Neurons) -> Bits | None:
    """Spikes of neurons on ``scale q k^T v`` of x [T, B, N, 3 D]; None unless N is whole tiles."""
    T, B, N, dim = *x.shape[:3], x.shape[3] // 3
    if N % (16 * x.groups) or x.most != 1:
        return None
    made = Bits.empty((T, B, N, dim), x.dtype, 1, x.groups)
    k = neurons.constants(torch.empty(0, dtype=x.dtype).numpy().dtype)
    gain, shift = k.dtype.type(scale * neurons.scale), k.dtype.type(neurons.shift)
    words = x.words.view({1: np.uint16, 2: np.uint32}.get(x.groups, np.uint64))
    sizes = N // (16 * x.groups), heads, dim // heads
    args = (words, made.words, *sizes, gain, shift, k, neurons.soft or None)
    work = T * B * N * dim * (dim // heads) // 4
    run(attend_kernel, cut(B * heads, work, 1), args, counts=(*x.counts, T * x.groups))
    return made
