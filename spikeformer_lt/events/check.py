"""The data report of a folder or a data set: counts, durations, rates and every fault."""

from __future__ import annotations

import inspect
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError, name_of
from spikeformer_lt.events.dataset import EventFrames, Source
from spikeformer_lt.events.formats import SUFFIXES, FileReader
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.events.recording import FIELDS, LARGEST_SIDE, Sensor
from spikeformer_lt.events.split import PARTS, Sample, Split, find_shared, part_of, scan
from spikeformer_lt.events.validate import Report
from spikeformer_lt.registry import create_dataset, dataset_factory

_SHOWN = 20  # files listed by name
_OPTIONS = EventOptions(bad_events="count", incomplete="report", empty="zero", cache="none")
_OTHERS = 5  # kinds of other files that are named
_NUMBERS = (
    *("given", "kept", "on", "duration_us", "rate_hz"),
    *("faults", "examples", "skipped", "empty", "doubt"),
)


@dataclass(frozen=True)
class Checked:
    """One recording of a report: where it belongs, and what is in it or why it cannot be read."""

    part: str
    label: str
    key: str
    report: Report | None
    error: str = ""
    extent: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class DataReport:
    """What `check_folder` and `check_dataset` find, in order of parts, classes and paths."""

    title: str
    recordings: tuple[Checked, ...]
    split_sha256: str
    shared: tuple[tuple[str, str], ...] = ()  # pairs of files of two parts with the same bytes

    @property
    def clean(self) -> bool:
        """Whether there is no fault, no unreadable, empty, doubtful or shared recording."""
        return not self.shared and all(
            c.report is not None and not (c.report.faults or c.report.empty or c.report.doubt)
            for c in self.recordings
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "title": self.title,
            "clean": self.clean,
            "split_sha256": self.split_sha256,
            "shared": [list(pair) for pair in self.shared],
            "recordings": [
                {
                    **{"part": c.part, "class": c.label, "key": c.key, "error": c.error},
                    **{name: getattr(c.report, name) for name in _NUMBERS if c.report},
                }
                for c in self.recordings
            ],
        }

    def text(self) -> str:
        """Return the report as a person reads it."""
        lines = [f"{self.title}: {len(self.recordings)} recordings", ""]
        lines.append(
            f"{'part':6} {'class':28} {'recordings':>10} {'events':>10} "
            f"{'seconds (least, median, most)':>30} {'events/s':>10}"
        )
        rows: dict[tuple[str, str], list[Report | None]] = {}
        for c in self.recordings:
            rows.setdefault((c.part, c.label), []).append(c.report)
        lines += [f"{part:6} {label[:28]:28} {_row(rows[part, label])}" for part, label in rows]
        width, height = (max((c.extent[i] for c in self.recordings), default=0) for i in (0, 1))
        lines += ["", f"largest coordinates: {height} rows, {width} columns"]
        return "\n".join([*lines, *self._faults(), f"split sha256: {self.split_sha256}"])

    def _faults(self) -> Iterator[str]:
        read = [c.report for c in self.recordings if c.report is not None]
        for kind in dict.fromkeys(fault for report in read for fault in report.faults):
            hit = [report for report in read if kind in report.faults]
            count = sum(report.faults[kind] for report in hit)
            first = f"first: {hit[0].source}: {hit[0].examples[kind]}"
            yield f"{kind}: {count} events in {len(hit)} recordings; {first}"
        for kind, count in sum((Counter(report.skipped) for report in read), Counter()).items():
            yield f"passed over as {kind}: {count} entries"
        reports = [(c.key, c.report) for c in self.recordings]
        for word, listed in (
            ("nothing to see", [f"{key}: {r.empty}" for key, r in reports if r and r.empty]),
            ("doubtful times", [f"{key}: {r.doubt}" for key, r in reports if r and r.doubt]),
            ("unreadable", [c.error for c in self.recordings if c.report is None]),
            ("the same in two parts", [f"{one} = {other}" for one, other in self.shared]),
        ):
            if listed:
                yield f"{word}: {len(listed)}"
                yield from (f"  {line}" for line in listed[:_SHOWN])
        if self.clean:
            yield "no faults"


def _row(reports: list[Report | None]) -> str:
    read = [report for report in reports if report is not None]
    if not read:
        return f"{len(reports):10}    none can be read"
    seconds = [r.duration_us / 1e6 for r in read]
    span = f"{min(seconds):.3f} {statistics.median(seconds):.3f} {max(seconds):.3f}"
    events = round(statistics.median(r.kept for r in read))
    rate = round(statistics.median(r.rate_hz for r in read))
    return f"{len(reports):10} {events:10} {span:>30} {rate:10}"


_PERSON = re.compile(r"user\d+.*")


def check_folder(
    root: str | Path,
    sensor: Sensor | None = None,
    columns: Sequence[str] = FIELDS,
    microseconds_per_tick: int | None = None,
) -> DataReport:
    """Read every recording below a folder; nothing is refused, everything is counted.

    A folder above a file with the word test or val in its name makes the part, else it is train.
    The folder around a file is its class; in a person's folder (user01_led) its own name is.
    Coordinates must fit the sensor, by default one of 4096 x 4096 pixels.

    Raises:
        DataError: `root` is no folder, holds no recording or a link out of it.
    """
    paths = scan(root, SUFFIXES)
    if not paths:
        kinds = Counter(Path(path).suffix.lower() or "no suffix" for path in scan(root, ("",)))
        told = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(_OTHERS))
        raise DataError(
            f"{name_of(root)} holds no recording ({', '.join(SUFFIXES)}); its files: "
            f"{told or 'none'}; unpack archives, and save events as .npy, [N, 4] of x, y, p and t"
        )
    classes = tuple(sorted({_class_of(path) for path in paths}))
    parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
    for path in paths:
        parts[part_of(path) or "train"].append(Sample(path, label=classes.index(_class_of(path))))
    split = Split("folder", classes, *map(tuple, parts.values()))
    reader = FileReader(Path(root), "auto", tuple(columns), microseconds_per_tick)
    side = sensor or Sensor(LARGEST_SIDE, LARGEST_SIDE)
    source = Source(reader, side, root=Path(root))
    data = [EventFrames(part, parts[part], source, _OPTIONS, 1, classes) for part in PARTS]
    return _report(name_of(root), data, split.sha256)


def check_dataset(
    name: str, root: str | Path, image_size: int | None = None, unit: str | None = None,
    columns: str | None = None,
) -> DataReport:  # fmt: skip
    """Read every recording of a registered data set, in the parts that training takes them in.

    `unit` and `columns` are those of `EventOptions`.

    Raises:
        ConfigError: no such data set, or one that is not of events.
        DataError: it is not there.
    """
    recorded = "events" in inspect.signature(dataset_factory(name)).parameters
    check(recorded, "data", name, "a set of recordings; these are still images")
    options = replace(_OPTIONS, unit=unit, columns=columns)
    splits = create_dataset(name, root=str(root), image_size=image_size, events=options)
    data = [cast("EventFrames", getattr(splits, part)) for part in PARTS]
    return _report(f"{name} in {name_of(root)}", data, splits.split_sha256)


def _report(title: str, parts: Sequence[EventFrames], split_sha256: str) -> DataReport:
    checked = [
        _checked(part, data, index)
        for part, data in zip(PARTS, parts, strict=True)
        for index in sorted(range(len(data)), key=data.labels.tolist().__getitem__)
    ]
    home = parts[0].source.root
    samples = {part: data.samples for part, data in zip(PARTS, parts, strict=True)}
    shared = () if home is None else tuple(find_shared(home, samples))
    return DataReport(title, tuple(checked), split_sha256, shared)


def _checked(part: str, data: EventFrames, index: int) -> Checked:
    sample = data.samples[index]
    told = (part, data.classes[sample.label], sample.key)
    try:
        events, report = data.events(index)
    except DataError as fault:
        return Checked(*told, None, str(fault))
    extent = (int(events["x"].max()) + 1, int(events["y"].max()) + 1) if len(events) else (0, 0)
    return Checked(*told, report, "", extent)


def _class_of(path: str) -> str:
    above = Path(path).parent.name
    return Path(path).stem if _PERSON.fullmatch(above) else above
