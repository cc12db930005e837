"""Which samples go where: decided by hashes of their numbers, the same on every machine.

Train, validation and test: fixed by hashes, checked for overlap, with a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images.arrays import ArrayImages, ImageDataset

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


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set and what a model must know of them.

    Attributes:
        name: name of the data set, as users type it.
        train: what training sees.
        val: picks checkpoints, epochs and tickets.
        test: evaluated once, at the end.
        num_classes: number of classes, K.
        in_channels: channels of a sample, C.
        image_size: height and width of a sample, in pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        kind: "static" images or "events".
        split_sha256: fingerprint of the three index lists and their labels.
        augment: name of the usual training augmentation; see `Augment.standard`.
    """

    name: str
    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: Literal["static", "events"]
    split_sha256: str
    augment: str = "none"


def shared_images(first: ArrayImages, second: ArrayImages) -> list[tuple[int, int]]:
    """Return (position in `first`, position in `second`) of images with the same pixels."""
    places: dict[bytes, int] = {}
    for position, digest in enumerate(first.digests()):
        places.setdefault(digest, position)
    found = ((places.get(digest), position) for position, digest in enumerate(second.digests()))
    return [(one, other) for one, other in found if one is not None]


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

    The validation part does not depend on the limits: a limited run never trains on an image that
    a full run validates on.

    Args:
        name: of the data set.
        pool: its training images.
        test: its test images.
        val_fraction: part of each class of `pool` that becomes validation, in (0, 1).
        limit_train: images left to train on, classes in proportion; validation shrinks by the same
            factor, to one image a class at least. None keeps all.
        limit_test: images left to test on, classes in proportion. None keeps all.
        duplicates: what to do if parts share images, "report" (log the counts) or "refuse".
        augment: name of the usual training augmentation.

    Raises:
        ConfigError: an option out of range.
        DataError: parts of different shape, a class without a training image, or, with "refuse",
            shared images.
    """
    if duplicates not in ("report", "refuse"):
        raise ConfigError(f"duplicates={duplicates!r} is not allowed: use report or refuse")
    if pool.images.shape[1:] != test.images.shape[1:] or pool.num_classes != test.num_classes:
        raise DataError(
            f"{name}: train has images {list(pool.images.shape[1:])} of {pool.num_classes} classes,"
            f" test {list(test.images.shape[1:])} of {test.num_classes}; they must agree"
        )
    height, width = pool.images.shape[2:]
    if height != width:
        raise DataError(f"{name}: images of {height} x {width} pixels; they must be square")
    missing = sorted(set(range(pool.num_classes)) - set(pool.labels.tolist()))
    if missing:
        raise DataError(
            f"{name}: no training image of class {missing[:10]}; {len(missing)} missing"
        )
    kept, held = hashed_validation(name, pool.labels, val_fraction)
    if limit_train is not None:
        least = pool.num_classes
        _check_limit("limit_train", limit_train, least, len(kept))
        left = min(len(held), max(least, round(Fraction(len(held) * limit_train, len(kept)))))
        kept = kept[hashed_subset(name, pool.labels[kept], limit_train, ids=kept)]
        held = held[hashed_subset(name, pool.labels[held], left, ids=held)]
    if limit_test is not None:
        _check_limit("limit_test", limit_test, 1, len(test))
        test = test.take(hashed_subset(f"{name}/test", test.labels, limit_test))
    train, val = pool.take(kept, f"{name} train"), pool.take(held, f"{name} val")
    assert not set(train.indices.tolist()) & set(val.indices.tolist())
    _report_shared(name, train, val, test, refuse=duplicates == "refuse")
    parts = {"train": train, "val": val, "test": test}
    return Splits(
        name=name,
        train=train,
        val=val,
        test=test,
        num_classes=pool.num_classes,
        in_channels=pool.images.shape[1],
        image_size=height,
        mean=pool.mean,
        std=pool.std,
        kind="static",
        split_sha256=split_sha256({k: (part.indices, part.labels) for k, part in parts.items()}),
        augment=augment,
    )


def _check_limit(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{field}={value} is not allowed: {least} to {most}, or leave it out")


def _report_shared(
    name: str, train: ArrayImages, val: ArrayImages, test: ArrayImages, refuse: bool
) -> None:
    for first, second in ((train, val), (train, test), (val, test)):
        shared = shared_images(first, second)
        if not shared:
            continue
        one, other = shared[0]
        text = (
            f"{len(shared)} images of {second.name} are in {first.name} too, pixel for pixel; the "
            f"first: {int(second.indices[other])} is {int(first.indices[one])} of the source"
        )
        if refuse:
            raise DataError(f"{text}; to accept them use duplicates=report")
        log.warning("%s", text)
