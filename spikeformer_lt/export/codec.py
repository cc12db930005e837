"""An exact entropy coder for bits: adaptive counts, an arithmetic coder of 32-bit integers.

Only integers are computed, so that every machine writes the same bytes. A stream of n bits, k of
them set, costs n H(k/n) + log2(n)/2 bits and a byte, for each context that is counted apart.

Source: arithmetic coding of Rissanen & Langdon 1979; the estimator of Krichevsky & Trofimov 1981.

Floats without loss in fewer bits: signs, exponents and leading digits are entropy-coded.

The floats of one tensor are near each other, so that of their first bits few combinations occur and
those unevenly. Each of the first `depth` bits is counted in a context of all bits before it; an
adaptive count of a context seen once costs exactly the bit, so that depth costs next to nothing.
The remaining bits are as good as random and are stored as they are.

What the packed forms of a tensor have in common: gains, signs, contexts, hashes.
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

from spikeformer_lt.layers.subnet import binary_gains

__all__ = [
    "binary_gains",
    "contexts_of",
    "decode_bits",
    "decode_values",
    "digest_of",
    "encode_bits",
    "encode_values",
    "from_signs",
]

log = logging.getLogger(__name__)
Bytes = NDArray[np.uint8]


def _split(low, high, ones, count):
    """Largest value of the part of [low, high] that stands for a set bit."""
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
    # The first bytes differ, so that this one, with zeros after it, lies in the interval.
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
    """The loops, compiled where numba can; without it they run 300 times slower."""
    if not _compiled:
        loops: dict[str, Callable[..., Any]] = {
            "split": _split,
            "encode": _encode,
            "decode": _decode,
        }
        try:
            import numba

            loops = {name: numba.njit(cache=True)(loop) for name, loop in loops.items()}
        except Exception as fault:
            log.warning("masks are coded without numba, slowly: %s", fault)
        _compiled.update(loops)
    return _compiled


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
    """Give back the `count` bits that `encode_bits` coded with the same contexts.

    Other data give other bits, never an error: whoever calls has checked a hash.
    """
    loops = _loops()
    bits = np.empty(count, np.uint8)
    args = (stride, 1 << depth if depth else contexts, depth)
    loops["decode"](data, bits, *args, loops["split"])
    return bits


SMALL = 1 << 16  # values; above, only one depth is tried
DEEPEST = 14
_EXPONENTS = {torch.float32: 8, torch.bfloat16: 8, torch.float16: 5}


def encode_values(values: Tensor) -> tuple[int, Bytes] | None:
    """Code the bits of floats.

    Args:
        values: [n] float32, float16 or bfloat16.

    Returns:
        The depth and the bytes; None where these are no fewer than those of the values.
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
    """Give back the `count` values that `encode_values` coded; None where `data` cannot be theirs.

    Data of the right length that are not theirs give other values: whoever calls checks a hash.
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


def _bits(values: Tensor) -> Bytes:
    """Bits of each value, [n, width], sign first."""
    size = values.element_size()
    whole = values.contiguous().view(torch.int32 if size == 4 else torch.int16).numpy()
    ordered = whole.astype(f">i{size}").view(np.uint8).reshape(len(values), size)
    bits: Bytes = np.unpackbits(ordered, axis=1)
    return bits


def _rest(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def digest_of(value: Tensor, kept: Tensor | None) -> str:
    """sha256 of dtype, shape, values and mask."""
    digest = hashlib.sha256(f"{value.dtype} {list(value.shape)}\n".encode())
    if value.numel():
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if kept is not None:
        digest.update(np.packbits(kept.numpy().reshape(-1)).data)
    return digest.hexdigest()


def from_signs(kept: Tensor, negative: Tensor, gains: Tensor) -> Tensor:
    """Weights of the sign of each kept entry times the gain of the layer or of its filter."""
    value = torch.zeros(kept.shape)
    value[kept] = torch.where(negative, -1.0, 1.0)
    return value * gains.view(-1, *[1] * (kept.ndim - 1)) + 0.0  # which turns -0.0 into 0.0


_SHAPES: dict[str, Callable[[Sequence[int]], tuple[int, int]]] = {
    "one": lambda shape: (1, 1),
    "out": lambda shape: (max(1, math.prod(shape[1:])), max(1, shape[0])),
    "in": lambda shape: (max(1, math.prod(shape[2:])), max(1, shape[1])),
}


def contexts_of(code: str, shape: Sequence[int]) -> tuple[int, int]:
    """Stride and number of the contexts that a code counts bits in."""
    return _SHAPES[code](shape)
