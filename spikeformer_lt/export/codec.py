"""Lossless codes of packed tensors: entropy-coded bits and floats, gains and signs of weights.

Bits are coded by an arithmetic coder of 32-bit integers with adaptive counts. Only integers are
computed, so every machine writes the same bytes. A stream of n bits, k of them set, costs
n H(k/n) + log2(n)/2 bits and a byte per context.

Source: arithmetic coding of Rissanen & Langdon 1979; the estimator of Krichevsky & Trofimov 1981.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "contexts_of",
    "decode_bits",
    "decode_values",
    "digest_of",
    "encode_bits",
    "encode_values",
    "from_signs",
]

Bytes = NDArray[np.uint8]
SMALL = 1 << 16  # values; of larger tensors only one depth is tried
DEEPEST = 14
_EXPONENTS = {torch.float32: 8, torch.bfloat16: 8, torch.float16: 5}


def encode_bits(bits: Bytes, stride: int = 1, contexts: int = 1, depth: int = 0) -> Bytes:
    """Code a stream of bits.

    Args:
        bits: zeros and ones, [n] uint8.
        stride: bit i is counted in context ``(i // stride) % contexts``.
        contexts: number of contexts, each with a frequency of its own.
        depth: if not 0, the bits are numbers of `depth` bits, highest first, and each bit is
            counted in a context of those before it in its number.

    Returns:
        At most ``17 * n / 8 + 2`` bytes; n itself is not among them.
    """
    loops = _loops()
    out = np.empty(17 * bits.size // 8 + 2, np.uint8)
    args = (stride, 1 << depth if depth else contexts, depth)
    size = loops["encode"](bits, *args, out, loops["split"])
    return out[:size].copy()


def decode_bits(
    data: Bytes, count: int, stride: int = 1, contexts: int = 1, depth: int = 0
) -> Bytes:
    """Decode `count` bits of `encode_bits`, with the same contexts.

    Foreign data decode to other bits without an error, so the caller must check a hash.
    """
    loops = _loops()
    bits = np.empty(count, np.uint8)
    args = (stride, 1 << depth if depth else contexts, depth)
    loops["decode"](data, bits, *args, loops["split"])
    return bits


def encode_values(values: Tensor) -> tuple[int, Bytes] | None:
    """Code floats without loss.

    Values of one tensor are of similar size, so their leading bits are unevenly distributed. Each
    of the first `depth` bits is coded in the context of the bits before it; the remaining bits are
    nearly random and are stored as they are.

    Args:
        values: [n] float32, float16 or bfloat16.

    Returns:
        The depth and the bytes, or None if plain values are as short.
    """
    width = 8 * values.element_size()
    bits = _bits(values)
    first = 1 + _EXPONENTS[values.dtype]
    deepest = min(DEEPEST, width) if len(bits) <= SMALL else first
    best: tuple[int, Bytes] | None = None
    for depth in range(first, deepest + 1):
        coded = encode_bits(bits[:, :depth].reshape(-1), depth=depth)
        size = len(coded) + _rest(len(bits), width - depth)
        if size < (values.nbytes if best is None else len(best[1])):
            best = depth, np.concatenate([coded, np.packbits(bits[:, depth:])])
    return best


def decode_values(data: Bytes, depth: int, count: int, dtype: torch.dtype) -> Tensor | None:
    """Decode `count` values of `encode_values`; None if `data` has an impossible length or depth.

    Foreign data of a possible length decode to other values, so the caller must check a hash.
    """
    width = 8 * dtype.itemsize
    rest = _rest(count, width - depth)
    if not 0 < depth <= min(DEEPEST, width) or len(data) < rest:
        return None
    cut = len(data) - rest
    bits = np.empty((count, width), np.uint8)
    top = decode_bits(np.ascontiguousarray(data[:cut]), count * depth, depth=depth)
    bits[:, :depth] = top.reshape(count, depth)
    low = np.unpackbits(data[cut:], count=count * (width - depth))
    bits[:, depth:] = low.reshape(count, width - depth)
    whole = np.packbits(bits, axis=1).view(f">u{width // 8}").reshape(-1)
    native = whole.astype(f"=u{width // 8}")
    return torch.from_numpy(native.view(np.int32 if width == 32 else np.int16)).view(dtype)


def digest_of(value: Tensor, kept: Tensor | None) -> str:
    """sha256 of dtype, shape, values and mask."""
    digest = hashlib.sha256(f"{value.dtype} {list(value.shape)}\n".encode())
    if value.numel():
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if kept is not None:
        digest.update(np.packbits(kept.numpy().reshape(-1)).data)
    return digest.hexdigest()


def from_signs(kept: Tensor, negative: Tensor, gains: Tensor) -> Tensor:
    """Weights: the sign of each kept entry times the gain of its layer or filter."""
    value = torch.zeros(kept.shape)
    value[kept] = torch.where(negative, -1.0, 1.0)
    return value * gains.view(-1, *[1] * (kept.ndim - 1)) + 0.0  # turns -0.0 into 0.0


def contexts_of(code: str, shape: Sequence[int]) -> tuple[int, int]:
    """Stride and number of the contexts of a code: "one", or one per "out" or "in" channel."""
    if code == "one":
        return 1, 1
    axis = {"out": 0, "in": 1}[code]
    return max(1, math.prod(shape[axis + 1 :])), max(1, shape[axis])


def _bits(values: Tensor) -> Bytes:
    """Bits of each value, [n, width], sign first."""
    size = values.element_size()
    whole = values.contiguous().view(torch.int32 if size == 4 else torch.int16).numpy()
    ordered = whole.astype(f">i{size}").view(np.uint8).reshape(len(values), size)
    bits: Bytes = np.unpackbits(ordered, axis=1)
    return bits


def _rest(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _split(low, high, ones, count):
    """Largest value of the part of [low, high] that codes a set bit."""
    p = ((2 * ones + 1) << 16) // (2 * count + 2)
    p = min(max(p, 1), 65535)
    span = high - low
    return low + (span >> 16) * p + (((span & 0xFFFF) * p) >> 16)


def _encode(bits, stride, contexts, depth, out, split):
    ones = np.zeros(contexts, np.int64)
    count = np.zeros(contexts, np.int64)
    low, high, size, node = 0, 0xFFFFFFFF, 0, 1
    for i in range(bits.size):
        c = node if depth else (i // stride) % contexts
        middle = split(low, high, ones[c], count[c])
        if bits[i]:
            high = middle
            ones[c] += 1
        else:
            low = middle + 1
        count[c] += 1
        if depth:
            node = 2 * node + int(bits[i]) if (i + 1) % depth else 1
        while (low ^ high) >> 24 == 0:
            out[size] = high >> 24
            size += 1
            low = (low << 8) & 0xFFFFFFFF
            high = ((high << 8) & 0xFFFFFFFF) | 255
    # The first bytes of low and high differ, so this byte, zeros after it, is in the interval.
    out[size] = (low >> 24) + 1
    return size + 1


def _decode(data, bits, stride, contexts, depth, split):
    ones = np.zeros(contexts, np.int64)
    count = np.zeros(contexts, np.int64)
    low, high, code, place, node = 0, 0xFFFFFFFF, 0, 0, 1
    for _ in range(4):
        code = (code << 8) | (int(data[place]) if place < data.size else 0)
        place += 1
    for i in range(bits.size):
        c = node if depth else (i // stride) % contexts
        middle = split(low, high, ones[c], count[c])
        if code <= middle:
            high = middle
            ones[c] += 1
            bits[i] = 1
        else:
            low = middle + 1
            bits[i] = 0
        count[c] += 1
        if depth:
            node = 2 * node + int(bits[i]) if (i + 1) % depth else 1
        while (low ^ high) >> 24 == 0:
            low = (low << 8) & 0xFFFFFFFF
            high = ((high << 8) & 0xFFFFFFFF) | 255
            code = ((code << 8) & 0xFFFFFFFF) | (int(data[place]) if place < data.size else 0)
            place += 1
    return 0


_compiled: dict[str, Callable[..., Any]] = {}


def _loops() -> dict[str, Callable[..., Any]]:
    """The coder's loops, compiled by numba if possible; plain Python is 300 times slower."""
    if not _compiled:
        loops: dict[str, Any] = {"split": _split, "encode": _encode, "decode": _decode}
        try:
            import numba

            loops = {name: numba.njit(cache=True)(loop) for name, loop in loops.items()}
        except Exception as fault:
            logging.getLogger(__name__).warning("masks are coded without numba, slowly: %s", fault)
        _compiled.update(loops)
    return _compiled
