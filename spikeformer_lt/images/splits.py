"""Train, validation and test images: cut by hashes, checked for overlap, with a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError, one_of
from spikeformer_lt.images.loader import ArrayImages
from spikeformer_lt.rng import hashed
from spikeformer_lt.splits import VAL_FRACTION as VAL_FRACTION
from spikeformer_lt.splits import Splits as Splits
from spikeformer_lt.splits import exact_fraction, held_out, in_proportion, report_shared


def make_splits(
    name: str,
    pool: ArrayImages,
    test: ArrayImages,
    *,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
    augment: str = "none",
) -> Splits:
    """Cut the validation part from `pool` and put the three parts together.

    The keywords are those of `DataOptions`. With `limit_train` validation shrinks by the same
    factor, to one image a class at least, and keeps what a full run validates on.

    Raises:
        ConfigError: an option out of range.
        DataError: parts of different shape, a class without a training image, or, with "refuse",
            shared images.
    """
    one_of("duplicates", duplicates, ("report", "refuse"))
    if pool.images.shape[1:] != test.images.shape[1:] or pool.num_classes != test.num_classes:
        raise DataError(
            f"{name}: train has images {list(pool.images.shape[1:])} of {pool.num_classes} classes,"
            f" test {list(test.images.shape[1:])} of {test.num_classes}; they must agree"
        )
    height, width = pool.images.shape[2:]
    if height != width:
        raise DataError(f"{name}: images of {height} x {width} pixels; they must be square")
    lost = sorted(set(range(pool.num_classes)) - set(pool.labels.tolist()))
    if lost:
        raise DataError(f"{name}: no training image of class {lost[:10]}; {len(lost)} missing")
    kept, held = hashed_validation(name, pool.labels, val_fraction)
    if limit_train is not None:
        least, most = pool.num_classes, len(kept)
        rule = f"{least} to {most}, or leave it out"
        check(least <= limit_train <= most, "limit_train", limit_train, rule)
        left = min(len(held), max(least, round(Fraction(len(held) * limit_train, len(kept)))))
        kept = kept[hashed_subset(name, pool.labels[kept], limit_train, ids=kept)]
        held = held[hashed_subset(name, pool.labels[held], left, ids=held)]
    if limit_test is not None:
        rule = f"1 to {len(test)}, or leave it out"
        check(1 <= limit_test <= len(test), "limit_test", limit_test, rule)
        test = test.take(hashed_subset(f"{name}/test", test.labels, limit_test))
    train, val = pool.take(kept, f"{name} train"), pool.take(held, f"{name} val")
    parts: dict[str, Any] = {"train": train, "val": val, "test": test}
    for first, second in combinations(parts.values(), 2):
        shared = shared_images(first, second)
        if shared:
            one, other = int(first.indices[shared[0][0]]), int(second.indices[shared[0][1]])
            text = f"{len(shared)} images of {second.name} are in {first.name} too, pixel for pixel"
            report_shared(f"{text}; the first: {other} is {one} of the source", duplicates)
    return Splits(
        name, parts["train"], parts["val"], parts["test"],
        num_classes=pool.num_classes, in_channels=pool.images.shape[1],
        image_size=height, mean=pool.mean, std=pool.std, kind="static", augment=augment,
        split_sha256=split_sha256({k: (part.indices, part.labels) for k, part in parts.items()}),
    )  # fmt: skip


def hashed_validation(
    name: str, labels: Tensor, fraction: float = VAL_FRACTION, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Split samples into two parts, class by class, by the hash of (name, seed, index).

    Return positions (kept, held out), int64, ascending; `splits.held_out` tells how many. If every
    class is too small to give a sample away, it is a DataError.
    """
    listed = labels.tolist()
    found = held_out(listed, exact_fraction("fraction", fraction), lambda i: hashed(name, seed, i))
    if not found:
        raise DataError(
            f"{name}: fraction={fraction} of no class is a whole sample ({len(labels)} samples in "
            f"{len(set(listed))} classes); give more samples or a larger fraction"
        )
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[found] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def hashed_subset(
    name: str, labels: Tensor, count: int, seed: int = 0, ids: Tensor | None = None
) -> Tensor:
    """Choose `count` samples with the classes in proportion, by the order of `hashed_validation`.

    Return positions, int64, ascending; a sample is hashed by its number in `ids`, or its own.
    """
    check(1 <= count <= len(labels), "count", count, f"{name} has 1 to {len(labels)} samples")
    numbers = list(range(len(labels))) if ids is None else ids.tolist()
    chosen = in_proportion(labels.tolist(), count, lambda i: hashed(name, seed, numbers[i]))
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def split_sha256(parts: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Return the fingerprint of {part: (indices, labels)}: 64 hex digits, order of parts aside."""
    state = hashlib.sha256()
    for part in sorted(parts):
        for values in parts[part]:
            state.update(f"{part} {len(values)}\n".encode())
            state.update(values.to(torch.int64).numpy().astype("<i8").tobytes())
    return state.hexdigest()


def shared_images(first: ArrayImages, second: ArrayImages) -> list[tuple[int, int]]:
    """Return (position in `first`, position in `second`) of images with the same pixels."""
    places = {digest: position for position, digest in reversed([*enumerate(first.digests)])}
    return [(places[d], position) for position, d in enumerate(second.digests) if d in places]
