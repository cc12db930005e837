"""The gate that every recording passes: a fault is refused, dropped or repaired, and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError, one_of
from spikeformer_lt.events.recording import FIELDS, Events, Sensor, columns_of, make_events


@dataclass(frozen=True)
class Report:
    """What was found in one recording; empty `faults` is a clean one."""

    source: str
    given: int
    kept: int
    faults: dict[str, int] = field(default_factory=dict)  # events with each, named as in Policy
    examples: dict[str, str] = field(default_factory=dict)  # the first event with each
    duration_us: int = 0  # last time minus first time of what was kept
    on: int = 0  # kept events of polarity 1
    skipped: dict[str, int] = field(default_factory=dict)  # no events of a pixel, by kind
    doubt: str = ""  # why the times may be in another unit

    @property
    def empty(self) -> str:
        """Say why there is nothing to see in time: "no event", "one time", or ""."""
        return "no event" if not self.kept else "" if self.duration_us else "one time"

    @property
    def dropped(self) -> int:
        """Events that were left out."""
        return self.given - self.kept

    @property
    def rate_hz(self) -> float:
        """Kept events a second; 0 where the duration is 0."""
        return self.kept * 1e6 / self.duration_us if self.duration_us else 0.0

    def line(self) -> str:
        """Return the faults on one line, or "no faults"."""
        told = [f"{name} {count} ({self.examples[name]})" for name, count in self.faults.items()]
        told.append(f"{self.dropped} of {self.given} events left out")
        return "; ".join(told) if self.faults else "no faults"


TIME_LIMIT_US = 2**53  # 285 years; above it a float64 time has lost its microseconds
_HOUR_US = 3_600_000_000
_ENOUGH = 100  # events; fewer tell nothing of a rate
_SILENT_HZ, _QUIET_HZ, _LOUD_HZ = 0.001, 0.05, 1000.0  # events of a pixel
_SHORT_US, _LONG_US = 1000, 600_000_000
_UNIT = "; are times in another unit? use unit=us, ms or s (--data.unit; --unit of events check)"

# What may be done about each fault, the mildest last.
ACTIONS: dict[str, tuple[str, ...]] = {
    "nonfinite": ("error", "drop"),
    "fractional": ("error", "drop", "count"),
    "coordinates": ("error", "drop"),
    "polarity": ("error", "drop", "count"),
    "time": ("error", "drop"),
    "order": ("error", "drop", "count"),
    "span": ("error", "count"),
}


@dataclass(frozen=True)
class Policy:
    """What to do about each fault; whatever is done is reported.

    "error" refuses the recording, "drop" leaves the events out, "count" keeps them as stated here.
    """

    nonfinite: str = "error"  # a NaN or an infinity in any field
    fractional: str = "error"  # a number that is not whole; "count" rounds down
    coordinates: str = "error"  # x or y off the sensor, negative ones included
    polarity: str = "error"  # neither 0 nor 1; "count" takes above 0 for 1 and the rest for 0
    time: str = "error"  # below 0 or from 2**53 us on (a wrapped counter, a wrong unit)
    order: str = "count"  # earlier than an event before it; "count" sorts, stably
    span: str = "error"  # first and last event further apart than `longest_us`; "count" keeps all
    signed_polarity: bool = False  # polarities are -1 and 1: -1 is no fault then, 0 is one
    longest_us: int = _HOUR_US  # the longest credible recording, in microseconds

    def __post_init__(self) -> None:
        for name, allowed in ACTIONS.items():
            one_of(name, getattr(self, name), allowed)
        check(self.longest_us >= 1, "longest_us", self.longest_us, "1 microsecond or more")


def validate(
    events: Any,
    sensor: Sensor,
    policy: Policy | None = None,
    source: str = "recording",
    columns: Sequence[str] = FIELDS,
) -> tuple[Events, Report]:
    """Check a recording and return it as `EVENTS`, in time order.

    Args:
        events: what `columns_of` takes, with `columns` as its order; it is not changed.
        sensor: the size that its coordinates must fit.

    Raises:
        DataError: wrong fields or types, or a fault that the policy refuses.
    """
    policy = policy or Policy()
    gate = _Gate(columns_of(events, source, columns), policy, source)
    real = [name for name in FIELDS if gate.columns[name].dtype.kind == "f"]
    for name in real:
        gate.found("nonfinite", ~np.isfinite(gate.columns[name]), name, "a finite number")
    for name in real:
        column = gate.columns[name]
        gate.found("fractional", np.floor(column) != column, name, "a whole number")
        # A cast from beyond the type's range gives any number; 2**62 is refused later on.
        limited = np.clip(np.floor(gate.columns[name]), -(2.0**62), 2.0**62)
        gate.columns[name] = limited.astype(np.int64)
    for name, side in (("x", sensor.width), ("y", sensor.height)):
        column = gate.columns[name]
        if len(column) and (column.min() < 0 or column.max() >= side):
            limit = f"in [0, {side}), the sensor being {sensor}; the file's {name} is "
            limit += f"{column.min()} to {column.max()}"
            gate.found("coordinates", (column < 0) | (column >= side), name, limit)
    column = gate.columns["p"]
    if column.dtype.kind != "b":
        off = -1 if policy.signed_polarity else 0
        gate.found("polarity", (column != off) & (column != 1), "p", f"{off} or 1")
        gate.columns["p"] = gate.columns["p"] > 0
    column = gate.columns["t_us"]
    limit = f"in [0, {TIME_LIMIT_US}) microseconds"
    gate.found("time", (column < 0) | (column >= TIME_LIMIT_US), "t_us", limit)
    column = gate.columns["t_us"] = gate.columns["t_us"].astype(np.int64)
    if (column[1:] < column[:-1]).any():
        late = column < np.maximum.accumulate(column)
        gate.found("order", late, "t_us", "no earlier than the events before it")
        if policy.order == "count":
            gate.take(np.argsort(gate.columns["t_us"], kind="stable"))
    kept = make_events(**gate.columns)
    times = kept["t_us"]
    duration = int(times[-1] - times[0]) if len(times) else 0
    if duration > policy.longest_us:
        limit = f"within {policy.longest_us} us of the first, {times[0]}{_UNIT}"
        gate.found("span", np.arange(len(times)) == len(times) - 1, "t_us", limit)
    told = (source, gate.given, len(kept), gate.faults, gate.examples, duration)
    on = int(np.count_nonzero(kept["p"]))
    return kept, Report(*told, on=on, doubt=_doubt(kept, duration))


def _doubt(events: Events, duration_us: int) -> str:
    """Say that a rate is none of a camera's, whose pixels have some events a second."""
    if len(events) < _ENOUGH or not duration_us:
        return ""
    pixels = (int(events["x"].max()) + 1) * (int(events["y"].max()) + 1)
    rate = len(events) * 1e6 / duration_us / pixels
    least = _QUIET_HZ if duration_us > _LONG_US else _SILENT_HZ
    if least <= rate <= _LOUD_HZ and duration_us >= _SHORT_US:
        return ""
    return f"{len(events)} events in {duration_us / 1e6:g} s, {rate:.2g} a second and pixel{_UNIT}"


class _Gate:
    """One recording on its way through the checks; `places` are the original positions left."""

    def __init__(self, columns: dict[str, NDArray[Any]], policy: Policy, source: str) -> None:
        self.columns, self.policy, self.source = columns, policy, source
        self.given = len(columns["x"])
        self.places: NDArray[np.int64] | None = None
        self.faults: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def found(self, fault: str, bad: NDArray[np.bool_], name: str, needed: str) -> None:
        """Count the events marked in `bad`; refuse them or leave them out as the policy says."""
        count, first = int(np.count_nonzero(bad)), int(np.argmax(bad)) if len(bad) else 0
        if not count:
            return
        place = first if self.places is None else int(self.places[first])
        example = f"event {place}: {name}={self.columns[name][first]}, must be {needed}"
        action = getattr(self.policy, fault)
        if action == "error":
            ways = " or ".join(way for way in ACTIONS[fault] if way != "error")
            hint = f"use {fault}={ways} (--data.bad-events {ways})"
            raise DataError(
                f"{self.source}: {example}; {count} of {self.given} events; repair the file, or to "
                f"go on without them {hint}"
            )
        self.faults[fault] = self.faults.get(fault, 0) + count
        self.examples.setdefault(fault, example)
        if action == "drop":
            self.take(np.flatnonzero(~bad))

    def take(self, places: NDArray[np.int64]) -> None:
        """Leave the events at some places."""
        self.places = places if self.places is None else self.places[places]
        self.columns = {name: column[places] for name, column in self.columns.items()}
