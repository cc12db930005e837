"""The three parts of an event data set, ready to become its `Splits`."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.cache import FrameCache, MemoryCache, source_of
from spikeformer_lt.events.dataset import MEAN, STD, EventFrames, Source
from spikeformer_lt.events.duplicates import find_shared
from spikeformer_lt.events.options import EventOptions
from spikeformer_lt.events.split import PARTS, Split, limit

_log = logging.getLogger(__name__)
_LARGEST_SIZE = 1024  # pixels a side


class SplitFields(TypedDict):
    """Fields of a data set's `Splits`, which lives beside the images."""

    name: str
    train: EventFrames
    val: EventFrames
    test: EventFrames
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: Literal["events"]
    split_sha256: str
    augment: str


def split_fields(
    split: Split,
    source: Source,
    options: EventOptions,
    *,
    image_size: int | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
    augment: str = "none",
) -> SplitFields:
    """Make the three parts of an event data set.

    Args:
        split: which recording is where.
        source: where they come from.
        options: framing, faults and files.
        image_size: height and width of a frame in pixels; None takes the sensor's longer side.
        limit_train: recordings left to train on, classes in proportion; validation shrinks by the
            same factor. None keeps all.
        limit_test: recordings left to test on. None keeps all.
        duplicates: what to do if a recording is in two parts, byte for byte: "report" or "refuse".
        augment: name of the usual training augmentation; see `EventAugment.standard`.

    Raises:
        ConfigError: an option out of range.
        DataError: a split file that does not fit, or, with "refuse", shared recordings.
    """
    if duplicates not in ("report", "refuse"):
        raise ConfigError(f"duplicates={duplicates!r} is not allowed: use report or refuse")
    size = max(source.sensor.height, source.sensor.width) if image_size is None else image_size
    if not 1 <= size <= _LARGEST_SIZE:
        raise ConfigError(f"image_size={size} is not allowed: 1 to {_LARGEST_SIZE} pixels")
    if options.split_file is not None:
        split = _with_file(split, Path(options.split_file))
    split = _limited(split, limit_train, limit_test)
    if source.root is not None:
        _report_shared(split, source.root, refuse=duplicates == "refuse")
    cache = _cache(split.name, source, options, size)
    parts = {
        part: EventFrames(
            f"{split.name} {part}",
            getattr(split, part),
            source,
            options,
            size,
            split.classes,
            cache,
        )
        for part in PARTS
    }
    if options.empty == "skip":
        parts = {part: _without_empty(data) for part, data in parts.items()}
        train, val, test = (parts[part].samples for part in PARTS)
        split = replace(split, train=train, val=val, test=test)
    _log.info("%s: split sha256 %s", split.name, split.sha256)
    return {
        "name": split.name,
        **parts,  # type: ignore[typeddict-item]
        "num_classes": len(split.classes),
        "in_channels": 2,
        "image_size": size,
        "mean": MEAN,
        "std": STD,
        "kind": "events",
        "split_sha256": split.sha256,
        "augment": augment,
    }


def _with_file(split: Split, path: Path) -> Split:
    if path.exists():
        return split.as_saved(path)
    split.save(path)
    _log.info("%s: split written to %s", split.name, path)
    return split


def _limited(split: Split, limit_train: int | None, limit_test: int | None) -> Split:
    if limit_train is not None:
        train = limit(split.name, split.train, limit_train)
        left = max(1, round(len(split.val) * len(train) / len(split.train)))
        val = limit(split.name, split.val, left)
        split = replace(split, train=tuple(train), val=tuple(val))
    if limit_test is not None:
        split = replace(split, test=tuple(limit(f"{split.name}/test", split.test, limit_test)))
    return split


def _report_shared(split: Split, root: Path, refuse: bool) -> None:
    shared = find_shared(root, {part: getattr(split, part) for part in PARTS})
    if not shared:
        return
    text = (
        f"{split.name}: {len(shared)} recordings are in two parts, byte for byte; the first: "
        f"{shared[0][0]} and {shared[0][1]}"
    )
    if refuse:
        raise DataError(f"{text}; to accept them use duplicates=report")
    _log.warning("%s", text)


def _cache(
    name: str, source: Source, options: EventOptions, size: int
) -> FrameCache | MemoryCache | None:
    if options.cache == "none":
        return None
    if source.root is None and options.cache == "auto":
        return MemoryCache()
    folder = options.cache if options.cache != "auto" else str(source.root / ".frames")  # type: ignore[operator]
    parameters = {
        "framing": repr(options.framing),
        "policy": repr(options.policy(source.policy)),
        "empty": options.empty,
        "reader": repr(source.read),
        "reader_code": source_of(source.read),
        "sensor": str(source.sensor),
        "size": size,
    }
    return FrameCache(folder, name, parameters)


def _without_empty(data: EventFrames) -> EventFrames:
    """Read every recording once and leave out those with nothing to see."""
    left = [s for i, s in enumerate(data.samples) if not data.events(i)[1].empty]
    if len(left) < len(data):
        _log.warning("%s: %d empty recordings skipped", data.name, len(data) - len(left))
    return EventFrames(
        data.name, left, data.source, data.options, data.size, data.classes, data.cache
    )
