"""AEDAT 3.1 files: packets of typed events, the form of the original DVS128 Gesture.

Source: inivation's description of AEDAT 3.1. A packet has a header of 28 bytes, little-endian, and
then its events; those of type 1 are of pixels, 8 bytes each: data (bit 0 valid, 1 polarity, 2-16
row, 17-31 column) and 31 bits of microseconds, whose restarts the header counts.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.recording import EVENTS, Events
from spikeformer_lt.events.source import Raw, name_of, opened, read_comments, read_exactly

_HEADER = struct.Struct("<hhiiiiii")
_WORDS = np.dtype([("data", "<u4"), ("clock", "<u4")])
_POLARITY = 1
_LARGEST_PACKET = 1 << 28  # bytes


def read_aedat31(path: str | Path, start_us: int | None = None, end_us: int | None = None) -> Raw:
    """Read the pixel events of a file, or of one stretch of it.

    Args:
        path: the file. It is read packet by packet: memory holds the events that are returned.
        start_us: leave out what is earlier; None takes all.
        end_us: leave out this time and what is later; None takes all.

    Returns:
        `EVENTS` in file order; events that the file marks as not valid are counted as "invalid".

    Raises:
        DataError: not AEDAT 3.1, or a packet that is cut or impossible.
    """
    parts: list[Events] = []
    invalid = 0
    with opened(path) as (file, size):
        read_comments(file, path, "3.1")
        while file.tell() < size:
            words = _packet(file, size, path)
            if words is None:
                continue
            times, events = words
            valid = (events["data"] & 1) == 1
            invalid += len(events) - int(np.count_nonzero(valid))
            if start_us is not None:
                valid &= times >= start_us
            if end_us is not None:
                valid &= times < end_us
            if valid.any():
                parts.append(_decode(events["data"][valid], times[valid]))
    found = np.concatenate(parts) if parts else np.empty(0, EVENTS)
    return Raw(found, {"invalid": invalid} if invalid else {})


def _packet(
    file: BinaryIO, size: int, path: str | Path
) -> tuple[NDArray[np.int64], NDArray[np.void]] | None:
    """Read one packet: its times and events, or None if it is not of pixels."""
    place = file.tell()
    header = read_exactly(file, _HEADER.size, path, "a packet header")
    kind, _, event_size, _, overflow, capacity, number, _ = _HEADER.unpack(header)
    length = capacity * event_size
    sound = event_size > 0 and 0 <= number <= capacity and overflow >= 0 and kind >= 0
    if not sound or length > _LARGEST_PACKET or (kind == _POLARITY and event_size != 8):
        raise DataError(
            f"{name_of(path)}: the packet at byte {place} is impossible (type {kind}, {number} of "
            f"{capacity} events of {event_size} bytes); the file is damaged"
        )
    if file.tell() + length > size:
        raise DataError(
            f"{name_of(path)} breaks off: the packet at byte {place} has {length} bytes of events, "
            f"{size - file.tell()} are left; the file is truncated or damaged"
        )
    if kind != _POLARITY:
        file.seek(length, 1)
        return None
    data = read_exactly(file, length, path, "a packet")
    words = np.frombuffer(data, _WORDS, number)
    return words["clock"].astype(np.int64) | (overflow << 31), words


def _decode(data: NDArray[np.uint32], times: NDArray[np.int64]) -> Events:
    events = np.empty(len(data), EVENTS)
    events["x"] = (data >> 17) & 0x7FFF
    events["y"] = (data >> 2) & 0x7FFF
    events["p"] = (data >> 1) & 1
    events["t_us"] = times
    return events
