"""Blocks of matrix products: rows of tiles whose sums stay in registers.

A panel is a group of neighbouring columns, `vectors` registers wide. Tiles are as tall as leaves
registers for them: 32 of 64 bytes, else 16 of 32.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from spikeformer_lt.layers.kernels.lanes import BYTES, at, read, splat, vector, write
from spikeformer_lt.layers.kernels.vector import inner

__all__ = ["down", "make_tile", "panel_vectors", "straight"]


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
