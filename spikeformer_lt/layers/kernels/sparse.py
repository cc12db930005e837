"""Products with lists of the weights that are kept, forward and backward.

A list has the places of the weights that one output, or one input, kept. Its entries are multiplied
with a tile of columns whose sums stay in registers: of bits a weight is added to the columns that
fired, under a mask, of numbers in rows it is multiplied. A convolution is the same product of
copies of the bits, one a tap, moved as the tap sees them. Currents leave as rows, or go into
neurons that leave bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import dispatch, jit, maps, winograd
from spikeformer_lt.layers.kernels.bits import (
    COLUMNS,
    FIRED,
    MASK,
    MASKS,
    Bits,
    Neurons,
    fire,
    make_tuple,
    spread,
    wide_type,
    window,
)
from spikeformer_lt.layers.kernels.jit import Array, at, cut, flat, get, inner, new, outer, run
from spikeformer_lt.layers.kernels.lists import Lists, spill, to_rows, zeros
from spikeformer_lt.layers.kernels.simd import call, fma, loop, read, turned

_BLOCK = 64  # outputs of a piece of work
_NEAR = 1 << 19  # bytes of a tile of numbers that stay in a cache of 1 MB
_FEW = 4  # channels for each one with a spike, from which empty masks are looked for
_NO_TAPS: tuple[Any, ...] = (None, None, None)


@intrinsic
def doubled(_context, sums):
    """All sums times two."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = cgutils.unpack_tuple(builder, args[0])
        return make_tuple(context, builder, signature, [builder.fadd(x, x) for x in rows])

    return sums(sums), generate


class Side:
    """What a list's entries are multiplied with: `width` masks each, or as many rows of floats."""

    def __init__(
        self, context: Any, builder: Any, kind: Any, given: Sequence[Any], width: int
    ) -> None:
        self.builder, self.masked = builder, isinstance(kind.dtype, types.Integer)
        array, base = given
        start = at(context, builder, kind, array, base.type(0))
        if self.masked:  # the base counts masks, of which words hold one or more
            start = builder.bitcast(start, MASK.as_pointer())
        self.start = cgutils.gep(builder, start, base)
        self.step = width if self.masked else width * COLUMNS

    def row(self, index: Any) -> Any:
        """Pointer to what belongs to an entry's index."""
        where = self.builder.zext(index, ir.IntType(64))
        return cgutils.gep(self.builder, self.start, self.builder.mul(where, where.type(self.step)))

    def add(self, row: Any, r: int, factor: Any, total: Any) -> Any:
        """``total + factor * part r`` of the row."""
        builder, wide = self.builder, factor.type
        place = cgutils.gep(builder, row, ir.IntType(64)(r if self.masked else r * COLUMNS))
        if self.masked:
            mask = builder.bitcast(read(builder, place, MASK, 2), FIRED)
            return builder.select(mask, builder.fadd(total, factor), total)
        size = 4 if wide.element == ir.FloatType() else 8
        return fma(builder, factor, read(builder, place, wide, size), total)


@intrinsic
def listed(_context, sums, side, base, index, value, first, last, rare):
    """Sums plus value[e] times what `side` has for index[e], for e from first to last.

    With `rare`, entries whose masks are all empty are looked for, and skipped.
    """
    width = len(sums)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds, start = signature.args, cgutils.unpack_tuple(builder, args[0])
        right = Side(context, builder, kinds[1], args[1:3], width)

        def body(e: Any, before: Any) -> Any:
            row = right.row(builder.load(at(context, builder, kinds[3], args[3], e)))
            entry, added = builder.block, builder.append_basic_block("listed.add")
            end = builder.append_basic_block("listed.end")
            if right.masked and kinds[7] != types.none:
                whole = read(builder, row, ir.IntType(COLUMNS * width), 2)
                builder.cbranch(builder.icmp_unsigned("==", whole, whole.type(0)), end, added)
            else:
                builder.branch(added)
                entry = None
            builder.position_at_end(added)
            weight = spread(builder, builder.load(at(context, builder, kinds[4], args[4], e)))
            after = [right.add(row, r, weight, total) for r, total in enumerate(before)]
            builder.branch(end)
            builder.position_at_end(end)
            found = [builder.phi(x.type) for x in before]
            for phi, old, total in zip(found, before, after, strict=True):
                phi.add_incoming(total, added)
                if entry is not None:
                    phi.add_incoming(old, entry)
            return found

        sums = loop(builder, args[5], args[6], start, body)
        return make_tuple(context, builder, signature, sums)

    whole = types.intp
    return sums(sums, side, whole, index, value, whole, whole, rare), generate


def _one(builder: Any, sums: Sequence[Any]) -> Any:
    """The sum of four vectors' lanes."""
    total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
    scalar, size = total.type.element, 32 if total.type.element == ir.FloatType() else 64
    name, pair = f"llvm.vector.reduce.fadd.v{total.type.count}f{size}", [scalar(-0.0), total]
    return call(builder, name, scalar, pair, fastmath=("reassoc",))


@intrinsic
def totalled(_context, tile, o, registers):
    """The sum of the tile's numbers at `o`."""
    count = len(registers)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        wide, start = wide_type(kind.dtype), at(context, builder, kind, args[0], args[1])
        sums = [wide(None)] * 4
        for j in range(count):
            place = cgutils.gep(builder, start, ir.IntType(64)(j * COLUMNS))
            row = read(builder, place, wide, kind.dtype.bitwidth // 8)
            sums[j % 4] = builder.fadd(sums[j % 4], row)
        return _one(builder, sums)

    return tile.dtype(tile, types.intp, registers), generate


@intrinsic
def dotted(_context, begin, end, index, value, scale, side, base, tile, o, registers):
    """Add to value[e] the scaled product of the tile at `o` and the row index[e] of `side`."""
    count = len(registers)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        scalar = kinds[7].dtype
        wide, width = wide_type(scalar), scalar.bitwidth // 8
        right = Side(context, builder, kinds[5], args[5:7], count)
        left = at(context, builder, kinds[7], args[7], args[8])
        parts = [
            read(builder, cgutils.gep(builder, left, ir.IntType(64)(j * COLUMNS)), wide, width)
            for j in range(count)
        ]

        def body(e: Any, _: Any) -> Any:
            row = right.row(builder.load(at(context, builder, kinds[2], args[2], e)))
            sums = [wide(None)] * 4
            for j, own in enumerate(parts):
                sums[j % 4] = right.add(row, j, own, sums[j % 4])
            one = _one(builder, sums)
            where = at(context, builder, kinds[3], args[3], e)
            done = builder.fadd(builder.load(where), builder.fmul(one, args[4]))
            builder.store(done, where)
            return []

        loop(builder, args[0], args[1], [], body)
        return context.get_dummy_value()

    whole = types.intp
    own = (index, value, value.dtype, side, whole, tile, whole, registers)
    return types.void(whole, whole, *own), generate


@inner()
def _to_tile(a, tile, rows, lead, column, wide, b, size):
    """Columns `column` to `column` + `wide` of the rows of a tile of a, each in a row of b."""
    first = tile * size
    count = min(size, rows - first)
    full = count - count % 16
    for r in range(0, full, 16):
        for c in range(0, wide, 16):
            turned(a, (first + r) * lead + column + c, lead, b, c * size + r, size)
    for c in range(wide if count < size else 0):
        for r in range(full, count):
            b[c * size + r] = a[(first + r) * lead + column + c]
        b[c * size + count : (c + 1) * size] = 0


@inner()
def _near(source, rows, planes, channels, taps, moves, rest, valid, tile, n, width, groups, near):
    """Fill `near` with what a tile is multiplied with: numbers, or bits as the taps see them."""
    if rows is not None:
        _to_tile(source, tile, n, channels, 0, channels, near, width * 16)
    elif moves is None:
        near[:] = source[tile * near.size : (tile + 1) * near.size]
    else:
        per = groups * 16 // (source.itemsize * 8)
        size, channels = near.size // planes, channels * (width // groups)
        for p in range(planes):
            window(
                source, tile, p, planes, channels, per, valid.size // taps, taps, moves, rest,
                valid, near, p * size,
            )  # fmt: skip


@inner()
def _count(near, planes, width, counts):
    """Say of each plane of a tile whether no channel (0), few (1) or many (2) have a spike."""
    size, each = near.size // planes, width * 2 // near.itemsize
    for p in range(planes):
        busy = 0
        for c in range(p * size, (p + 1) * size, each):
            some = 0
            for r in range(each):
                some |= get(near, c + r) != 0
            busy += some
        counts[p] = 0 if busy == 0 else 1 if busy * each * _FEW < size else 2


@inner()
def _sums(registers, near, plane, planes, index, value, first, last, counts):
    """Sums of one list over all planes, which are so many masks apart."""
    sums = zeros(value, registers)
    for p in range(planes - 1, -1, -1):
        sums = doubled(sums)
        if counts[p] > 1:
            sums = listed(sums, near, p * plane, index, value, first, last, None)
        elif counts[p] == 1:
            sums = listed(sums, near, p * plane, index, value, first, last, True)
    return sums


@outer
def product_kernel(
    lo, hi, source, size, rows, planes, channels, taps, moves, rest, valid, start, index, value,
    gain, shift, k, soft, out, n, block, kinds,
):  # fmt: skip
    """Spikes, or without `k` currents, of the products with the lists; pieces lo to hi.

    A piece is one tile of words of bits, or with `rows` of rows of numbers, and one block of
    outputs. A convolution has the `moves` of its taps, by words and the `rest`, and where they are
    valid.
    """
    steps, groups, registers = kinds
    made, width, held = gain.size, len(registers), -1
    count, plane = -(-made // block), channels * taps * width
    near = np.empty(size, source.dtype)
    counts = np.full(planes, 2)
    row = np.empty(block * width * 16 if k is None else 0, value.dtype)
    for piece in range(lo, hi):
        tile, first = piece // count, piece % count * block
        wide = min(block, made - first)
        if tile != held:
            held = tile
            _near(
                source, rows, planes, channels, taps, moves, rest, valid, tile, n, width,
                len(groups), near,
            )  # fmt: skip
            if planes > 1:
                _count(near, planes, width, counts)
        for o in range(first, first + wide):
            sums = _sums(
                registers, near, plane, planes, index, value, start[o], start[o + 1], counts
            )
            if k is None:
                spill(sums, gain[o], shift[o], row, (o - first) * width * 16)
            else:
                place = (tile * made + o) * len(steps) * len(groups)
                fire(sums, gain[o], shift[o], k, soft, out, place, steps, groups)
        if k is None:
            to_rows(row, out, n, made, tile * len(groups) * 16, first, wide, len(groups), width)


@outer
def weights_kernel(
    lo, hi, sums, source, size, rows, planes, channels, taps, moves, rest, valid, start, index, g,
    n, block, kinds,
):  # fmt: skip
    """Gradients of the kept weights, of tiles lo to hi of rows g and of a source as above.

    Those of the biases stand behind them.
    """
    _, groups, registers = kinds
    made, width = start.size - 1, len(registers)
    plane = channels * taps * width
    near = np.empty(size, source.dtype)
    own = np.empty(block * width * 16, g.dtype)
    for tile in range(lo, hi):
        _near(
            source, rows, planes, channels, taps, moves, rest, valid, tile, n, width, len(groups),
            near,
        )  # fmt: skip
        for first in range(0, made, block):
            wide = min(block, made - first)
            _to_tile(g, tile, n, made, first, wide, own, width * 16)
            for o in range(first, first + wide):
                sums[index.size + o] += totalled(own, (o - first) * width * 16, registers)
                scale = g.dtype.type(1)
                for p in range(planes):
                    dotted(
                        start[o], start[o + 1], index, sums, scale, near, p * plane, own,
                        (o - first) * width * 16, registers,
                    )  # fmt: skip
                    scale = scale + scale


@lru_cache(maxsize=256)
def taps_of(images: int, height: int, width: int, size: int, groups: int) -> tuple[Array, ...]:
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


def _given(x: Any, size: int) -> tuple[tuple[Any, ...], tuple[int, int, int], int]:
    """What kernels take of bits or rows x [1, N, C], what they are compiled for, and the tiles."""
    if isinstance(x, Tensor):
        whole = COLUMNS * MASKS * x.shape[2] * x.element_size() <= _NEAR
        width = MASKS if whole else MASKS // 2
        tiles, counts = -(-x.shape[1] // (16 * width)), (1, width, width)
        return (flat(x), 16 * width * x.shape[2], True, 1, x.shape[2], 1, *_NO_TAPS), counts, tiles
    words, taps = x.words, _NO_TAPS
    if size:
        taps = taps_of(*x.shape[1:4], size, x.groups)
        words = words.view(taps[2].dtype)
    count = max(1, size) ** 2
    near = x.words.size // x.tiles * count * 2 // words.itemsize
    counts = x.shape[0], x.groups, x.shape[0] * x.groups
    return (words, near, None, x.planes, x.shape[-1], count, *taps), counts, x.tiles


@dataclass(frozen=True, eq=False)
class Product:
    """A linear map, or a convolution that keeps the size of its maps, by lists."""

    lists: Lists
    value: Array  # [entries]; the weights are gain[o] * value[e]
    gain: Array  # [out]
    shift: Array  # [out], added
    neurons: Neurons | None = None  # those that follow; None puts out the currents
    size: int = 0  # side of the kernel of a convolution; 0 for a linear map

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, neurons: Neurons | None) -> Self:
        """The product with the weights [out, in], or [out, in, h, h], that are not zero.

        Weights of one size for each output have the values -1 and 1.
        """
        lists, dense = Lists.of(weight != 0), weight.detach().contiguous()
        value, shift = flat(dense).take(lists.place), flat(bias.contiguous())
        gain = np.ones_like(shift)
        size = dense.abs().flatten(1).amax(1) if dense.numel() else None
        if size is not None and np.array_equal(abs(value), flat(size).repeat(np.diff(lists.start))):
            value, gain = np.sign(value), flat(size)
        if neurons is not None:
            scale = shift.dtype.type(neurons.scale)
            gain, shift = gain * scale, shift * scale + shift.dtype.type(neurons.shift)
        return cls(lists, value, gain, shift, neurons, weight.shape[-1] if weight.dim() > 2 else 0)

    def __call__(self, x: Bits | Tensor, T: int = 1) -> Any:
        """Spikes [T, ..., out], or currents [S, ..., out], of x [S, ..., in], S being T or 1.

        Numbers are rows [1, N, in].
        """
        S, made, k, soft = x.shape[0], self.gain.size, None, None
        if self.neurons is None or self.neurons.stay == 0.0:
            T = S
        shape = (T, *x.shape[1:-1], made)
        result: Any
        if self.neurons is None:
            result = new(torch.empty(0, dtype=x.dtype, device="cpu"), shape)
            out = flat(result)
        else:
            assert isinstance(x, Bits)
            result = Bits.empty(shape, x.dtype, 1, x.groups if T == S else 0)
            out, x = result.words, x.tiled(result.groups)
            k, soft = self.neurons.constants(self.shift.dtype), self.neurons.soft or None
        given, (_, groups, width), tiles = _given(x, self.size)
        lines = self.lists.start, self.lists.index, self.value, self.gain, self.shift
        columns = x.shape[1:-1].numel()
        args = (*given, *lines, k, soft, out, columns, _BLOCK)
        cuts = cut(tiles * -(-made // _BLOCK), self.lists.index.size * tiles * 16 * groups, 1)
        run(product_kernel, cuts, args, counts=(T, groups, width))
        return result


def weights_back(x: Bits | Tensor, lists: Lists, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the weight, where `lists` keeps it, and the bias from `grad` [1, N, out]."""
    given, counts, tiles = _given(x, lists.shape[-1] if len(lists.shape) > 2 else 0)
    cuts = cut(tiles, grad.shape[1] * lists.index.size // COLUMNS, 1)
    kept = lists.index.size
    sums = np.zeros((cuts.size - 1, kept + grad.shape[2]), flat(grad[:0]).dtype)
    args = (*given, lists.start, lists.index, flat(grad), grad.shape[1], _BLOCK)
    run(weights_kernel, cuts, args, sums, counts)
    out = new(grad, lists.shape)
    lists.placed(sums, flat(out))
    return out, torch.from_numpy(sums[:, kept:].sum(0))


_LEAST = 1 << 25  # products, from which a call is repaid
_SEEN = 4096  # numbers that tell how many digits to begin with


def ways(
    weight: Sequence[int], columns: int, density: float, planes: int, tile: maps.Tile | None = None
) -> tuple[bool, ...]:
    """Whether forward, inputs' and weights' gradient go by lists, the last of bits or of numbers.

    `planes` is 0 where the inputs are no small whole numbers; a convolution has a `tile`, if any.
    """
    conv = len(weight) > 2
    if dispatch.sparse_mode() == "always":
        return planes > 0 or not conv, tile is not None or not conv, planes > 0 or not conv
    if columns * math.prod(weight) < _LEAST:
        return False, False, False

    def pays(part: str, digits: int) -> bool:
        return dispatch.list_gain(weight, density, digits, part) > dispatch.WORTH

    numbers = not conv and pays("numbers", 1)
    by_input = numbers
    if tile is not None and tile.fits(weight[0]):
        gain = dispatch.list_gain(weight, density, 1, "maps") * tile.filled
        by_input = gain > dispatch.WORTH
    if not planes:
        return numbers, by_input, numbers
    return pays("forward", planes), by_input, pays("weights", planes) or (planes > 1 and numbers)


def _factor(bits: Bits | None, rows: Tensor, kept: dispatch.Kept) -> Bits | Tensor:
    """What the kept weights' gradient reads: bits, or rows where these are estimated cheaper."""
    shape = kept.mask.shape
    if bits is None or (bits.planes > 1 and len(shape) == 2 and (
        dispatch.list_gain(shape, kept.density, bits.planes, "weights")
        < dispatch.list_gain(shape, kept.density, 1, "numbers")
    )):  # fmt: skip
        return rows[None]
    return bits


def _digits(x: Array) -> int:
    """Binary digits, 1 or more, of the largest of some whole numbers; 3 for any others."""
    least, top = x.min(initial=0), x.max(initial=0)
    few = least >= 0 and top <= 3 and np.array_equal(x, np.rint(x))
    return (1 if top <= 1 else 2) if few else 3


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept: dispatch.Kept, dense: dispatch.Dense
) -> Tensor | None:
    """``x @ weight.T + bias`` of x [..., D], or the 3x3 convolution of maps [T, B, H, W, C].

    Removed weights get no gradient, or that of the dense product. None where the kernels do not
    apply, or the dense product is faster in every part.
    """
    conv, columns = weight.dim() == 4, x.numel() // x.shape[-1]
    known = weight.dim() == 2 or (tuple(weight.shape[2:]) == (3, 3) and x.dim() == 5)
    if not known or any(n % COLUMNS for n in weight.shape[:2]) or x.shape[-1] != weight.shape[1]:
        return None

    tile = maps.Tile.of(x.shape) if conv else None

    def choose(planes: int) -> tuple[bool, ...]:
        *two, by_output = ways(weight.shape, columns, kept.density, planes, tile)
        return *two, by_output and not kept.whole

    if not weight.is_contiguous() or not any(choose(1)):
        return None
    rows = x.detach().view(1, -1, x.shape[-1])
    laid = rows.view(1, -1, *x.shape[2:]) if conv else rows
    # The numbers alone decide: a step that is resumed, or computed again, has the same bits.
    bits, planes = None, _digits(flat(rows)[:_SEEN])
    while bits is None and planes <= 2:
        bits = Bits.of(laid, 2**planes - 1)
        planes += bits is None
    chosen = choose(0 if bits is None else planes)
    for own in (kept, *kept.parts):
        own.chosen = chosen
    if not any(chosen):
        return None
    out: Tensor = SparseFunction.apply(x, weight, bias, kept, bits, chosen, dense)  # type: ignore[no-untyped-call]
    return out


def _lists(kept: dispatch.Kept, by: bool | tuple[int, int] = False) -> Lists:
    """Lists by outputs, with True by inputs, and by the inputs of maps with a tile's places."""
    if by not in kept.lists:
        own = Lists.of(kept.mask) if by is False else _lists(kept)
        if by is not False:
            own = own.turned() if by is True else maps.by_inputs(own, *by)
        kept.lists[by] = own
    return kept.lists[by]  # type: ignore[no-any-return]


def _multiply(x: Bits | Tensor, lists: Lists, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Currents [1, ..., out] of bits or rows by the weights of the lists."""
    value, made = flat(weight).take(lists.place), lists.start.size - 1
    shift = np.zeros(made, value.dtype) if bias is None else flat(bias)
    size = weight.shape[-1] if weight.dim() > 2 else 0
    out: Tensor = Product(lists, value, np.ones_like(shift), shift, None, size)(x)
    return out


class SparseFunction(torch.autograd.Function):
    """A product of lists where that pays, dense elsewhere; saves inputs, their bits and weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: dispatch.Kept,
        bits: Bits | None, chosen: Sequence[bool], dense: dispatch.Dense,
    ) -> Tensor:  # fmt: skip
        """Multiply."""
        ctx.save_for_backward(x, weight, bias)
        ctx.own = kept, bits, chosen, dense
        if chosen[0]:
            side = x.view(1, -1, x.shape[-1]) if bits is None else bits
            return _multiply(side, _lists(kept), weight, bias).view(*x.shape[:-1], -1)
        return winograd.convolve(x, weight) if weight.dim() == 4 else dense(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the other pairs."""
        x, weight, bias = ctx.saved_tensors
        kept, bits, (_, by_input, by_output), dense = ctx.own
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        conv = weight.dim() == 4

        def kernels() -> tuple[Tensor | None, ...]:
            rows, full = x.view(-1, x.shape[-1]), grad.contiguous()
            g = full.view(-1, full.shape[-1])
            gx = gw = gb = None
            left = for_x and not by_input, for_weight and not by_output
            if any(left) and not conv:
                gx, gw = dispatch.linear_back(rows, weight, g, left) or (
                    dense(g, weight.t(), None) if left[0] else None,
                    dense(g.t(), rows.t(), None) if left[1] else None,
                )
            if for_x and by_input and conv:
                tile = maps.Tile.of(x.shape)
                assert tile is not None  # as the choice was made
                gx = maps.inputs_back(full, tile, _lists(kept, tile.places), weight)
            elif for_x and by_input:
                gx = _multiply(g[None], _lists(kept, True), weight, None)
            elif for_x and conv:
                gx = winograd.convolve(full, weight, True)
            if for_weight and by_output:
                gw, gb = weights_back(_factor(bits, rows, kept), _lists(kept), g[None])
            elif for_weight and conv:
                gw = winograd.weights_back(x, full, weight)
            gb = (g.sum(0) if gb is None else gb) if for_bias else None
            return None if gx is None else gx.view(x.shape), gw, gb

        def operations(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return winograd.direct(x, weight) if conv else F.linear(x, weight, bias)

        found = jit.once(kernels)
        found = jit.again(operations, (x, weight, bias), grad) if found is None else found
        return *found, None, None, None, None
