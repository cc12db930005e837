"""Linear maps of rows in which few values are not 0: each event adds the weights that lead from it.

A whole number v is v events. The places of a row's events are listed once; then a panel of the
weights, 32 outputs wide, is added up for row after row. Inputs are summed in chunks whose panels
stay in the second cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeformer_lt.layers.kernels.bits import checked
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
from spikeformer_lt.layers.kernels.simd import PROCESSOR, loop, read, splat, vector, write

# Events of a value on average, up to which they are taken. A Zen 4 gains 2.1x at 0.25 and 1.5x at
# 0.4, a Zen 5 1.6 to 3.0x and 1.1 to 2.0x; elsewhere nothing was measured, and AVX-512 that
# multiplies twice a cycle may gain less.
RATE = 0.2 if PROCESSOR == "avx512" else 0.3
_PANEL = 32  # outputs that are summed together
_HALF = _PANEL // 2
_CHUNK = 432  # inputs whose weights for a panel stay near
LEAST = 1 << 22  # products, from which the lists are repaid
_STEP = 8  # events that are added without a look at the end of their list
_ROWS = 256  # rows whose lists are held at a time
_SAMPLE = 32  # rows whose events are counted
_EIGHT = ir.VectorType(ir.IntType(16), _STEP)


def _order() -> Array:
    """Places of the ones of each byte, and how many they are: [256, 9] uint16."""
    found = np.zeros((256, _STEP + 1), np.uint16)
    for byte in range(256):
        places = [i for i in range(_STEP) if byte >> i & 1]
        found[byte, : len(places)], found[byte, _STEP] = places, len(places)
    return found.reshape(-1)


ORDER = _order()


@intrinsic
def noted(_context, x, i, level, order, base, index, n):
    """Write base + c to index[n], ... for x[i + c] > level, c < 8; how many they are."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        wide = vector(kinds[0].dtype, _STEP)
        values = read(
            builder, at(context, builder, kinds[0], *args[:2]), wide, kinds[0].dtype.bitwidth // 8
        )
        more = builder.fcmp_ordered(">", values, splat(builder, args[2], _STEP))
        byte = builder.zext(builder.bitcast(more, ir.IntType(8)), args[1].type)
        line = builder.mul(byte, byte.type(_STEP + 1))
        start = at(context, builder, kinds[3], args[3], line)
        short = builder.trunc(args[4], ir.IntType(16))
        places = builder.add(read(builder, start, _EIGHT, 2), splat(builder, short, _STEP))
        write(builder, places, at(context, builder, kinds[5], args[5], args[6]), 2)
        count = builder.load(cgutils.gep(builder, start, ir.IntType(64)(_STEP)))
        return builder.zext(count, args[1].type)

    whole = types.intp
    return whole(x, whole, x.dtype, order, whole, index, whole), generate


@intrinsic
def gathered(_context, start, s, panel, p, index, first, last, out, o):
    """out[o + c] = start[s + c] + sum over e of panel[p + 32 index[e] + c], c < 32.

    The entries from `first` to `last` are a multiple of 8.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds, whole = signature.args, ir.IntType(64)
        half, size = vector(kinds[2].dtype, _HALF), kinds[2].dtype.bitwidth // 8
        source = at(context, builder, kinds[0], args[0], args[1])
        rows = at(context, builder, kinds[2], args[2], args[3])
        target = at(context, builder, kinds[7], args[7], args[8])

        def halves(pointer: Any) -> list[Any]:
            return [
                read(builder, cgutils.gep(builder, pointer, whole(h * _HALF)), half, size)
                for h in range(2)
            ]

        def body(block: Any, sums: Any) -> Any:
            sums, e = list(sums), builder.add(args[5], builder.mul(block, whole(_STEP)))
            for k in range(_STEP):
                place = at(context, builder, kinds[4], args[4], builder.add(e, whole(k)))
                row = builder.mul(builder.zext(builder.load(place), whole), whole(_PANEL))
                chain = 2 * (k % 2)
                for h, part in enumerate(halves(cgutils.gep(builder, rows, row))):
                    sums[chain + h] = builder.fadd(sums[chain + h], part)
            return sums

        blocks = builder.lshr(builder.sub(args[6], args[5]), whole(_STEP.bit_length() - 1))
        begin = [*halves(source), half(None), half(None)]
        sums = loop(builder, whole(0), blocks, begin, body)
        for h in range(2):
            total = builder.fadd(sums[h], sums[2 + h])
            write(builder, total, cgutils.gep(builder, target, whole(h * _HALF)), size)
        return context.get_dummy_value()

    whole = types.intp
    own = (start, whole, panel, whole, index, whole, whole, out, whole)
    return types.void(*own), generate


@outer
def count_kernel(lo, hi, sums, x, wide, apart):
    """Sum of the rows lo to hi of x, which are `apart`."""
    for r in range(lo, hi):
        for i in range(r * apart, r * apart + wide):
            sums[0] += get(x, i)


@inner()
def _odd(x, i, count, most):
    """Whether a value is no whole number from 0 to `most`."""
    wrong = np.int32(0)
    for c in range(i, i + count):
        v = get(x, c)
        whole = np.int32(v)
        wrong |= np.int32((x.dtype.type(whole) != v) | (np.uint32(whole) > most))
    return wrong


@outer
def product_kernel(lo, hi, x, channels, parts, levels, order, panel, shift, out, made, odd):
    """Rows lo to hi of out, the products of rows x, and whether they are odd.

    The panels of each of `parts` parts of the channels end with a row of 0.
    """
    wide = -(-channels // parts)
    index = np.empty(_ROWS * (wide * levels + 8) + 8, np.uint16)
    first = np.empty(_ROWS + 1, np.int64)
    last = made // 32 * 32
    edge = np.empty(_ROWS * 32 if last < made else 0, x.dtype)
    for block in range(lo, hi, _ROWS):
        count = min(_ROWS, hi - block)
        for part in range(parts):
            n = 0
            size = min(wide, channels - part * wide)
            for r in range(count):
                first[r] = n
                i = (block + r) * channels + part * wide
                if _odd(x, i, size, np.uint32(levels)):
                    odd[0] = 1
                for level in range(levels):
                    before = n
                    for c in range(0, size - 7, 8):
                        n += noted(x, i + c, x.dtype.type(level), order, c, index, n)
                    for c in range(size - size % 8, size):
                        index[n] = c
                        n += x[i + c] > level
                    if n == before:
                        break
                while (n - first[r]) % 8:
                    index[n] = wide
                    n += 1
            first[count] = n
            for k in range(0, made, 32):
                p = (k // 32 * parts + part) * (wide + 1) * 32
                to, o, jump = (edge, 0, 32) if k == last else (out, block * made + k, made)
                for r in range(count):
                    a, b = first[r], first[r + 1]
                    if part == 0:
                        gathered(shift, k, panel, p, index, a, b, to, o)
                    else:
                        gathered(to, o, panel, p, index, a, b, to, o)
                    o += jump
        for r in range(count if last < made else 0):
            for c in range(made - last):
                out[(block + r) * made + last + c] = edge[r * 32 + c]


@outer
def bytes_kernel(lo, hi, x, out, odd):
    """Bytes of whole numbers from 0 to 255, and whether some are none."""
    wrong = np.int32(0)
    for i in range(lo, hi):
        v = get(x, i)
        whole = np.int32(v)
        put0(out, i, np.uint8(whole))
        wrong |= np.int32((x.dtype.type(whole) != v) | (np.uint32(whole) > np.uint32(255)))
    if wrong:
        odd[0] = 1


def as_bytes(x: Tensor) -> Tensor | None:
    """Bytes of contiguous whole numbers x from 0 to 255; None if a value is no such number."""
    out, odd = torch.empty(x.shape, dtype=torch.uint8, device="cpu"), np.zeros(1, np.int32)
    args = flat(x), out.numpy().reshape(-1), odd
    run(bytes_kernel, cut(x.numel(), x.numel(), 64), args)
    return None if odd[0] else repeat(checked, out, odd)


@dataclass(frozen=True, eq=False)
class Panels:
    """Weights [out, in] and biases in the order that the kernel reads."""

    values: Array  # [panels, parts, inputs of a part and one row of zeros or more, 32]
    shift: Array  # [32 panels], added
    made: int
    channels: int
    parts: int  # of the inputs

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Self:
        """Those of a linear map."""
        made, channels = weight.shape
        parts, count = -(-channels // _CHUNK), -(-made // _PANEL)
        wide = -(-channels // parts)
        padded = weight.new_zeros(count * _PANEL, parts * wide)
        padded[:made, :channels] = weight.detach()
        shift = weight.new_zeros(count * _PANEL)
        shift[:made] = bias.detach()
        values = weight.new_zeros(count, parts, wide + 1, _PANEL)
        values[:, :, :-1] = padded.view(count, _PANEL, parts, wide).permute(0, 2, 3, 1)
        return cls(flat(values), flat(shift), made, channels, parts)

    def __call__(self, x: Tensor, levels: int) -> Tensor | None:
        """Currents [..., out] of rows x [..., in] of whole numbers from 0 to `levels`.

        None if a value is no such number.
        """
        out, odd = new(x, (*x.shape[:-1], self.made)), np.zeros(1, np.int32)
        args = (
            flat(x), self.channels, self.parts, levels, ORDER, self.values, self.shift, flat(out),
            self.made, odd,
        )  # fmt: skip
        run(product_kernel, cut(x.numel() // self.channels, x.numel() * self.made // 64, 16), args)
        return None if odd[0] else repeat(checked, out, odd)


def suits(x: Tensor, made: int) -> bool:
    """Whether lists are faster for rows x [..., in] and `made` outputs: few of a sample fired."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    if rows * channels * made < LEAST:
        return False
    count = min(rows, _SAMPLE)
    sums, most = np.zeros((1, 1), flat(x[:0]).dtype), RATE * count * channels
    step = rows // count  # odd, so that it meets other columns of a map each time
    args = (flat(x), channels, (step - (step % 2 == 0)) * channels)
    run(count_kernel, cut(count, 1, 1), args, sums)
    found = bool(sums[0, 0] <= most)
    repeat(_same, sums, most, found)
    return found


def _same(sums: Array, most: float, found: bool) -> None:
    if bool(sums[0, 0] <= most) != found:
        raise ReplayError("these values have more or fewer events than those of the recording")
