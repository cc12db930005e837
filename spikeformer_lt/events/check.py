"""Read a whole folder or data set and say what is in it: ``python -m spikeformer_lt.events``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.data_report import Checked, DataReport
from spikeformer_lt.events.duplicates import find_shared
from spikeformer_lt.events.options import EventOptions
from spikeformer_lt.events.reading import SUFFIXES, FileReader, form_of
from spikeformer_lt.events.recording import FIELDS, LARGEST_SIDE, Sensor
from spikeformer_lt.events.report import Report
from spikeformer_lt.events.samples import Sample, scan
from spikeformer_lt.events.source import name_of
from spikeformer_lt.events.split import PARTS, Split
from spikeformer_lt.events.validate import validate
from spikeformer_lt.registry import create_dataset

_TEST = re.compile(r"(?:^|[^A-Za-z])test|Test")
_VAL = re.compile(r"(?:(?:^|[^A-Za-z])v|V)al(?:id|idation)?(?![a-z])")
_PERSON = re.compile(r"user\d+.*")


def check_folder(
    root: str | Path,
    sensor: Sensor | None = None,
    columns: Sequence[str] = FIELDS,
    microseconds_per_tick: int = 1,
) -> DataReport:
    """Read every recording below a folder; nothing is refused, everything is counted.

    A folder above a file with the word test or val in its name makes the part, else it is train.
    The folder around a file is its class; in a person's folder (user01_led) its own name is.

    Args:
        root: the folder.
        sensor: the size that coordinates must fit; None allows any up to 4096.
        columns: what the columns of plain npy arrays are.
        microseconds_per_tick: unit of times in npy files.

    Raises:
        DataError: `root` is no folder, holds no recording or a link out of it.
    """
    root = Path(root)
    paths = scan(root, SUFFIXES)
    if not paths:
        raise DataError(f"{name_of(root)} holds no recording: {', '.join(SUFFIXES)}")
    classes = tuple(sorted({_class_of(path) for path in paths}))
    parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
    for path in paths:
        parts[_part_of(path)].append(Sample(path, label=classes.index(_class_of(path))))
    split = Split("folder", classes, *(tuple(parts[part]) for part in PARTS))
    policy = EventOptions(bad_events="count").policy()

    def read(sample: Sample) -> tuple[Any, Report]:
        path = root / sample.path
        reader = FileReader(root, form_of(path), tuple(columns), microseconds_per_tick)
        raw = reader(sample)
        side = sensor or Sensor(LARGEST_SIDE, LARGEST_SIDE)
        events, report = validate(raw.events, side, policy, name_of(sample.path), columns)
        return events, replace(report, skipped=raw.skipped)

    checked = [
        _checked(part, classes[sample.label], sample, read)
        for part in PARTS
        for sample in parts[part]
    ]
    shared = tuple(find_shared(root, parts))
    return DataReport(name_of(root), tuple(checked), split.sha256, shared)


def check_dataset(name: str, root: str | Path, image_size: int | None = None) -> DataReport:
    """Read every recording of a data set, in the parts that training takes them in.

    Args:
        name: a registered data set of events.
        root: where it lies.
        image_size: as the data set takes it.

    Raises:
        ConfigError: no such data set, or one that is not of events.
        DataError: it is not there.
    """
    options = EventOptions(bad_events="count", incomplete="report", empty="zero", cache="none")
    splits = create_dataset(name, root=str(root), image_size=image_size, events=options)
    checked = []
    for part in PARTS:
        data = getattr(splits, part)
        for index in sorted(range(len(data)), key=data.labels.tolist().__getitem__):

            def read(_: Sample, index: int = index, data: Any = data) -> tuple[Any, Report]:
                found: tuple[Any, Report] = data.events(index)
                return found

            sample = data.samples[index]
            checked.append(_checked(part, data.classes[sample.label], sample, read))
    samples = {part: getattr(splits, part).samples for part in PARTS}
    home = splits.train.source.root
    shared = () if home is None else tuple(find_shared(home, samples))
    return DataReport(f"{name} in {name_of(root)}", tuple(checked), splits.split_sha256, shared)


def _checked(part: str, label: str, sample: Sample, read: Any) -> Checked:
    try:
        events, report = read(sample)
    except DataError as fault:
        return Checked(part, label, sample.key, None, str(fault))
    extent = (int(events["x"].max()) + 1, int(events["y"].max()) + 1) if len(events) else (0, 0)
    return Checked(part, label, sample.key, report, "", extent)


def _class_of(path: str) -> str:
    above = Path(path).parent.name
    return Path(path).stem if _PERSON.fullmatch(above) else above


def _part_of(path: str) -> str:
    above = path.split("/")[:-1]
    if any(_TEST.search(name) for name in above):
        return "test"
    return "val" if any(_VAL.search(name) for name in above) else "train"
