"""Vectors of floats as values of numba kernels: read, written, added, subtracted, multiplied.

A vector holds as many floats as a register of the processor that numba compiles for. Arrays are
flat, and indices are not checked.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, lower_builtin, type_callable

__all__ = ["BYTES", "gather", "load", "load_if", "scatter", "store"]
__all__ += ["at", "read", "splat", "vector", "write"]

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


def at(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to a place of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return cgutils.gep(builder, data, index)


def read(builder: Any, pointer: Any, kind: Any, align: int) -> Any:
    """The vector at a pointer."""
    found = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    found.align = align
    return found


def write(builder: Any, value: Any, pointer: Any, align: int) -> None:
    """Put a vector at a pointer."""
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
            if isinstance(a, _Lanes) and a == b:
                return a
            if isinstance(a, _Lanes) and isinstance(b, types.Float):
                return a
            return None

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


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
):
    _arithmetic(_operation, _instruction)
