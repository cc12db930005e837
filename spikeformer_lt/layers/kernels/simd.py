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
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, lower_builtin, type_callable

from spikeformer_lt.layers.kernels.jit import at, inner

_FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
BYTES = 64 if "+avx512f" in _FEATURES else 32


class _Lanes(types.Type):  # type: ignore[misc]
    """A register of floats."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.count = dtype, BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"lanes({dtype} x {self.count})")


@register_default(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, vector(kind.dtype))


def _scalar(dtype: Any) -> Any:
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def vector(dtype: Any) -> Any:
    """LLVM's type of a vector."""
    return ir.VectorType(_scalar(dtype), BYTES * 8 // dtype.bitwidth)


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


@intrinsic
def load(_context, array, index):
    """The vector at `index`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        pointer = at(context, builder, kind, *args)
        return read(builder, pointer, vector(kind.dtype), kind.dtype.bitwidth // 8)

    return _Lanes(array.dtype)(array, types.intp), generate


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

    return _Lanes(array.dtype)(array, types.intp, types.boolean), generate


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

    return _Lanes(array.dtype)(array, types.intp, types.intp), generate


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


def _arithmetic(operation: Any, instruction: str) -> None:
    @type_callable(operation)
    def typed(_context):
        def infer(a, b):
            known = isinstance(a, _Lanes) and (a == b or isinstance(b, types.Float))
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

    lower_builtin(operation, _Lanes, _Lanes)(lanes)
    lower_builtin(operation, _Lanes, types.Float)(scaled)


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
            fused = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(wide, [wide] * 3),
                f"llvm.fma.v{wide.count}f{kind.dtype.bitwidth}",
            )
            intp = count.type

            def place(r: int, v: int) -> Any:
                offset = builder.add(builder.mul(pitch, intp(r)), intp(v * wide.count))
                return cgutils.gep(builder, c0, offset)

            places = [place(r, v) for r in range(rows) for v in range(vectors)]
            lines = [builder.mul(row, intp(r)) for r in range(rows)]
            entry = builder.block
            loop = builder.append_basic_block("tile.loop")
            done = builder.append_basic_block("tile.done")
            builder.branch(loop)
            builder.position_at_end(loop)
            left = builder.phi(intp)
            pa, pb = builder.phi(a0.type), builder.phi(b0.type)
            sums = [builder.phi(wide) for _ in places]
            bs = [
                read(builder, cgutils.gep(builder, pb, intp(v * wide.count)), wide, width)
                for v in range(vectors)
            ]
            after = []
            for r in range(rows):
                one = builder.load(cgutils.gep(builder, pa, lines[r]))
                factor = splat(builder, one, wide.count)
                after += [
                    builder.call(fused, [factor, bs[v], sums[r * vectors + v]])
                    for v in range(vectors)
                ]
            next_left = builder.sub(left, intp(1))
            next_a, next_b = cgutils.gep(builder, pa, step), cgutils.gep(builder, pb, jump)
            left.add_incoming(count, entry)
            left.add_incoming(next_left, loop)
            for phi, start, following in ((pa, a0, next_a), (pb, b0, next_b)):
                phi.add_incoming(start, entry)
                phi.add_incoming(following, loop)
            for phi, following in zip(sums, after, strict=True):
                phi.add_incoming(wide(None), entry)
                phi.add_incoming(following, loop)
            more = builder.icmp_signed(">", next_left, intp(0))
            builder.cbranch(more, loop, done)
            builder.position_at_end(done)
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
