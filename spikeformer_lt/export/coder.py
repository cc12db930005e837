"""An exact entropy coder for bits: adaptive counts, an arithmetic coder of 32-bit integers.

Only integers are computed, so that every machine writes the same bytes. A stream of n bits, k of
them set, costs n H(k/n) + log2(n)/2 bits and a byte, for each context that is counted apart.

Source: arithmetic coding of Rissanen & Langdon 1979; the estimator of Krichevsky & Trofimov 1981.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_bits", "encode_bits"]

_LOG = logging.getLogger(__name__)
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
            _LOG.warning("masks are coded without numba, slowly: %s", fault)
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
