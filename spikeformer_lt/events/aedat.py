"""AEDAT 2, 3.1 and 4, after inivation's descriptions of these forms.

2.0 is the form of the original CIFAR10-DVS, 3.1 of the original DVS128 Gesture, and 4 of tonic's
CIFAR10-DVS.
"""

from __future__ import annotations

import importlib
import os
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.disk import content_kind
from spikeformer_lt.errors import DataError, name_of, shown
from spikeformer_lt.events.recording import (
    EVENTS,
    FIELDS,
    Events,
    Raw,
    check_size,
    check_whole,
    decoding,
    largest_size,
    make_events,
    opened,
)

SIDE = 128  # pixels of the camera


class _Layout(NamedTuple):
    """Where the bits of an AEDAT 2 address are: shifts, masks after them, and marks."""

    p: int
    x: int
    width: int
    y: int
    height: int
    special: int  # bits of what is no pixel's event
    largest: int


# By a word in the chip's name. Source: jAER, DVS128.java and DavisChip.java.
_CHIPS = {
    "dvs128": _Layout(0, 1, 0x7F, 8, 0x7F, 0x8000, 0xFFFF),
    "davis": _Layout(11, 12, 0x3FF, 22, 0x1FF, 0x80000400, 0xFFFFFFFF),
}
_WORDS = np.dtype([("address", ">u4"), ("clock", ">u4")])
NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_HEADER_LIMIT = 1_000_000  # bytes of text before the events
_WRAP = 2**32  # microseconds, where a 32-bit clock starts again


def read_aedat2(path: str | Path) -> Raw:
    """Read a recording of a DVS128 or, by its header's line AEChip, of a DAVIS camera.

    Events of 8 bytes, big-endian: an address and a time in microseconds. x, y and polarity are as
    the address bits have them; what is no pixel's event is counted as "special". A DVS128 counts
    columns from the right, and its polarity bit is 1 for darker: see `as_cifar10_dvs`. Memory stays
    below ten times the file.

    Raises:
        DataError: not AEDAT 2, a cut event, or another camera.
    """
    with opened(path) as (file, size):
        header = read_comments(file, path, "2.")
        check_whole(path, size - file.tell(), _WORDS.itemsize)
        words = np.fromfile(file, _WORDS)
    address = words["address"].astype(np.uint32)
    chips = [line.split("AEChip:")[1].strip() for line in header if "AEChip:" in line]
    chip = chips[-1].split(".")[-1] if chips else "DVS128"
    layout = next((bits for word, bits in _CHIPS.items() if word in chip.lower()), None)
    if layout is None or address.max(initial=0) > layout.largest:
        what = f"its chip is {shown(chip)}" if chips else "its header names no chip"
        if layout is not None:
            place = np.argmax(address > layout.largest)
            what = (
                f"event {place} has the address {address.max():#x}: not a DVS128 camera "
                f"({SIDE}x{SIDE} pixels, addresses up to 0xffff), and {what}"
            )
        raise DataError(f"{name_of(path)}: {what}; DVS128 and DAVIS cameras are read")
    pixel = (address & layout.special) == 0
    special = len(words) - int(np.count_nonzero(pixel))
    address, clock = address[pixel], words["clock"][pixel].astype(np.int64)
    x, y = (address >> layout.x) & layout.width, (address >> layout.y) & layout.height
    p = (address >> layout.p) & 1
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
_LARGEST_WINDOW = 1 << 27  # bytes that zstandard keeps


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
        for line in read_comments(file, path, "3.1"):
            start, _, form = line.partition("Format: ")
            if start == "#" and form.strip() != "RAW":
                raise DataError(f"{name_of(path)} has the format {shown(form)}; RAW is read")
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
_PACKINGS = ("", "lz4", "lz4", "zstandard", "zstandard")  # the package, by the header's number
_PACKET = struct.Struct("<iI")  # stream, bytes
_AEDAT4_EVENT = np.dtype(
    {
        "names": FIELDS,
        "formats": ["<i2", "<i2", "u1", "<i8"],
        "offsets": [8, 10, 12, 0],
        "itemsize": 16,
    }
)
_STREAM = re.compile(r'<node\b[^>]*\boutInfo/(\d{1,9})/?"[^>]*>')


def write_aedat31(path: str | Path, events: Events, comment: str = "") -> None:
    """Write valid events of a DVS128, in order of time, as `read_aedat31` reads them.

    Packets hold the events of one turn of the clock, at most 4,096; `comment` is a line of the
    header. Times must be below 2**62 microseconds.
    """
    words = np.empty(len(events), [("data", "<u4"), ("clock", "<u4")])
    x, y, p = (events[name].astype(np.uint32) for name in ("x", "y", "p"))
    words["data"], words["clock"] = x << 17 | y << 2 | p << 1 | 1, events["t_us"] & 0x7FFFFFFF
    turns = events["t_us"] >> 31
    borders = np.union1d(np.arange(0, len(events), 4096), np.nonzero(np.diff(turns))[0] + 1)
    lines = ["#!AER-DAT3.1", "#Format: RAW", "#Source 1: DVS128", f"#{comment}", "#!END-HEADER"]
    with open(path, "wb") as file:
        file.write("".join(f"{line}\r\n" for line in lines if line != "#").encode("ascii"))
        for first, last in pairwise([*borders.tolist(), len(events)]):
            n = last - first
            file.write(struct.pack("<hhiiiiii", 1, 1, 8, 4, int(turns[first]), n, n, n))
            file.write(words[first:last].tobytes())


def read_aedat4(path: str | Path) -> Raw:
    """Read the first stream of pixel events of a file, in file order.

    The file is read packet by packet, up to the index that DV appends to a finished recording.

    Raises:
        DataError: not AEDAT 4, no stream of events, damaged, larger unpacked than a recording can
            be, or packed while the package that unpacks it is missing.
    """
    parts: list[Events] = [np.empty(0, EVENTS)]
    with opened(path) as (file, size):
        packing, chosen, end = _description(file, size, path)
        while (place := file.tell()) < end:
            header = read_exactly(file, _PACKET.size, path, "a packet header")
            stream, length = _PACKET.unpack(header)
            if length > end - file.tell():
                raise DataError(
                    f"{name_of(path)} breaks off: the packet at byte {place} has {length} bytes, "
                    f"{end - file.tell()} are left; the file is truncated or damaged"
                )
            if stream == chosen:
                data = _unpacked(read_exactly(file, length, path, "a packet"), packing, path)
                with decoding(path, f"the packet at byte {place}"):
                    events = _Table(data, b"EVTS").vector(0, _AEDAT4_EVENT)
                parts.append(make_events(*(events[name] for name in FIELDS)))
                check_size(path, size, sum(part.nbytes for part in parts))
            else:
                file.seek(length, os.SEEK_CUR)
    return Raw(np.concatenate(parts))


def _description(file: BinaryIO, size: int, path: str | Path) -> tuple[str, int, int]:
    """Read the header: what unpacks the packets, the stream of events, where packets end."""
    head = file.read(len(_MAGIC) + 4)
    if not head.startswith(_MAGIC):
        raise DataError(f"{name_of(path)} is not an AEDAT 4 file but {content_kind(head)}")
    length = int.from_bytes(head[len(_MAGIC) :], "little")
    header = read_exactly(file, min(length, size), path, "the header")
    with decoding(path, "the header"):
        table = _Table(head[len(_MAGIC) :] + header, b"IOHE")
        packing, index = _PACKINGS[table.number(0, "<I", 0)], table.number(1, "<q", -1)
        text = bytes(table.vector(2, np.dtype("u1"))).decode("utf-8")
    # What follows the description of a stream, up to the next one, is about that stream.
    _, *told = _STREAM.split(text)
    streams = [
        int(number)
        for number, about in zip(told[::2], told[1::2], strict=True)
        if ">EVTS<" in about
    ]
    if not streams:
        raise DataError(f"{name_of(path)} has no stream of events")
    if index > size:
        raise DataError(
            f"{name_of(path)} breaks off: its index is at byte {index} of {size}; the file is "
            "truncated or damaged"
        )
    return packing, min(streams), index if index > 0 else size


def _unpacked(data: bytes, packing: str, path: str | Path) -> bytes:
    """Return the content of a packet; no more is unpacked than `check_size` lets through."""
    if not packing:
        return data
    try:
        module = importlib.import_module(packing if packing != "lz4" else "lz4.frame")
    except ImportError as fault:
        raise DataError(
            f"{name_of(path)}: its packets need the package {packing}; install it with: "
            "pip install 'spikeformer_lt[aedat]'"
        ) from fault
    most = largest_size(len(data)) + 1
    with decoding(path, "a packet"):
        if packing == "lz4":
            found: bytes = module.LZ4FrameDecompressor().decompress(data, max_length=most)
        else:
            with module.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(
                data
            ) as reader:
                found = reader.read(most)
    check_size(path, len(data), len(found))
    return found


class _Table:
    """The root table of a FlatBuffer with its size before it; fields have numbers.

    Source: https://flatbuffers.dev/internals and the schemas of AEDAT 4.
    """

    def __init__(self, data: bytes, identifier: bytes) -> None:
        self.data = memoryview(data)[4:]
        if self.data[4:8] != identifier:
            raise ValueError(f"{identifier.decode()} is not its kind")
        self.root = self._at("<I", 0)
        self.fields = self.root - self._at("<i", self.root)

    def number(self, field: int, form: str, default: int) -> int:
        """Return a number, in a form of `struct`."""
        place = self._place(field)
        return self._at(form, place) if place else default

    def vector(self, field: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """Return a vector of numbers or structures, [N]; a view."""
        place = self._place(field)
        if not place:
            return np.empty(0, kind)
        place += self._at("<I", place)
        return np.frombuffer(self.data, kind, self._at("<I", place), place + 4)

    def _place(self, field: int) -> int:
        """Return where a field is, or 0 where it is left out."""
        slot = 4 + 2 * field
        if slot >= self._at("<H", self.fields):
            return 0
        offset = self._at("<H", self.fields + slot)
        return self.root + offset if offset else 0

    def _at(self, form: str, place: int) -> int:
        if place < 0:
            raise ValueError(f"an offset of {place}")
        return int(struct.unpack_from(form, self.data, place)[0])


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
        # An event may begin with the byte of a #; the zeros of its time are no text.
        if not line.startswith(b"#") or NO_TEXT.search(line):
            file.seek(place)
            return lines
        if not line.endswith(b"\n") or file.tell() > _HEADER_LIMIT:
            raise DataError(f"{name_of(path)} breaks off in its header, or has no end of it")
        text = line.decode("latin-1").rstrip("\r\n")
        lines.append(text)
        if text.startswith(("#!END-HEADER", "#End Of ASCII Header", "# End of ASCII Header")):
            return lines
