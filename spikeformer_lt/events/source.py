"""The bytes of a recording: opened and read so that every fault names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.events.recording import Events
from spikeformer_lt.tensorfile import content_kind

HEADER_LIMIT = 1_000_000  # bytes of text before the events
_WRAP = 2**32  # microseconds, where a 32-bit clock starts again


@dataclass(frozen=True)
class Raw:
    """What a file holds, not yet validated.

    Attributes:
        events: in any form that `recording.columns_of` takes.
        skipped: entries that are no events of a pixel, by kind, e.g. {"special": 3}.
    """

    events: Events | NDArray[np.generic] | dict[str, NDArray[np.generic]]
    skipped: dict[str, int] = field(default_factory=dict)


def name_of(path: str | Path) -> str:
    """Return a path as messages show it."""
    return shown(str(path), 300)


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading and give it with its size in bytes.

    Raises:
        DataError: it cannot be opened or read, or is empty.
    """
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
    """Read `count` bytes.

    Raises:
        DataError: fewer are left; the message says where the file breaks off.
    """
    data = file.read(count)
    if len(data) != count:
        place = file.tell() - len(data)
        raise DataError(
            f"{name_of(path)} breaks off: {what} at byte {place} needs {count} bytes, "
            f"{len(data)} are left; the file is truncated or damaged"
        )
    return data


def read_comments(file: BinaryIO, path: str | Path, version: str) -> list[str]:
    """Read the lines with a # at the head of an AEDAT 2 or 3 file.

    Args:
        file: at its beginning; left at the first byte after the lines.
        path: for messages.
        version: what the first line must announce, e.g. "2." or "3.1".

    Returns:
        The lines without their ends.

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
        line = file.readline(HEADER_LIMIT)
        if not line.startswith(b"#"):
            file.seek(place)
            return lines
        if not line.endswith(b"\n") or file.tell() > HEADER_LIMIT:
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
