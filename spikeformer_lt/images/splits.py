"""Train, validation and test: fixed by hashes, checked for overlap, with a fingerprint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images.arrays import ArrayImages, ImageDataset
from spikeformer_lt.images.hashed import (
    VAL_FRACTION,
    hashed_subset,
    hashed_validation,
    split_sha256,
)

_log = logging.getLogger(__name__)


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
        _log.warning("%s", text)
