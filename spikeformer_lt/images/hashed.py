"""Which samples go where: decided by hashes of their numbers, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from spikeformer_lt.errors import ConfigError, DataError

VAL_FRACTION = 0.1  # part of the training images that is validation, by the package's convention


def hashed_validation(
    name: str, labels: Tensor, fraction: float = VAL_FRACTION, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Split samples into two parts, class by class, by the hash of (name, seed, index).

    Of each class with n samples exactly ``round(fraction * n)`` (half up) go to the second part,
    but never all; which ones depends on nothing but their hashes.

    Args:
        name: of the data set; another name gives another order.
        labels: int64 [N].
        fraction: part of each class that is held out, in (0, 1).
        seed: another seed gives another order.

    Returns:
        Positions (kept, held out), int64, each ascending.

    Raises:
        ConfigError: `fraction` outside (0, 1).
        DataError: every class is too small to give a sample away.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction={fraction!r} is not allowed: it must lie between 0 and 1")
    exact = Fraction(str(fraction))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for members in _by_class(name, labels, seed, range(len(labels))).values():
        count = (2 * exact * len(members) + 1) // 2
        held[members[: min(count, len(members) - 1)]] = True
    if not held.any():
        raise DataError(
            f"{name}: fraction={fraction} of no class is a whole sample ({len(labels)} samples in "
            f"{len(set(labels.tolist()))} classes); give more samples or a larger fraction"
        )
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def hashed_subset(
    name: str, labels: Tensor, count: int, seed: int = 0, ids: Tensor | None = None
) -> Tensor:
    """Choose `count` samples with the classes in proportion, by the order of `hashed_validation`.

    A larger count keeps what a smaller one chose.

    Args:
        name: of the data set.
        labels: int64 [N].
        count: samples to keep, in [1, N].
        seed: another seed gives another order.
        ids: int64 [N], the index that each sample is hashed by; default 0..N-1.

    Returns:
        Positions, int64, ascending.

    Raises:
        ConfigError: `count` out of range.
    """
    if not 1 <= count <= len(labels):
        raise ConfigError(f"count={count} is not allowed: {name} has 1 to {len(labels)} samples")
    hashed_by = range(len(labels)) if ids is None else ids.tolist()
    turns = []
    for label, members in _by_class(name, labels, seed, hashed_by).items():
        # Member p of a class of n has its turn at (p + 1/2) / n: classes of any size advance alike.
        turns += [((2 * p + 1) / (2 * len(members)), label, i) for p, i in enumerate(members)]
    return torch.tensor(sorted(i for _, _, i in sorted(turns)[:count]), dtype=torch.int64)


def _by_class(
    name: str, labels: Tensor, seed: int, ids: range | list[int]
) -> Mapping[int, list[int]]:
    """Return {class: its positions in the order of their hashes}."""
    order = sorted(
        range(len(labels)),
        key=lambda i: hashlib.sha256(json.dumps([name, seed, ids[i]]).encode()).digest(),
    )
    listed = labels.tolist()
    members: dict[int, list[int]] = {label: [] for label in sorted(set(listed))}
    for position in order:
        members[listed[position]].append(position)
    return members


def split_sha256(parts: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Return the fingerprint of {part: (indices, labels)}: 64 hex digits, order of parts aside."""
    state = hashlib.sha256()
    for part in sorted(parts):
        for values in parts[part]:
            state.update(f"{part} {len(values)}\n".encode())
            state.update(values.to(torch.int64).numpy().astype("<i8").tobytes())
    return state.hexdigest()
