"""What the packed forms of a tensor have in common: gains, signs, contexts, hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["binary_gains", "contexts_of", "digest_of", "from_signs"]


def binary_gains(weight: Tensor, kept: Tensor) -> Tensor | None:
    """Gain of the layer [1], or of each output filter [out], if the kept weights are binary."""
    if weight.ndim < 2 or weight.numel() == 0:
        return None
    size = torch.where(kept, weight.abs(), weight.new_zeros(())).flatten(1)
    top = size.amax(1)
    if not bool(((size == top[:, None]) | ~kept.flatten(1)).all()):
        return None
    found = top[kept.flatten(1).any(1)]
    if len(found) == 0 or bool((found == found[0]).all()):
        return found[:1] if len(found) else weight.new_zeros(1)
    # As many gains as weights would say nothing shorter than the weights themselves.
    return top if 2 * len(top) <= int(kept.sum()) else None


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
