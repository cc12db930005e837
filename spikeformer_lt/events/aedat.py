"""AEDAT 2, 3.1 and 4, after inivation's descriptions of these forms.

2.0 is the form of the original CIFAR10-DVS, 3.1 of the original DVS128 Gesture, and 4, which the
optional package aedat reads, of tonic's CIFAR10-DVS.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.disk import content_kind
from spikeformer_lt.errors import DataError, name_of, shown
from spikeformer_lt.events.recording import EVENTS, Events, Raw, make_events, opened

SIDE = 128  # pixels of the camera
_WORDS = np.dtype([("address", ">u4"), ("clock", ">u4")])
_HEADER_LIMIT = 1_000_000  # bytes of text before the events
_WRAP = 2**32  # microseconds, where a 32-bit clock starts again


def read_aedat2(path: str | Path) -> Raw:
    """Read a DVS128 recording: x, y and polarity as the address bits have them.

    Events of 8 bytes, big-endian: an address (bit 0 polarity, 1-7 column, 8-14 row, 15 set for what
    is no pixel, counted as "special") and a time in microseconds. The camera's column counts from
    the right, and its polarity bit is 1 for darker: see `as_cifar10_dvs`. Memory stays below ten
    times the file.

    Raises:
        DataError: not AEDAT 2, a cut event, or addresses of another camera.
    """
    with opened(path) as (file, size):
        read_comments(file, path, "2.")
        left = size - file.tell()
        if left % _WORDS.itemsize:
            raise DataError(
                f"{name_of(path)} breaks off: {left} bytes of events are no multiple of "
                f"{_WORDS.itemsize}; the file is truncated or damaged"
            )
        words = np.fromfile(file, _WORDS)
    address = words["address"].astype(np.uint32)
    if address.max(initial=0) > 0xFFFF:
        raise DataError(
            f"{name_of(path)}: event {np.argmax(address > 0xFFFF)} has the address "
            f"{address.max():#x}: not a DVS128 camera ({SIDE}x{SIDE} pixels, addresses up to "
            "0xffff)"
        )
    pixel = (address & 0x8000) == 0
    special = len(words) - int(np.count_nonzero(pixel))
    address, clock = address[pixel], words["clock"][pixel].astype(np.int64)
    x, y, p = (address >> 1) & 0x7F, (address >> 8) & 0x7F, address & 1
    # A step of more than half the clock's range is a restart, or back over one in lost order.
    events = make_events(x, y, p, np.unwrap(clock, period=_WRAP))
    return Raw(events, {"special": special} if special else {})


def as_cifar10_dvs(raw: Raw) -> Raw:
    """Turn the camera's view into the upright image, 1 being brighter.

    Source: the set's own MATLAB reader (Li et al. 2017, doi:10.3389/fnins.2017.00309) swaps the two
    axes and counts both from the other end; spikingjelly does the same.
    """
    events = raw.events
    assert isinstance(events, np.ndarray) and events.dtype == EVENTS
    turned: Events = np.array(events)
    turned["x"], turned["y"] = SIDE - 1 - turned["y"], SIDE - 1 - turned["x"]
    turned["p"] = 1 - turned["p"]
    return Raw(turned, raw.skipped)


_HEADER = struct.Struct("<hhiiiiii")
_AEDAT31_WORDS = np.dtype([("data", "<u4"), ("clock", "<u4")])
_POLARITY = 1
_LARGEST_PACKET = 1 << 28  # bytes


def read_aedat31(path: str | Path, start_us: int | None = None, end_us: int | None = None) -> Raw:
    """Read the pixel events of a file, or of one stretch of it, in file order.

    A packet has a header of 28 bytes, little-endian, and then its events; those of type 1 are of
    pixels, 8 bytes each: data (bit 0 valid, 1 polarity, 2-16 row, 17-31 column) and 31 bits of
    microseconds, whose restarts the header counts. What is not valid is counted as "invalid".

    Args:
        path: the file. It is read packet by packet: memory holds the events that are returned.
        start_us: first time that is taken; None takes all.
        end_us: first time after that; None takes all.

    Raises:
        DataError: not AEDAT 3.1, or a packet that is cut or impossible.
    """
    parts: list[Events] = [np.empty(0, EVENTS)]
    invalid = 0
    with opened(path) as (file, size):
        read_comments(file, path, "3.1")
        while file.tell() < size:
            times, events = _packet(file, size, path)
            valid = (events["data"] & 1) == 1
            invalid += len(events) - int(np.count_nonzero(valid))
            if start_us is not None:
                valid &= times >= start_us
            if end_us is not None:
                valid &= times < end_us
            data = events["data"][valid]
            x, y, p = (data >> 17) & 0x7FFF, (data >> 2) & 0x7FFF, (data >> 1) & 1
            parts.append(make_events(x, y, p, times[valid]))
    return Raw(np.concatenate(parts), {"invalid": invalid} if invalid else {})


def _packet(
    file: BinaryIO, size: int, path: str | Path
) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Read the times and events of one packet; there are none if it is not of pixels."""
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
    data = read_exactly(file, length, path, "a packet")
    words = np.frombuffer(data, _AEDAT31_WORDS, number if kind == _POLARITY else 0)
    return words["clock"].astype(np.int64) | (overflow << 31), words


_MAGIC = b"#!AER-DAT4.0\r\n"
_LENGTH = struct.Struct("<I")
_PACKET = struct.Struct("<II")  # stream, bytes


def read_aedat4(path: str | Path) -> Raw:
    """Read the first stream of pixel events of a file, in file order.

    Raises:
        DataError: the package aedat is missing, or the file is not AEDAT 4, has no events or is
            damaged. The package is compiled, and a panic in it is no Exception: it is caught too.
    """
    _walk(path)
    try:
        import aedat
    except ImportError as fault:
        raise DataError(
            f"{name_of(path)}: AEDAT 4 files need the package aedat; "
            "install it with: pip install 'spikeformer_lt[aedat]'"
        ) from fault
    parts: list[Events] = [np.empty(0, EVENTS)]
    try:
        decoder = aedat.Decoder(str(path))
        streams = decoder.id_to_stream()
        chosen = min((i for i, s in streams.items() if s["type"] == "events"), default=None)
        if chosen is None:
            raise DataError(f"{name_of(path)} has no stream of events")
        for packet in decoder:
            if packet["stream_id"] == chosen:
                found = packet["events"]
                parts.append(make_events(found["x"], found["y"], found["on"], found["t"]))
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, DataError):
        raise
    except BaseException as fault:  # pyo3's PanicException derives from BaseException alone
        raise DataError(
            f"{name_of(path)} is damaged or not AEDAT 4: {type(fault).__name__}: "
            f"{shown(str(fault), 200)}"
        ) from fault
    return Raw(np.concatenate(parts))


def _walk(path: str | Path) -> None:
    """Check that the header and all packets lie within the file.

    The package trusts their lengths and the header's text. Where a damaged length asks for too much
    memory, or the text is not UTF-8, it ends the whole process, which no handler can catch.
    """
    with opened(path) as (file, size):
        head = file.read(1024)
        if not head.startswith(_MAGIC):
            raise DataError(f"{name_of(path)} is not an AEDAT 4 file but {content_kind(head)}")
        file.seek(len(_MAGIC))
        (length,) = _LENGTH.unpack(read_exactly(file, _LENGTH.size, path, "the header's length"))
        place = file.tell() + length
        if place <= size:
            text = file.read(length)
            try:
                text[text.find(b"<") : text.rfind(b">") + 1].decode("utf-8")
            except UnicodeDecodeError as fault:
                raise DataError(
                    f"{name_of(path)} is damaged: the description of its streams is no text"
                ) from fault
        while place < size:
            file.seek(place)
            _, length = _PACKET.unpack(read_exactly(file, _PACKET.size, path, "a packet header"))
            place = file.tell() + length
        if place > size:
            raise DataError(
                f"{name_of(path)} breaks off: what ends at byte {place} is in a file of {size} "
                "bytes; it is truncated or damaged"
            )


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
    """Read the lines with a # at the head of an AEDAT file of `version`, such as "2." or "3.1"."""
    head = file.read(1024)
    file.seek(0)
    wanted = f"#!AER-DAT{version}".encode()
    if not head.startswith(wanted):
        kind = content_kind(head)
        if head.startswith(b"#!AER-DAT"):
            kind = f"AEDAT of version {shown(head[9:12].decode('ascii', 'replace'))}"
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
