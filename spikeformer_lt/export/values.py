"""Floats without loss in fewer bits: signs, exponents and leading digits are entropy-coded.

The floats of one tensor are near each other, so that of their first bits few combinations occur and
those unevenly. Each of the first `depth` bits is counted in a context of all bits before it; an
adaptive count of a context seen once costs exactly the bit, so that depth costs next to nothing.
The remaining bits are as good as random and are stored as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.export.coder import decode_bits, encode_bits

__all__ = ["decode_values", "encode_values"]

SMALL = 1 << 16  # values; above, only one depth is tried
DEEPEST = 14
_EXPONENTS = {torch.float32: 8, torch.bfloat16: 8, torch.float16: 5}
Bytes = NDArray[np.uint8]


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
