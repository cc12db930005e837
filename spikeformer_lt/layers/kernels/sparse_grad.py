"""Products with sparse weights in training: forward, and the gradients of kept weights and inputs.

Rows [N, D] are N columns here, in tiles of 256 that are innermost: a weight is multiplied with a
whole tile, whose sums stay in registers. Of spikes a tile holds 256 bits an input, so that the
product is an addition under a mask; small integers are several planes of bits. Kept weights stand
in lists, row by row. A 3x3 convolution is the same product, of nine shifted copies of the bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import dispatch, jit, winograd
from spikeformer_lt.layers.kernels.jit import Array, at, cut, flat, inner, new, outer, run
from spikeformer_lt.layers.kernels.simd import BYTES, read, splat, write

Dense = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # a @ b.T + bias
LANES = VECTORS = 16  # columns of a vector, and bits of a mask; vectors of a tile
TILE = LANES * VECTORS


def _kind(dtype: Any) -> Any:
    return ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.DoubleType(), LANES)


def _loop(builder: Any, begin: Any, end: Any, carried: Any, body: Any) -> Any:
    """Values `carried` through ``body(place, values)`` for begin <= place < end."""
    entry = builder.block
    head = builder.append_basic_block("list.head")
    inside = builder.append_basic_block("list.body")
    done = builder.append_basic_block("list.done")
    builder.branch(head)
    builder.position_at_end(head)
    place = builder.phi(begin.type)
    phis = [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", place, end), inside, done)
    builder.position_at_end(inside)
    after = body(place, phis)
    following = builder.add(place, begin.type(1))
    last = builder.block
    builder.branch(head)
    place.add_incoming(begin, entry)
    place.add_incoming(following, last)
    for phi, start, value in zip(phis, carried, after, strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, last)
    builder.position_at_end(done)
    return phis


def _call(builder: Any, name: str, result: Any, args: Any, **options: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, **options)


class _Side:
    """What a list's entries are multiplied with: bits, or vectors of floats."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any, base: Any) -> None:
        self.builder, self.masked = builder, kind.dtype == types.uint16
        self.start = at(context, builder, kind, array, base)
        self.step = VECTORS if self.masked else TILE

    def row(self, index: Any) -> Any:
        where = self.builder.zext(index, ir.IntType(64))
        return cgutils.gep(self.builder, self.start, self.builder.mul(where, where.type(self.step)))

    def add(self, row: Any, j: int, factor: Any, total: Any) -> Any:
        """``total + factor * part j`` of the row."""
        builder, wide = self.builder, factor.type
        place = cgutils.gep(builder, row, ir.IntType(64)(j if self.masked else j * LANES))
        if self.masked:
            mask = read(builder, place, ir.VectorType(ir.IntType(1), LANES), 2)
            return builder.select(mask, builder.fadd(total, factor), total)
        size = 32 if wide.element == ir.FloatType() else 64
        part = read(builder, place, wide, size // 8)
        return _call(builder, f"llvm.fma.v{LANES}f{size}", wide, [factor, part, total])


@intrinsic
def add_list(_context, begin, end, index, value, scale, side, base, out, o):
    """Add to the tile at out[o] the sum over a list of value times side."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        wide = _kind(kinds[7].dtype)
        width = kinds[7].dtype.bitwidth // 8
        right = _Side(context, builder, kinds[5], args[5], args[6])
        target = at(context, builder, kinds[7], args[7], args[8])
        places = [cgutils.gep(builder, target, ir.IntType(64)(j * LANES)) for j in range(VECTORS)]

        def body(place: Any, sums: Any) -> Any:
            row = right.row(builder.load(at(context, builder, kinds[2], args[2], place)))
            one = builder.load(at(context, builder, kinds[3], args[3], place))
            factor = splat(builder, builder.fmul(one, args[4]), LANES)
            return [right.add(row, j, factor, total) for j, total in enumerate(sums)]

        start = [read(builder, place, wide, width) for place in places]
        sums = _loop(builder, args[0], args[1], start, body)
        for place, total in zip(places, sums, strict=True):
            write(builder, total, place, width)
        return context.get_dummy_value()

    whole = types.intp
    own = (index, value, value.dtype, side, whole, out, whole)
    return types.void(whole, whole, *own), generate


@intrinsic
def dot_list(_context, begin, end, index, value, scale, side, base, tile, o):
    """Add to value[e] the scaled product of the tile at `o` and the row index[e] of `side`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        scalar = kinds[7].dtype
        wide, width = _kind(scalar), scalar.bitwidth // 8
        right = _Side(context, builder, kinds[5], args[5], args[6])
        left = at(context, builder, kinds[7], args[7], args[8])
        parts = [
            read(builder, cgutils.gep(builder, left, ir.IntType(64)(j * LANES)), wide, width)
            for j in range(VECTORS)
        ]

        def body(place: Any, _: Any) -> Any:
            row = right.row(builder.load(at(context, builder, kinds[2], args[2], place)))
            sums = [wide(None)] * 4
            for j, own in enumerate(parts):
                sums[j % 4] = right.add(row, j, own, sums[j % 4])
            total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
            name = f"llvm.vector.reduce.fadd.v{LANES}f{scalar.bitwidth}"
            pair = [wide.element(-0.0), total]
            one = _call(builder, name, wide.element, pair, fastmath=("reassoc",))
            where = at(context, builder, kinds[3], args[3], place)
            done = builder.fadd(builder.load(where), builder.fmul(one, args[4]))
            builder.store(done, where)
            return []

        _loop(builder, args[0], args[1], [], body)
        return context.get_dummy_value()

    whole = types.intp
    own = (index, value, value.dtype, side, whole, tile, whole)
    return types.void(whole, whole, *own), generate


@intrinsic
def transpose(_context, a, i, lead, b, j, pitch):
    """b[j + c pitch + r] = a[i + r lead + c] for r, c < 16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        wide, width = _kind(kinds[0].dtype), kinds[0].dtype.bitwidth // 8
        source = at(context, builder, kinds[0], args[0], args[1])
        target = at(context, builder, kinds[3], args[3], args[4])
        whole = ir.IntType(64)
        rows = [
            read(builder, cgutils.gep(builder, source, builder.mul(args[2], whole(r))), wide, width)
            for r in range(LANES)
        ]
        near = ir.VectorType(ir.IntType(32), LANES)
        half = LANES // 2
        while half:  # swap the blocks off the diagonal, of 8, 4, 2 and 1
            low = [c if not c & half else LANES + c - half for c in range(LANES)]
            high = [c + half if not c & half else LANES + c for c in range(LANES)]
            for r in range(LANES):
                if not r & half:
                    top, bottom = rows[r], rows[r + half]
                    rows[r] = builder.shuffle_vector(top, bottom, near(low))
                    rows[r + half] = builder.shuffle_vector(top, bottom, near(high))
            half //= 2
        for c, row in enumerate(rows):
            write(builder, row, cgutils.gep(builder, target, builder.mul(args[5], whole(c))), width)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(a, whole, whole, b, whole, whole), generate


@intrinsic
def pack_block(_context, x, i, lead, bits, o, pitch, planes):
    """Masks bits[o + 16 c + p pitch] of 16 rows of x and its columns i + c, c < 16, in plane p.

    There are as many planes as `planes` has members. Returns -1 where a value is no integer that
    they hold, else 0.
    """
    count = len(planes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        wide, width = _kind(kinds[0].dtype), kinds[0].dtype.bitwidth // 8
        source = at(context, builder, kinds[0], args[0], args[1])
        target = at(context, builder, kinds[3], args[3], args[4])
        whole, word, half = ir.IntType(64), ir.IntType(32), ir.IntType(16)
        words = ir.VectorType(word, LANES)
        found, wrong = [words(None)] * count, words(None)
        for r in range(LANES):
            place = cgutils.gep(builder, source, builder.mul(args[2], whole(r)))
            value = read(builder, place, wide, width)
            if count == 1:
                fired = builder.fcmp_unordered("!=", value, wide(None))
                other = builder.fcmp_unordered("!=", value, wide([1.0] * LANES))
                bad = builder.and_(fired, other)
                own = builder.select(fired, words([1 << r] * LANES), words(None))
                found[0] = builder.or_(found[0], own)
            else:
                low = builder.fcmp_ordered(">=", value, wide(None))
                high = builder.fcmp_ordered("<", value, wide([float(1 << count)] * LANES))
                inside = builder.and_(low, high)  # outside, the conversion is undefined
                safe = builder.select(inside, value, wide(None))
                number = builder.fptosi(safe, words)
                exact = builder.fcmp_ordered("==", builder.sitofp(number, wide), value)
                bad = builder.not_(builder.and_(inside, exact))
                for p in range(count):
                    own = builder.and_(builder.lshr(number, words([p] * LANES)), words([1] * LANES))
                    found[p] = builder.or_(found[p], builder.shl(own, words([r] * LANES)))
            wrong = builder.or_(wrong, builder.sext(bad, words))
        for p, masks in enumerate(found):
            short = builder.trunc(masks, ir.VectorType(half, LANES))
            start = cgutils.gep(builder, target, builder.mul(args[5], whole(p)))
            for c in range(LANES):
                one = builder.extract_element(short, word(c))
                builder.store(one, cgutils.gep(builder, start, whole(c * VECTORS)))
        return _call(builder, f"llvm.vector.reduce.or.v{LANES}i32", word, [wrong])

    whole = types.intp
    own = (x, whole, whole, bits, whole, whole, planes)
    return types.int32(*own), generate


@inner()
def to_tile(a, first, count, lead, column, wide, b):
    """The `wide` columns of a, of `count` <= 256 rows, as tiles of b."""
    full = count - count % 16
    for r in range(0, full, 16):
        for c in range(0, wide, 16):
            transpose(a, (first + r) * lead + column + c, lead, b, c * 256 + r, 256)
    for r in range(full, count):
        for c in range(wide):
            b[c * 256 + r] = a[(first + r) * lead + column + c]
    for c in range(wide):
        for r in range(count, 256):
            b[c * 256 + r] = 0


@inner()
def from_tile(b, a, first, count, lead, column, wide):
    """Tiles of b as the `wide` columns of `count` <= 256 rows of a."""
    full = count - count % 16
    for r in range(0, full, 16):
        for c in range(0, wide, 16):
            transpose(b, c * 256 + r, 256, a, (first + r) * lead + column + c, lead)
    for r in range(full, count):
        for c in range(wide):
            a[(first + r) * lead + column + c] = b[c * 256 + r]


@outer
def pack_kernel(lo, hi, x, bits, rows, width, wrong, kinds):
    """Bits [plane, tile, input, 16] of the tiles lo to hi of x [rows, width].

    There are as many planes as the one member of `kinds` has members. wrong[tile] is -1 where a
    value is no integer that the planes hold, else 0.
    """
    tiles = (rows + 255) // 256
    pitch = tiles * width * 16
    edge = np.zeros(16 * width, x.dtype)
    for tile in range(lo, hi):
        wrong[tile] = 0
        for part in range(16):
            first = tile * 256 + part * 16
            source, i = x, first * width
            if first + 16 > rows:
                edge[:] = 0
                for j in range(max(rows - first, 0) * width):
                    edge[j] = x[i + j]
                source, i = edge, 0
            o = tile * width * 16 + part
            for c in range(0, width, 16):
                wrong[tile] |= pack_block(source, i + c, width, bits, o + 16 * c, pitch, kinds[0])
            if wrong[tile]:
                break


@outer
def multiply_kernel(
    lo, hi, x, bits, planes, start, index, value, bias, y, rows, width, made, group
):
    """Rows of y [rows, made] in the tiles lo to hi, of bits, or of rows x where they are None."""
    tiles = (rows + 255) // 256
    sums, held = np.empty(group * 256, y.dtype), np.empty(width * 256, y.dtype)
    for tile in range(lo, hi):
        first = tile * 256
        count = min(256, rows - first)
        if bits is None:
            to_tile(x, first, count, width, 0, width, held)
        for column in range(0, made, group):
            for k in range(0, group * 256, 256):
                o = column + k // 256
                sums[k : k + 256] = bias[o]
                scale = y.dtype.type(1)
                if bits is None:
                    add_list(start[o], start[o + 1], index, value, scale, held, 0, sums, k)
                else:
                    for p in range(planes):
                        base = (p * tiles + tile) * width * 16
                        add_list(start[o], start[o + 1], index, value, scale, bits, base, sums, k)
                        scale = scale + scale
            from_tile(sums, y, first, count, made, column, group)


@outer
def weights_kernel(lo, hi, sums, x, bits, planes, start, index, g, rows, width, made, group):
    """Gradients of the kept weights, of the tiles lo to hi of g and of the bits or rows x."""
    tiles = (rows + 255) // 256
    near, held = np.empty(group * 256, g.dtype), np.empty(width * 256, g.dtype)
    for tile in range(lo, hi):
        first = tile * 256
        count = min(256, rows - first)
        if bits is None:
            to_tile(x, first, count, width, 0, width, held)
        for column in range(0, made, group):
            to_tile(g, first, count, made, column, group, near)
            for k in range(0, group * 256, 256):
                o = column + k // 256
                scale = g.dtype.type(1)
                if bits is None:
                    dot_list(start[o], start[o + 1], index, sums, scale, held, 0, near, k)
                else:
                    for p in range(planes):
                        base = (p * tiles + tile) * width * 16
                        dot_list(start[o], start[o + 1], index, sums, scale, bits, base, near, k)
                        scale = scale + scale


@outer
def taps_kernel(lo, hi, words, near, valid, channels, across):
    """Bits of nine shifted copies near[plane, tile, channel, tap, 4] of maps, tiles lo to hi.

    valid[tap, word] has the places of a map `across` wide whose shifted place is on it.
    """
    size = words.size // (4 * channels)  # tiles of all planes
    per = valid.size // 9
    last = size * 4 - 1
    for tile in range(lo, hi):
        for tap in range(9):
            shift = (tap // 3 - 1) * across + tap % 3 - 1
            low = np.uint64(shift & 63)
            high = np.uint64(63 - (shift & 63))
            for u in range(4):
                q = tile * 4 + u
                ok = valid[tap * per + q % per]
                j = min(max(q + (shift >> 6), 0), last)
                i = min(max(q + (shift >> 6) + 1, 0), last)
                a, b = (j // 4 * channels) * 4 + j % 4, (i // 4 * channels) * 4 + i % 4
                o = (tile * channels * 9 + tap) * 4 + u
                for c in range(channels):
                    word = words[a + 4 * c] >> low | words[b + 4 * c] << np.uint64(1) << high
                    near[o + 36 * c] = word & ok


@dataclass(eq=False)
class Lists:
    """Kept weights of a matrix [D', D], by output and by input."""

    # Where the entries of each output begin, int64 [D' + 1]; the input of each, and where it is in
    # the flat weight.
    by_output: tuple[Array, Array, Array]
    by_input: tuple[Array, Array, Array]
    planes: int = 1  # that hold the inputs; 0 where they are no small integers

    @classmethod
    def of(cls, kept: Tensor) -> Lists:
        """Lists of the entries that are True in `kept`, [D', D] or [D', C, 3, 3]."""
        flat_kept = kept.flatten(1)
        made, width = flat_kept.shape
        o, i = flat_kept.nonzero(as_tuple=True)
        i2, o2 = flat_kept.t().nonzero(as_tuple=True)
        by = [np.zeros(n + 1, np.int64) for n in (made, width)]
        np.cumsum(flat_kept.sum(1).numpy(), out=by[0][1:])
        np.cumsum(flat_kept.sum(0).numpy(), out=by[1][1:])
        index, back = (n.numpy().astype(np.int32) for n in (i, o2))
        place, back_place = ((a * width + b).numpy() for a, b in ((o, i), (o2, i2)))
        return cls((by[0], index, place), (by[1], back, back_place))


def pack(rows: Tensor, planes: int) -> Array | None:
    """Bits [plane, tile, D, 16] of rows [N, D] of integers below 2^planes; None if one is not."""
    count, width = rows.shape
    tiles = -(-count // TILE)
    bits, wrong = np.empty(planes * tiles * width * VECTORS, np.uint16), np.empty(tiles, np.int32)
    args = (flat(rows), bits, count, width, wrong)
    run(pack_kernel, cut(tiles, rows.numel(), 1), args, counts=(planes,))
    return None if wrong.any() else bits


@lru_cache(maxsize=64)
def _valid(height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width]
    taps = [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    inside = [(a >= 0) & (a < height) & (b >= 0) & (b < width) for a, b in taps]
    found: Array = np.packbits(np.stack(inside).reshape(-1), bitorder="little").view(np.uint64)
    return found


def shifted(bits: Array, channels: int, height: int, width: int) -> Array:
    """Bits [plane, tile, 9 channels, 16] of the neighbours of places, from those of maps."""
    words = bits.view(np.uint64)
    near = np.empty(9 * words.size, np.uint64)
    tiles = words.size // (4 * channels)
    args = (words, near, _valid(height, width), channels, width)
    run(taps_kernel, cut(tiles, near.size, 1), args)
    return near.view(np.uint16)


def _group(made: int) -> int:
    return next(n for n in (64, 48, 32, 16) if made % n == 0)


def _tiles(rows: Tensor, entries: int) -> Array:
    return cut(-(-rows.shape[0] // TILE), rows.shape[0] * entries // LANES, 1)


def multiply(
    rows: Tensor,
    bits: tuple[Array, int] | None,
    by: tuple[Array, Array, Array],
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Rows [N, D], or their bits and number of planes, times the weights listed in `by`."""
    start, index, place = by
    made = start.size - 1
    out = new(rows, (rows.shape[0], made))
    shift = flat(rows.new_zeros(made) if bias is None else bias)
    own = (start, index, flat(weight).take(place), shift, flat(out), rows.shape[0])
    sizes = weight.numel() // made, made, _group(made)
    run(multiply_kernel, _tiles(rows, index.size), (flat(rows), *(bits or (None, 1)), *own, *sizes))
    return out


def weights_back(
    rows: Tensor, bits: tuple[Array, int] | None, lists: Lists, grad: Tensor, weight: Tensor
) -> Tensor:
    """``grad.T @ rows`` where `lists` keeps a weight, 0 elsewhere, shaped as `weight`."""
    start, index, place = lists.by_output
    made, cuts = start.size - 1, _tiles(rows, index.size)
    sums = np.zeros((cuts.size - 1, index.size), flat(grad[:0]).dtype)
    own = (start, index, flat(grad), rows.shape[0], lists.by_input[0].size - 1, made, _group(made))
    run(weights_kernel, cuts, (flat(rows), *(bits or (None, 1)), *own), sums)
    out = torch.zeros_like(weight)
    flat(out)[place] = sums.sum(0)
    return out


Ways = tuple[bool, bool, bool]  # whether forward, inputs' and weights' gradient go by lists

# Time by lists over that of the dense product: fixed + slope * density, measured on one thread of a
# Sapphire Rapids; fixed at 384 x 384, and else in proportion to what is read and written for a
# product. The slope of bits is that of one plane; Winograd does 1 / 2.3 of the work.
_BITS, _BITS_BACK, _LISTS = (0.06, 2.0), (0.04, 2.6), (0.1, 4.0)
_WINOGRAD = 2.3
_WORTH = 0.85  # of the dense time: estimates err
_LEAST = 1 << 25  # products, from which a call is repaid


def ways(weight: Sequence[int], columns: int, density: float, planes: int) -> Ways:
    """What pays for weights of this shape; `planes` is 0 where the inputs are no small integers."""
    made, width, conv = weight[0], math.prod(weight[1:]), len(weight) > 2
    if dispatch.sparse_mode() == "always":
        return planes > 0 or not conv, not conv, planes > 0 or not conv
    if BYTES < 64 or columns * made * width < _LEAST:
        return False, False, False

    def pays(line: tuple[float, float], work: float) -> bool:
        return line[0] * 192 * (1 / made + 1 / width) + line[1] * work < _WORTH

    lists = not conv and pays(_LISTS, density)
    if not planes:
        return lists, lists, lists
    work = density * planes * (_WINOGRAD if conv else 1)
    return pays(_BITS, work), lists, pays(_BITS_BACK, work)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels apply: channels in sixteens, and of maps whole words of 64 places."""
    if weight.shape[0] % LANES or weight.shape[1] % LANES or x.shape[-1] != weight.shape[1]:
        return False
    if weight.dim() == 2:
        return weight.is_contiguous()
    known = tuple(weight.shape[2:]) == (3, 3) and weight.is_contiguous() and x.dim() == 5
    return known and x.shape[2] * x.shape[3] % 64 == 0


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept: dispatch.Kept, dense: Dense
) -> Tensor | None:
    """``x @ weight.T + bias`` of x [..., D], or the 3x3 convolution of maps [T, B, H, W, C].

    Removed weights get no gradient. None where the dense product is faster in every part.
    """
    conv, columns = weight.dim() == 4, x.numel() // x.shape[-1]
    if not any(ways(weight.shape, columns, kept.density, kept.lists.planes if kept.lists else 1)):
        return None
    lists = kept.lists = kept.lists or Lists.of(kept.mask)
    rows, bits = x.detach().reshape(-1, x.shape[-1]), None
    planes, most = lists.planes, 1 if conv else 2
    while bits is None and 0 < planes <= most:
        bits = pack(rows, planes)
        planes += bits is None
    lists.planes = planes = 0 if bits is None else planes
    chosen = ways(weight.shape, columns, kept.density, planes)
    if not any(chosen):
        return None
    if bits is not None and conv:
        bits = shifted(bits, x.shape[-1], *x.shape[2:4])
    found = None if bits is None else (bits, planes)
    out: Tensor = SparseFunction.apply(x, weight, bias, lists, found, chosen, dense)  # type: ignore[no-untyped-call]
    return out


class SparseFunction(torch.autograd.Function):
    """A product of lists where that pays, dense elsewhere; saves inputs, their bits and weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lists: Lists,
        bits: tuple[Array, int] | None,
        chosen: Ways,
        dense: Dense,
    ) -> Tensor:
        """Multiply."""
        ctx.save_for_backward(x, weight, bias)
        ctx.lists, ctx.bits, ctx.chosen, ctx.dense = lists, bits, chosen, dense
        if chosen[0]:
            out = multiply(x.reshape(-1, x.shape[-1]), bits, lists.by_output, weight, bias)
            return out.view(*x.shape[:-1], -1)
        if weight.dim() == 4:
            return winograd.convolve(x, weight)
        return dense(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the other pairs."""
        x, weight, bias = ctx.saved_tensors
        lists, dense, conv = ctx.lists, ctx.dense, weight.dim() == 4
        (for_x, for_weight, for_bias), (_, by_input, by_output) = (
            ctx.needs_input_grad[:3],
            ctx.chosen,
        )

        def kernels() -> tuple[Tensor | None, ...]:
            rows, full = x.reshape(-1, x.shape[-1]), grad.contiguous()
            g = full.view(-1, full.shape[-1])
            gx = gw = None
            if for_x and by_input:
                gx = multiply(g, None, lists.by_input, weight).view(x.shape)
            elif for_x:
                gx = winograd.convolve(full, weight, True) if conv else dense(g, weight.t(), None)
            if for_weight and by_output:
                gw = weights_back(rows, ctx.bits, lists, g, weight)
            elif for_weight:
                gw = (
                    winograd.weights_back(x, full, weight) if conv else dense(g.t(), rows.t(), None)
                )
            return None if gx is None else gx.view(x.shape), gw, g.sum(0) if for_bias else None

        def operations(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return winograd.direct(x, weight) if conv else F.linear(x, weight, bias)

        found = jit.once(kernels)
        found = jit.again(operations, (x, weight, bias), grad) if found is None else found
        return *found, None, None, None, None
