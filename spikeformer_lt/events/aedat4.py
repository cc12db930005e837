"""AEDAT 4 files, through the optional package aedat: the form of tonic's CIFAR10-DVS."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.events.recording import EVENTS, Events
from spikeformer_lt.events.source import Raw, name_of, opened
from spikeformer_lt.tensorfile import content_kind

_MAGIC = b"#!AER-DAT4.0"


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
    with opened(path) as (file, _):
        head = file.read(1024)
    if not head.startswith(_MAGIC):
        raise DataError(f"{name_of(path)} is not an AEDAT 4 file but {content_kind(head)}")
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
