"""AEDAT 2.0 files of a DVS128 camera, as jAER writes them: the form of the original CIFAR10-DVS.

After lines with a #, events of 8 bytes, big-endian: an address and a time in microseconds.

Source: inivation's description of AEDAT 2.0; address bits of the DVS128: 0 polarity, 1-7 column,
8-14 row, 15 set for what is no pixel (a sync pulse).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.recording import EVENTS, Events
from spikeformer_lt.events.source import Clock, Raw, name_of, opened, read_comments

SIDE = 128  # pixels of the camera
_WORDS = np.dtype([("address", ">u4"), ("clock", ">u4")])
_CHUNK = 1 << 16  # events read at once


def read_aedat2(path: str | Path) -> Raw:
    """Read a DVS128 recording: x, y and polarity as the address bits have them.

    The camera's own column counts from the right, and its polarity bit is 1 for darker; what a set
    calls up, right and on is the set's to say (see `as_cifar10_dvs`).

    Args:
        path: the file. Memory stays below three times its size.

    Returns:
        `EVENTS`; pulses that are no pixel are counted as "special".

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
        count = left // _WORDS.itemsize
        events = np.empty(count, EVENTS)
        clock = Clock()
        kept = special = 0
        for first in range(0, count, _CHUNK):
            words = np.fromfile(file, _WORDS, min(_CHUNK, count - first))
            address = words["address"].astype(np.uint32)
            if len(words) and int(address.max()) > 0xFFFF:
                place = first + int(np.argmax(address > 0xFFFF))
                raise DataError(
                    f"{name_of(path)}: event {place} has the address {int(address.max()):#x}: "
                    f"not a DVS128 camera ({SIDE}x{SIDE} pixels, addresses up to 0xffff)"
                )
            pixel = (address & 0x8000) == 0
            special += len(words) - int(np.count_nonzero(pixel))
            address = address[pixel]
            part = slice(kept, kept + len(address))
            events["t_us"][part] = clock.times(words["clock"][pixel])
            events["x"][part] = (address >> 1) & 0x7F
            events["y"][part] = (address >> 8) & 0x7F
            events["p"][part] = address & 1
            kept += len(address)
    return Raw(events[:kept], {"special": special} if special else {})


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
