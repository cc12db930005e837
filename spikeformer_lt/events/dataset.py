"""Recordings as a map-style data set of frames: read, validated, framed, cached, and split."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, DataError, name_of, shown
from spikeformer_lt.events.augment import Transforms
from spikeformer_lt.events.cache import FrameCache, MemoryCache, source_of
from spikeformer_lt.events.formats import FileReader
from spikeformer_lt.events.frame import EventDataOptions, EventOptions, narrow, to_frames
from spikeformer_lt.events.recording import FIELDS, Events, Raw, Sensor, fit
from spikeformer_lt.events.simulate import SIMULATED
from spikeformer_lt.events.split import (
    PARTS,
    Sample,
    Split,
    find_shared,
    limited,
    pairs_apart,
    report_apart,
)
from spikeformer_lt.events.validate import Policy, Report, validate
from spikeformer_lt.preprocess import Preprocess, Recordings
from spikeformer_lt.rng import seed_for
from spikeformer_lt.splits import Splits, described

log = logging.getLogger(__name__)
MEAN, STD = (0.0, 0.0), (1.0, 1.0)  # frames are counts: a loader leaves them as they are


class Reader(Protocol):
    """Reads one recording; a frozen dataclass, so that its repr tells all that it depends on."""

    def __call__(self, sample: Sample) -> Raw:
        """Return what the file holds."""

    def fingerprint(self, sample: Sample) -> str:
        """Return what changes when the recording does, such as size and date."""


@dataclass(frozen=True)
class Source:
    """Where the recordings of a set come from and what they are."""

    read: Reader
    sensor: Sensor  # the size that coordinates must fit
    policy: Policy = field(default_factory=Policy)  # the set's own; `bad_events` goes over it
    root: Path | None = None  # folder of the set, or None for recordings that are made in memory


@dataclass(eq=False, repr=False)
class EventFrames(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Labelled recordings as frames: ``[i]`` is (float32 [T, 2, size, size], label)."""

    name: str
    samples: Sequence[Sample]
    source: Source
    options: EventOptions
    size: int  # height and width of a frame, in pixels
    classes: Sequence[str] = ()  # names by class number; default the numbers
    cache: FrameCache | MemoryCache | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    __repr__ = described

    def __post_init__(self) -> None:
        labels = [sample.label for sample in self.samples]
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.classes = tuple(self.classes) or tuple(map(str, range(max(labels, default=-1) + 1)))
        self._policy = self.options.policy(self.source.policy)
        self._told: set[str] = set()  # of what one recording has been told of
        self._transforms = Transforms.parse(self.options.transform, self.source.sensor)

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return frames and label of a recording; a fault that is refused is a DataError."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} recordings, no number {index}")
        frames = self.counts(index)
        if self.options.shuffle_time:
            draw = np.random.default_rng(seed_for("shuffle_time", self.samples[index].key))
            frames = draw.permutation(frames)
        return torch.from_numpy(frames.astype(np.float32)), int(self.labels[index])

    def counts(self, index: int) -> NDArray[Any]:
        """Return the frames of a recording as uint8, uint16 or int32, from the cache if there."""
        sample = self.samples[index]
        fingerprint = self.source.read.fingerprint(sample)
        found = None if self.cache is None else self.cache.get(sample.key, fingerprint)
        if found is not None:
            return found
        events, report = self.events(index)
        if report.empty and self.options.empty == "error":
            raise DataError(
                f"{self.name}: {report.source} has {report.empty}, {report.kept} events in all; "
                "remove it, or use empty=zero or empty=skip"
            )
        moved = fit(events, self._transforms.sensor, self.size)
        square = Sensor(self.size, self.size)
        frames, left_out = to_frames(moved, self.options, square, report.source)
        if left_out and "windows" not in self._told:
            self._told.add("windows")
            told = f"{left_out} of {report.kept} events after the last of {len(frames)} windows"
            level = logging.WARNING if 2 * left_out > report.kept else logging.INFO
            log.log(level, "%s: %s: %s; told of no other", self.name, report.source, told)
        small = narrow(frames)
        if self.cache is not None:
            self.cache.put(sample.key, fingerprint, small)
        return small

    def events(self, index: int) -> tuple[Events, Report]:
        """Return the valid events of recording `index`, transformed, and the report on it."""
        sample = self.samples[index]
        raw = self.source.read(sample)
        where = name_of(sample.key if self.source.root is None else self.source.root / sample.key)
        events, report = validate(raw.events, self.source.sensor, self._policy, where)
        report = replace(report, skipped=raw.skipped)
        if self._transforms.steps:
            events, left = self._transforms(events, where, sample.key)
            report = replace(report, kept=left.kept, duration_us=left.duration_us, on=left.on)
        if report.faults:
            log.warning("%s: %s: %s", self.name, where, report.line())
        if report.doubt and "doubt" not in self._told:
            self._told.add("doubt")
            log.warning("%s: %s: %s", self.name, where, report.doubt)
        return events, report


_LARGEST_SIZE = 1024  # pixels a side


def event_splits(
    split: Split,
    source: Source,
    options: EventDataOptions,
    augment: str = "none",
    copies: Sequence[Sequence[str]] | None = None,
) -> Splits:
    """Make the three parts of an event data set; by default a frame has the sensor's longer side.

    `copies` are what `find_copies` gave before, where it was asked.

    Raises:
        ConfigError: an option out of range.
        DataError: a split file that does not fit, or, with "refuse", shared recordings.
    """
    size, events = options.image_size, options.events
    if events.sensor is not None:
        source = replace(source, sensor=Sensor.parse(events.sensor))
    side = Transforms.parse(events.transform, source.sensor).sensor
    size = max(side.height, side.width) if size is None else size
    if size < max(side.height, side.width):
        log.info("%s: %s pixels are scaled down to a square of %d", split.name, side, size)
    if events.unit is not None or events.columns is not None:
        if not isinstance(source.read, FileReader):
            raise ConfigError(
                f"unit={shown(events.unit)} and columns={shown(events.columns)} are not allowed: "
                f"the recordings of {split.name} are not read from files"
            )
        source = replace(source, read=source.read.reading(events.unit, events.columns))
    check(1 <= size <= _LARGEST_SIZE, "image_size", size, f"1 to {_LARGEST_SIZE} pixels")
    if events.split_file is not None and os.path.exists(events.split_file):
        split = split.as_saved(events.split_file)
        log.info("%s: parts of %s, not of val_fraction", split.name, name_of(events.split_file))
    elif events.split_file is not None:
        split.save(events.split_file)
    split = limited(split, options.limit_train, options.limit_test)
    samples = {part: getattr(split, part) for part in PARTS}
    if copies is None:
        shared = [] if source.root is None else find_shared(source.root, samples)
    else:
        shared = pairs_apart(copies, samples)
    report_apart(split.name, "recordings", shared, samples, options.duplicates)
    whole = (source, events, size, split.classes, _cache(split.name, source, events, size))
    parts = {p: EventFrames(f"{split.name} {p}", samples[p], *whole) for p in PARTS}
    if events.empty == "skip":
        parts = {part: replace(data, samples=_with_events(data)) for part, data in parts.items()}
        split = replace(split, **{part: data.samples for part, data in parts.items()})  # type: ignore[arg-type]
    log.info("%s: split sha256 %s", split.name, split.sha256)
    notice = ""
    if source.root is not None and (source.root / SIMULATED).is_file():
        notice = f"{name_of(source.root)} is simulated: its results are none on DVS128 Gesture"
        log.warning("NOTICE: %s", notice)
    form = getattr(source.read, "form", "")
    ticks = getattr(source.read, "microseconds_per_tick", None)
    how = Recordings(
        sensor=(source.sensor.height, source.sensor.width), T=events.T, by=events.by,
        window_us=events.window_us, values=events.values, transform=events.transform,
        form=form if form == "cifar10_dvs" else "",
        columns=getattr(source.read, "columns", FIELDS),
        microseconds_per_tick=ticks or 1, unit_given=ticks is not None,
        signed=events.policy(source.policy).signed_polarity,
    )  # fmt: skip
    return Splits(
        split.name, parts["train"], parts["val"], parts["test"], num_classes=len(split.classes),
        in_channels=2, image_size=size, mean=MEAN, std=STD, kind="events", notice=notice,
        split_sha256=split.sha256, augment=augment,
        preprocess=Preprocess("off,on", size, MEAN, STD, tuple(split.classes), how),
    )  # fmt: skip


def _cache(
    name: str, source: Source, options: EventOptions, size: int
) -> FrameCache | MemoryCache | None:
    if options.cache == "none":
        return None
    if source.root is None and options.cache == "auto":
        return MemoryCache()
    folder = options.cache if options.cache != "auto" else str(source.root / ".frames")  # type: ignore[operator]
    of_tonic = options.transform or type(source.read).__name__ == "TonicReader"
    parameters = {
        "framing": repr(options.framing),
        "policy": repr(options.policy(source.policy)),
        "empty": options.empty,
        "transform": options.transform,
        "reader": repr(source.read),
        "reader_code": source_of(source.read),
        "tonic": getattr(sys.modules.get("tonic"), "__version__", "") if of_tonic else "",
        "root": "" if options.cache == "auto" else str(source.root and source.root.resolve()),
        "sensor": str(source.sensor),
        "size": size,
    }
    return FrameCache(folder, name, parameters)


def _with_events(data: EventFrames) -> tuple[Sample, ...]:
    """Read every recording once and return those with something to see."""
    left = tuple(s for i, s in enumerate(data.samples) if not data.events(i)[1].empty)
    if len(left) < len(data):
        log.warning("%s: %d empty recordings skipped", data.name, len(data) - len(left))
    return left
