"""Vectors of floats as values of numba kernels, and matrix products whose sums stay in registers.

A vector holds as many floats as a register of the processor that numba compiles for. Arrays are
flat, and indices are not checked. A panel is a group of neighbouring columns, `vectors` registers
wide. Tiles are as tall as leaves registers for them: 32 of 64 bytes, else 16 of 32.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_name
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, lower_builtin, type_callable

from spikeformer_lt.layers.kernels.jit import at, inner

_FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
BYTES = 64 if "+avx512f" in _FEATURES else 32
_WIDE = {"znver4": "zen4", "znver5": "zen5"}.get(get_host_cpu_name(), "avx512")
PROCESSOR = _WIDE if BYTES == 64 else "avx2" if "+avx2" in _FEATURES else ""


class Lanes(types.Type):  # type: ignore[misc]
    """Floats side by side: `count` of them, or as many as a register holds."""

    def __init__(self, dtype: Any, count: int = 0) -> None:
        self.dtype, self.count = dtype, count or BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"lanes({dtype} x {self.count})")


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, vector(kind.dtype, kind.count))


def _scalar(dtype: Any) -> Any:
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def vector(dtype: Any, count: int = 0) -> Any:
    """LLVM's type of `Lanes`."""
    return ir.VectorType(_scalar(dtype), count or BYTES * 8 // dtype.bitwidth)


def read(builder: Any, pointer: Any, kind: Any, align: int) -> Any:
    found = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    found.align = align
    return found


def write(builder: Any, value: Any, pointer: Any, align: int) -> None:
    done = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    done.align = align


def splat(builder: Any, value: Any, count: int) -> Any:
    """A vector of one value."""
    nothing = ir.VectorType(value.type, count)(ir.Undefined)
    one = builder.insert_element(nothing, value, ir.IntType(32)(0))
    order = ir.VectorType(ir.IntType(32), count)([0] * count)
    return builder.shuffle_vector(one, nothing, order)


def call(builder: Any, name: str, result: Any, args: Any, **options: Any) -> Any:
    """The result of an instruction that LLVM knows by name."""
    kind = ir.FunctionType(result, [value.type for value in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, **options)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a b + c`` of vectors, rounded once."""
    size = 32 if a.type.element == ir.FloatType() else 64
    return call(builder, f"llvm.fma.v{a.type.count}f{size}", a.type, [a, b, c])


def loop(builder: Any, begin: Any, end: Any, carried: Any, body: Any) -> Any:
    """Values `carried` through ``body(place, values)`` for begin <= place < end."""
    entry = builder.block
    head, inside, done = (
        builder.append_basic_block(f"loop.{name}") for name in ("head", "body", "done")
    )
    builder.branch(head)
    builder.position_at_end(head)
    place = builder.phi(begin.type)
    phis = [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", place, end), inside, done)
    builder.position_at_end(inside)
    after = body(place, phis)
    following, last = builder.add(place, begin.type(1)), builder.block
    builder.branch(head)
    for phi, start, value in zip(
        [place, *phis], [begin, *carried], [following, *after], strict=True
    ):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, last)
    builder.position_at_end(done)
    return phis


@intrinsic
def load(_context, array, index):
    """The vector at `index`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        pointer = at(context, builder, kind, *args)
        return read(builder, pointer, vector(kind.dtype), kind.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
def load_if(_context, array, index, inside):
    """The vector at `index`, or zeros, reading nothing, where not `inside`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        wide = vector(kind.dtype)
        zeros = cgutils.alloca_once_value(builder, wide(None))
        here = builder.bitcast(zeros, _scalar(kind.dtype).as_pointer())
        pointer = builder.select(args[2], at(context, builder, kind, args[0], args[1]), here)
        return read(builder, pointer, wide, kind.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp, types.boolean), generate


@intrinsic
def store(_context, array, index, value):
    """Write a vector at `index`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        pointer = at(context, builder, kind, args[0], args[1])
        write(builder, args[2], pointer, kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def gather(_context, array, index, stride):
    """The vector of the values at index, index + stride, ..."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        wide = vector(kind.dtype)
        found, index = wide(ir.Undefined), args[1]
        for i in range(wide.count):
            value = builder.load(at(context, builder, kind, args[0], index))
            found = builder.insert_element(found, value, ir.IntType(32)(i))
            index = builder.add(index, args[2])
        return found

    return Lanes(array.dtype)(array, types.intp, types.intp), generate


@intrinsic
def scatter(_context, array, index, stride, value):
    """Write the values of a vector to index, index + stride, ..."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, index = signature.args[0], args[1]
        for i in range(args[3].type.count):
            one = builder.extract_element(args[3], ir.IntType(32)(i))
            builder.store(one, at(context, builder, kind, args[0], index))
            index = builder.add(index, args[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), generate


@intrinsic
def turned(_context, a, i, lead, b, j, pitch):
    """b[j + c pitch + r] = a[i + r lead + c] for r, c < 16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        wide, width = vector(kinds[0].dtype, 16), kinds[0].dtype.bitwidth // 8
        source = at(context, builder, kinds[0], args[0], args[1])
        target = at(context, builder, kinds[3], args[3], args[4])
        whole = ir.IntType(64)
        rows = [
            read(builder, cgutils.gep(builder, source, builder.mul(args[2], whole(r))), wide, width)
            for r in range(16)
        ]
        near = ir.VectorType(ir.IntType(32), 16)
        half = 8
        while half:  # swap the blocks off the diagonal, of 8, 4, 2 and 1
            low = [c if not c & half else 16 + c - half for c in range(16)]
            high = [c + half if not c & half else 16 + c for c in range(16)]
            for r in range(16):
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


def _arithmetic(operation: Any, instruction: str) -> None:
    @type_callable(operation)
    def typed(_context):
        def infer(a, b):
            known = isinstance(a, Lanes) and (a == b or isinstance(b, types.Float))
            return a if known else None

        return infer

    def lanes(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=("contract",))

    def scaled(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = args[1]
        if signature.args[1] != signature.args[0].dtype:  # a literal of float64
            one = builder.fptrunc(one, ir.FloatType())
        wide = splat(builder, one, signature.args[0].count)
        return getattr(builder, instruction)(args[0], wide, flags=("contract",))

    lower_builtin(operation, Lanes, Lanes)(lanes)
    lower_builtin(operation, Lanes, types.Float)(scaled)


for _pair in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _arithmetic(*_pair)


# LLVM vectorises loops, but keeps no tile of sums in registers by itself.
def make_tile(rows: int, vectors: int) -> Any:
    """The product that a matrix product is made of, with `rows` x `vectors` sums in registers.

    Returns:
        ``tile(a, i, row, step, b, j, jump, c, k, pitch, count, add)``, which sets, or with `add`
        raises, ``c[k + r pitch + v]`` to the sum over ``s < count`` of
        ``a[i + r row + s step] * b[j + s jump + v]``, for r < rows and v < vectors lanes.
    """

    @intrinsic
    def tile(_context, a, i, row, step, b, j, jump, c, k, pitch, count, add):
        whole = [types.intp] * 3

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = signature.args[0]
            width = kind.dtype.bitwidth // 8
            wide = vector(kind.dtype)
            a0 = at(context, builder, kind, args[0], args[1])
            b0 = at(context, builder, kind, args[4], args[5])
            c0 = at(context, builder, kind, args[7], args[8])
            row, step, jump, pitch, count = args[2], args[3], args[6], args[9], args[10]
            intp = count.type

            def place(r: int, v: int) -> Any:
                offset = builder.add(builder.mul(pitch, intp(r)), intp(v * wide.count))
                return cgutils.gep(builder, c0, offset)

            places = [place(r, v) for r in range(rows) for v in range(vectors)]
            lines = [builder.mul(row, intp(r)) for r in range(rows)]

            def body(_: Any, carried: Any) -> Any:
                (pa, pb), sums = carried[:2], carried[2:]
                bs = [
                    read(builder, cgutils.gep(builder, pb, intp(v * wide.count)), wide, width)
                    for v in range(vectors)
                ]
                after = []
                for r in range(rows):
                    one = builder.load(cgutils.gep(builder, pa, lines[r]))
                    factor = splat(builder, one, wide.count)
                    after += [
                        fma(builder, factor, bs[v], sums[r * vectors + v]) for v in range(vectors)
                    ]
                return [cgutils.gep(builder, pa, step), cgutils.gep(builder, pb, jump), *after]

            start = [a0, b0, *(wide(None) for _ in places)]
            after = loop(builder, intp(0), count, start, body)[2:]
            with builder.if_else(args[11]) as (then, otherwise):
                with then:
                    for pointer, total in zip(places, after, strict=True):
                        before = read(builder, pointer, wide, width)
                        write(builder, builder.fadd(before, total), pointer, width)
                with otherwise:
                    for pointer, total in zip(places, after, strict=True):
                        write(builder, total, pointer, width)
            return context.get_dummy_value()

        signature = types.void(a, *whole, b, *whole[:2], c, *whole, types.boolean)
        return signature, generate

    return tile


_WIDEST = 4 if BYTES == 64 else 2
_tile4, _low4, _row4 = make_tile(6, 4), make_tile(4, 4), make_tile(1, 4)
_tile3, _row3 = make_tile(8, 3), make_tile(1, 3)
_tile2, _row2 = make_tile(8 if BYTES == 64 else 4, 2), make_tile(1, 2)
_tile1, _row1 = make_tile(8, 1), make_tile(1, 1)
_TALL2 = 8 if BYTES == 64 else 4


@cache
def panel_vectors(columns: int, lanes: int) -> int:
    """Registers in a panel, so that whole panels make up `columns`; 0 if none do."""
    return next((v for v in range(_WIDEST, 0, -1) if columns % (v * lanes) == 0), 0)


@inner()
def straight(vectors, a, i, lead, b, j, jump, c, k, pitch, rows, count, add):
    """c[r, :] = or += sum over s < count of a[r, s] b[s, :] for one panel and all rows."""
    if vectors == 4:
        for r in range(0, rows - 5, 6):
            _tile4(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)
        for r in range(rows - rows % 6, rows):
            _row4(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)
    elif vectors == 3:
        for r in range(0, rows - 7, 8):
            _tile3(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)
        for r in range(rows - rows % 8, rows):
            _row3(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)
    elif vectors == 2:
        for r in range(0, rows - _TALL2 + 1, _TALL2):
            _tile2(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)
        for r in range(rows - rows % _TALL2, rows):
            _row2(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)
    else:
        for r in range(0, rows - 7, 8):
            _tile1(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)
        for r in range(rows - rows % 8, rows):
            _row1(a, i + r * lead, lead, 1, b, j, jump, c, k + r * pitch, pitch, count, add)


@inner()
def down(vectors, a, i, lead, b, j, jump, c, k, pitch, rows, count, add):
    """c[r, :] = or += sum over s < count of a[s, r] b[s, :] for one panel; 8 divides the rows."""
    if vectors == 4:
        for r in range(0, rows, 4):
            _low4(a, i + r, 1, lead, b, j, jump, c, k + r * pitch, pitch, count, add)
    elif vectors == 3:
        for r in range(0, rows, 8):
            _tile3(a, i + r, 1, lead, b, j, jump, c, k + r * pitch, pitch, count, add)
    elif vectors == 2:
        for r in range(0, rows, _TALL2):
            _tile2(a, i + r, 1, lead, b, j, jump, c, k + r * pitch, pitch, count, add)
    else:
        for r in range(0, rows, 8):
            _tile1(a, i + r, 1, lead, b, j, jump, c, k + r * pitch, pitch, count, add)
