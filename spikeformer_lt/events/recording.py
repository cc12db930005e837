"""What a recording is: events in one structured array, on a sensor of known size.

A reader gives whatever the file says, in any numeric type; `validate.validate` turns it into
`EVENTS`, and only that is made into frames. A fault names the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.disk import content_kind
from spikeformer_lt.errors import ConfigError, DataError, name_of, near, shown

Events = NDArray[np.void]

# 16 bytes an event, each field aligned: column, row, polarity (0 off, 1 on), microseconds.
EVENTS = np.dtype(
    {
        "names": ["x", "y", "p", "t_us"],
        "formats": ["<u2", "<u2", "u1", "<i8"],
        "offsets": [0, 2, 4, 8],
        "itemsize": 16,
    }
)
FIELDS: tuple[str, ...] = ("x", "y", "p", "t_us")
LARGEST_SIDE = 4096  # pixels; the largest event sensors have 1280
_HEADER_LIMIT = 1_000_000  # bytes of text before the events
_WRAP = 2**32  # microseconds, where a 32-bit clock starts again


@dataclass(frozen=True)
class Sensor:
    """Size of an event sensor, in pixels: rows, then columns.

    Raises:
        ConfigError: a side below 1 or above 4096.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE:
                raise ConfigError(
                    f"sensor={self.height!r}x{self.width!r} is not allowed: rows x columns, each a "
                    f"whole number from 1 to {LARGEST_SIDE}"
                )

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Sensor:
        """Read "128x128", rows first.

        Raises:
            ConfigError: another form.
        """
        sides = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text.lower())
        if sides is None:
            raise ConfigError(f"sensor={shown(text)} is not allowed: rows x columns, as 128x128")
        return cls(int(sides[1]), int(sides[2]))


def make_events(x: Any, y: Any, p: Any, t_us: Any) -> Events:
    """Put valid columns, rows, polarities and times [N] together; nothing is checked."""
    events = np.empty(len(t_us), EVENTS)
    for name, column in zip(FIELDS, (x, y, p, t_us), strict=True):
        events[name] = column
    return events


def columns_of(events: Any, source: str, order: Sequence[str] = FIELDS) -> dict[str, NDArray[Any]]:
    """Return the four columns of a recording in whatever form it comes.

    Args:
        events: a structured array with the fields x, y, p and t_us (or t, in microseconds); a
            mapping of such columns; or a plain [N, 4] array.
        source: the file's name, for messages.
        order: what the columns of a plain array are.

    Returns:
        {"x", "y", "p", "t_us"}: one-dimensional arrays of one length, each of a boolean, integer or
        float type; views where that is possible.

    Raises:
        DataError: a missing field, another type or shape; the message names it.
    """
    if isinstance(events, Mapping):
        found = {str(name): np.asarray(column) for name, column in events.items()}
    elif isinstance(events, np.ndarray) and events.dtype.names:
        if events.ndim != 1:
            raise DataError(f"{source}: events have the shape {list(events.shape)}; needed is [N]")
        found = {name: events[name] for name in events.dtype.names}
    elif isinstance(events, np.ndarray):
        if events.ndim != 2 or events.shape[1] != len(order):
            raise DataError(
                f"{source}: an array {list(events.shape)} of {events.dtype}; needed "
                f"is [N, {len(order)}] with the columns {', '.join(order)}, or a structured array"
            )
        found = {name: events[:, place] for place, name in enumerate(order)}
    else:
        raise DataError(f"{source}: events are {type(events).__name__}; needed is an array")
    if "t_us" not in found and "t" in found:
        found["t_us"] = found["t"]
    for name in FIELDS:
        if name not in found:
            raise DataError(
                f"{source}: no field {name!r}{near(name, found) or ';'} found: "
                f"{', '.join(map(shown, found)) or 'none'}; needed: x, y, p and t_us"
            )
        column = found[name]
        if column.ndim != 1 or column.dtype.kind not in "biuf":
            raise DataError(
                f"{source}: field {name!r} is {column.dtype} {list(column.shape)}; needed are "
                "numbers in one dimension"
            )
    lengths = {name: len(found[name]) for name in FIELDS}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{source}: fields of different length: {lengths}")
    return {name: found[name] for name in FIELDS}


def fit(events: Events, sensor: Sensor, size: int) -> Events:
    """Move events onto a square of `size` pixels a side: none is lost, none is made.

    A sensor that is larger is scaled down by one factor for both axes, so that events of several
    pixels meet in one; what is smaller is put into the middle.

    Args:
        events: valid events of `sensor`.
        sensor: where they were recorded.
        size: side of the square, in pixels.
    """
    longest = max(sensor.height, sensor.width)
    scale = max(longest, size)  # pixels of the sensor that become `size` pixels
    if (sensor.height, sensor.width) == (size, size):
        return events
    moved = events.copy()
    for name, side in (("x", sensor.width), ("y", sensor.height)):
        margin = (size - -(-side * size // scale)) // 2
        moved[name] = events[name].astype(np.int64) * size // scale + margin
    return moved


@dataclass(frozen=True)
class Raw:
    """What a file holds, not yet validated.

    Attributes:
        events: in any form that `recording.columns_of` takes.
        skipped: entries that are no events of a pixel, by kind, e.g. {"special": 3}.
    """

    events: Events | NDArray[np.generic] | dict[str, NDArray[np.generic]]
    skipped: dict[str, int] = field(default_factory=dict)


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file and give it with its size in bytes; it cannot be read or is empty: DataError."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if not size:
                raise DataError(f"{name_of(path)} is empty (0 bytes); get the file again")
            yield file, size
    except OSError as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault


def read_exactly(file: BinaryIO, count: int, path: str | Path, what: str) -> bytes:
    """Read `count` bytes, or raise a DataError that says where the file breaks off."""
    data = file.read(count)
    if len(data) != count:
        place = file.tell() - len(data)
        raise DataError(
            f"{name_of(path)} breaks off: {what} at byte {place} needs {count} bytes, "
            f"{len(data)} are left; the file is truncated or damaged"
        )
    return data


def read_comments(file: BinaryIO, path: str | Path, version: str) -> list[str]:
    """Read the lines with a # at the head of an AEDAT 2 or 3 file, without their ends.

    Args:
        file: at its beginning; left at the first byte after the lines.
        path: for messages.
        version: what the first line must announce, e.g. "2." or "3.1".

    Raises:
        DataError: the file does not begin as AEDAT of this version, saying what it is instead.
    """
    head = file.read(1024)
    file.seek(0)
    wanted = f"#!AER-DAT{version}".encode()
    if not head.startswith(wanted):
        if head.startswith(b"#!AER-DAT"):
            kind = f"AEDAT of version {shown(head[9:12].decode('ascii', 'replace'))}"
        else:
            kind = content_kind(head)
        raise DataError(f"{name_of(path)} is not an AEDAT {version} file but {kind}")
    lines: list[str] = []
    while True:
        place = file.tell()
        line = file.readline(_HEADER_LIMIT)
        if not line.startswith(b"#"):
            file.seek(place)
            return lines
        if not line.endswith(b"\n") or file.tell() > _HEADER_LIMIT:
            raise DataError(f"{name_of(path)} breaks off in its header, or has no end of it")
        text = line.decode("latin-1").rstrip("\r\n")
        lines.append(text)
        if text.startswith(("#!END-HEADER", "#End Of ASCII Header", "# End of ASCII Header")):
            return lines


class Clock:
    """A 32-bit microsecond clock, read piece by piece, with its restarts (each 71 minutes) undone.

    A step of more than half the range is taken for a restart, forward or, where events are out of
    order around one, back.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._turns = 0

    def times(self, clock: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the times of the next events of a file.

        Shape: uint32 [N] -> int64 [N].
        """
        times = clock.astype(np.int64)
        if not len(times):
            return times
        first = int(times[0]) if self._last is None else self._last
        self._last = int(times[-1])
        steps = np.diff(times, prepend=first)
        turns = (steps < -_WRAP // 2).astype(np.int64) - (steps > _WRAP // 2)
        turns = self._turns + np.cumsum(turns)
        self._turns = int(turns[-1])
        return np.asarray(times + turns * _WRAP)
