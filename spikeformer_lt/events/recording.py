"""What a recording is: events in one structured array, on a sensor of known size.

A reader gives what the file says, in any numeric type; `validate.validate` turns it into `EVENTS`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.errors import ConfigError, DataError, name_of, near, shown

Events = NDArray[np.void]

# 16 bytes an event, each field aligned: column, row, polarity (0 off, 1 on), microseconds.
EVENTS = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "u1"), ("t_us", "<i8")], align=True)
FIELDS: tuple[str, ...] = ("x", "y", "p", "t_us")
UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}  # microseconds in what a file may count times in
LARGEST_SIDE = 4096  # pixels; the largest event sensors have 1280
LARGEST_BYTES = 1 << 32  # of one recording unpacked: 268 million events


@dataclass(frozen=True)
class Sensor:
    """Size of an event sensor, in pixels from 1 to 4096: rows, then columns."""

    height: int
    width: int

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if type(side) is not int or not 1 <= side <= LARGEST_SIDE:
                raise ConfigError(
                    f"sensor={self.height!r}x{self.width!r} is not allowed: rows x columns, each a "
                    f"whole number from 1 to {LARGEST_SIDE}"
                )

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Sensor:
        """Read "128x128", rows first; another form is a ConfigError."""
        sides = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text.lower())
        if sides is None:
            raise ConfigError(f"sensor={shown(text)} is not allowed: rows x columns, as 128x128")
        return cls(int(sides[1]), int(sides[2]))


def parse_columns(text: str) -> tuple[str, ...]:
    """Read the order of the columns of a plain array, such as "t,x,y,p"; t is as good as t_us.

    Raises:
        ConfigError: not each of the four once.
    """
    names = tuple("t_us" if name.strip() == "t" else name.strip() for name in text.split(","))
    if sorted(names) != sorted(FIELDS):
        raise ConfigError(
            f"columns={shown(text)} is not allowed: x, y, p and t, each once, as x,y,p,t"
        )
    return names


_OTHERS = {
    **{"xs": "x", "ys": "y", "ps": "p", "pol": "p", "polarity": "p"},
    **{"ts": "t", "timestamp": "t", "timestamps": "t"},
}


def field_of(name: str) -> str:
    """Our name of a field that others call in their own way, such as polarity; else `name`."""
    return _OTHERS.get(name.lower(), name)


def make_events(x: Any, y: Any, p: Any, t_us: Any) -> Events:
    """Put valid columns, rows, polarities and times [N] together; nothing is checked."""
    events = np.empty(len(t_us), EVENTS)
    for name, column in zip(FIELDS, (x, y, p, t_us), strict=True):
        events[name] = column
    return events


def columns_of(events: Any, source: str, order: Sequence[str] = FIELDS) -> dict[str, NDArray[Any]]:
    """Return the columns {"x", "y", "p", "t_us"} of a recording: numbers [N], views where possible.

    Args:
        events: a structured array with the fields x, y, p and t_us (or t, in microseconds); a
            mapping of such columns; or a plain [N, 4] array with the columns of `order`.

    Raises:
        DataError: a missing field, another type or shape; the message names it.
    """
    if isinstance(events, Mapping):
        found = {str(name): np.asarray(column) for name, column in events.items()}
    elif not isinstance(events, np.ndarray):
        raise DataError(f"{source}: events are {type(events).__name__}; needed is an array")
    elif events.dtype.names:
        if events.ndim != 1:
            raise DataError(f"{source}: events have the shape {list(events.shape)}; needed is [N]")
        found = {name: events[name] for name in events.dtype.names}
    elif events.ndim != 2 or events.shape[1] != len(order):
        raise DataError(
            f"{source}: an array {list(events.shape)} of {events.dtype}; needed "
            f"is [N, {len(order)}] with the columns {', '.join(order)}, or a structured array"
        )
    else:
        found = {name: events[:, place] for place, name in enumerate(order)}
    found = {**{field_of(name): column for name, column in found.items()}, **found}
    timed = found if "t_us" in found or "t" not in found else {**found, "t_us": found["t"]}
    for name in FIELDS:
        column = timed.get(name)
        if column is None:
            raise DataError(
                f"{source}: no field {shown(name)}{near(name, found) or ';'} found: "
                f"{', '.join(map(shown, list(found)[:20])) or 'none'}; needed: x, y, p and t_us"
            )
        if column.ndim != 1 or column.dtype.kind not in "biuf":
            raise DataError(
                f"{source}: field {shown(name)} is {column.dtype} {list(column.shape)}; needed are "
                "numbers in one dimension"
            )
    lengths = {name: len(timed[name]) for name in FIELDS}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{source}: fields of different length: {lengths}")
    return {name: timed[name] for name in FIELDS}


def fit(events: Events, sensor: Sensor, size: int) -> Events:
    """Move valid events onto a square of `size` pixels a side: none is lost, none is made.

    A larger sensor is scaled down by one factor for both axes; a smaller one is put in the middle.
    """
    if (sensor.height, sensor.width) == (size, size):
        return events
    scale = max(sensor.height, sensor.width, size)  # pixels of the sensor that become `size` pixels
    moved = events.copy()
    for name, side in (("x", sensor.width), ("y", sensor.height)):
        margin = (size - -(-side * size // scale)) // 2
        moved[name] = events[name].astype(np.int64) * size // scale + margin
    return moved


@dataclass(frozen=True)
class Raw:
    """What a file holds, not yet validated."""

    events: Events | NDArray[np.generic] | dict[str, NDArray[np.generic]]  # for columns_of
    skipped: dict[str, int] = field(default_factory=dict)  # no events of a pixel, by kind


def file_state(path: Path) -> str:
    """Return size and date of a file; a DataError if it is not there."""
    try:
        state = path.stat()
    except OSError as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault
    return f"{state.st_size}-{state.st_mtime_ns}"


def regular_size(path: str | Path) -> int:
    """Return the size of a file in bytes; what blocks or never ends, as a pipe, is a DataError."""
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
        raise DataError(f"{name_of(path)} is no regular file but a pipe, a socket or a device")
    return state.st_size


def largest_size(size: int) -> int:
    """Return how many bytes a recording of `size` packed bytes may have unpacked.

    Events pack ten times at most; a file that holds more is made to fill memory.
    """
    return min(max(1 << 20, 200 * size), LARGEST_BYTES)


def check_size(path: str | Path, size: int, unpacked: int) -> None:
    """Refuse content of more than `largest_size` bytes by a DataError."""
    if unpacked > largest_size(size):
        raise DataError(
            f"{name_of(path)}: {size} bytes unpack to more than {largest_size(size)}: no recording "
            "packs that well; the file is damaged or made to fill memory"
        )


def check_whole(path: str | Path, left: int, each: int) -> None:
    """Refuse `left` bytes of events that are no whole number of `each` by a DataError."""
    if left % each:
        raise DataError(
            f"{name_of(path)} breaks off: {left} bytes are no multiple of {each}; the file is "
            "truncated or damaged"
        )


@contextmanager
def decoding(path: str | Path, what: str = "its content") -> Iterator[None]:
    """Turn what a decoder raises, of whatever kind, into a DataError that names the file."""
    try:
        yield
    except (MemoryError, DataError):
        raise
    except Exception as fault:
        raise DataError(
            f"{name_of(path)} is damaged: {what} cannot be read: {shown(str(fault), 200)}"
        ) from fault


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file that is not empty, and give it with its size in bytes.

    Raises:
        DataError: it is no such file, or an OSError while it is read.
    """
    try:
        size = regular_size(path)
        with open(path, "rb") as file:
            if not size:
                raise DataError(f"{name_of(path)} is empty (0 bytes); get the file again")
            yield file, size
    except OSError as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault
