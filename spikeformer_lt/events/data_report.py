"""The data report: counts, durations, rates and every fault of a set of recordings."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spikeformer_lt.events.report import Report
from spikeformer_lt.events.split import PARTS

_SHOWN = 20  # files listed by name


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
    """What `check_folder` and `check_dataset` find.

    Attributes:
        title: folder or data set.
        recordings: in order of parts and paths.
        split_sha256: fingerprint of parts, paths and labels.
        shared: pairs of files of two parts with the same bytes.
    """

    title: str
    recordings: tuple[Checked, ...]
    split_sha256: str
    shared: tuple[tuple[str, str], ...] = ()

    @property
    def clean(self) -> bool:
        """Whether there is no fault, no unreadable, empty or shared recording."""
        return not self.shared and all(
            c.report is not None and not c.report.faults and not c.report.empty
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
                    "part": c.part,
                    "class": c.label,
                    "key": c.key,
                    "error": c.error,
                    **({} if c.report is None else _numbers(c.report)),
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
        for part in PARTS:
            for label in dict.fromkeys(c.label for c in self.recordings if c.part == part):
                lines.append(self._row(part, label))
        width = max((c.extent[0] for c in self.recordings), default=0)
        height = max((c.extent[1] for c in self.recordings), default=0)
        lines += ["", f"largest coordinates: {height} rows, {width} columns"]
        lines += [*self._faults(), f"split sha256: {self.split_sha256}"]
        return "\n".join(lines)

    def _row(self, part: str, label: str) -> str:
        mine = [c for c in self.recordings if (c.part, c.label) == (part, label)]
        read = [c.report for c in mine if c.report is not None]
        if not read:
            return f"{part:6} {label[:28]:28} {len(mine):10}    none can be read"
        seconds = [r.duration_us / 1e6 for r in read]
        span = f"{min(seconds):.3f} {statistics.median(seconds):.3f} {max(seconds):.3f}"
        events = round(statistics.median(r.kept for r in read))
        rate = round(statistics.median(r.rate_hz for r in read))
        return f"{part:6} {label[:28]:28} {len(mine):10} {events:10} {span:>30} {rate:10}"

    def _faults(self) -> Iterator[str]:
        read = [c for c in self.recordings if c.report is not None]
        for kind in dict.fromkeys(f for c in read if c.report for f in c.report.faults):
            hit = [c for c in read if c.report and kind in c.report.faults]
            count = sum(c.report.faults[kind] for c in hit if c.report)
            first = hit[0].report
            assert first is not None
            yield (
                f"{kind}: {count} events in {len(hit)} recordings; first: {first.source}: "
                + (first.examples[kind])
            )
        for kind in dict.fromkeys(s for c in read if c.report for s in c.report.skipped):
            count = sum(c.report.skipped.get(kind, 0) for c in read if c.report)
            yield f"passed over as {kind}: {count} entries"
        for word, listed in (
            (
                "nothing to see",
                [f"{c.key}: {c.report.empty}" for c in read if c.report and c.report.empty],
            ),
            ("unreadable", [c.error for c in self.recordings if c.report is None]),
            ("the same in two parts", [f"{one} = {other}" for one, other in self.shared]),
        ):
            if listed:
                yield f"{word}: {len(listed)}"
                yield from (f"  {line}" for line in listed[:_SHOWN])
        if self.clean:
            yield "no faults"


def _numbers(report: Report) -> dict[str, Any]:
    return {
        "given": report.given,
        "kept": report.kept,
        "on": report.on,
        "duration_us": report.duration_us,
        "rate_hz": report.rate_hz,
        "faults": report.faults,
        "examples": report.examples,
        "skipped": report.skipped,
        "empty": report.empty,
    }
