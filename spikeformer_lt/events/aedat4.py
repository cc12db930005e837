"""AEDAT 4 files, through the optional package aedat: the form of tonic's CIFAR10-DVS."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.events.recording import EVENTS, Events
from spikeformer_lt.events.source import Raw, name_of, opened, read_exactly
from spikeformer_lt.tensorfile import content_kind

_MAGIC = b"#!AER-DAT4.0\r\n"
_LENGTH = struct.Struct("<I")
_PACKET = struct.Struct("<II")  # stream, bytes


def read_aedat4(path: str | Path) -> Raw:
    """Read the first stream of pixel events of a file.

    Args:
        path: the file.

    Returns:
        `EVENTS` in file order.

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
    parts: list[Events] = []
    try:
        decoder = aedat.Decoder(str(path))
        streams = decoder.id_to_stream()
        chosen = min((i for i, s in streams.items() if s["type"] == "events"), default=None)
        if chosen is None:
            raise DataError(f"{name_of(path)} has no stream of events")
        for packet in decoder:
            if packet["stream_id"] == chosen:
                found = packet["events"]
                events = np.empty(len(found), EVENTS)
                for name, theirs in (("x", "x"), ("y", "y"), ("p", "on"), ("t_us", "t")):
                    events[name] = found[theirs]
                parts.append(events)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, DataError):
        raise
    except BaseException as fault:  # pyo3's PanicException derives from BaseException alone
        raise DataError(
            f"{name_of(path)} is damaged or not AEDAT 4: {type(fault).__name__}: "
            f"{shown(str(fault), 200)}"
        ) from fault
    return Raw(np.concatenate(parts) if parts else np.empty(0, EVENTS))


def _walk(path: str | Path) -> None:
    """Check that the header and all packets lie within the file.

    The package takes their lengths on trust, and the header's text for UTF-8. Where it cannot get
    the memory that a damaged length asks for, or the text is none, it ends the whole process, which
    no handler can catch.
    """
    with opened(path) as (file, size):
        head = file.read(1024)
        if not head.startswith(_MAGIC):
            raise DataError(f"{name_of(path)} is not an AEDAT 4 file but {content_kind(head)}")
        file.seek(len(_MAGIC))
        (length,) = _LENGTH.unpack(read_exactly(file, _LENGTH.size, path, "the header's length"))
        place = file.tell() + length
        if place <= size:
            _check_text(file.read(length), path)
        while place < size:
            file.seek(place)
            _, length = _PACKET.unpack(read_exactly(file, _PACKET.size, path, "a packet header"))
            place = file.tell() + length
        if place > size:
            raise DataError(
                f"{name_of(path)} breaks off: what ends at byte {place} is in a file of {size} "
                "bytes; it is truncated or damaged"
            )


def _check_text(header: bytes, path: str | Path) -> None:
    """Refuse a header whose description of the streams is no text."""
    first, last = header.find(b"<"), header.rfind(b">")
    try:
        header[first : last + 1].decode("utf-8")
    except UnicodeDecodeError as fault:
        raise DataError(
            f"{name_of(path)} is damaged: the description of its streams is no text"
        ) from fault
