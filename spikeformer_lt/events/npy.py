"""NumPy files: the form of tonic's DVS128 Gesture and Poker-DVS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.events.recording import FIELDS, columns_of
from spikeformer_lt.events.source import Raw, name_of, opened
from spikeformer_lt.tensorfile import content_kind


def read_npy(
    path: str | Path, columns: Sequence[str] = FIELDS, microseconds_per_tick: int = 1
) -> Raw:
    """Read a structured array with x, y, p and t (or t_us), or a plain [N, 4] array.

    Args:
        path: the file. Nothing larger than it is allocated on the word of its header.
        columns: what the columns of a plain array are, in order.
        microseconds_per_tick: unit of the times; 1000 for files in milliseconds.

    Returns:
        A mapping of columns in the file's own types, times in microseconds.

    Raises:
        DataError: not a NumPy file, one with objects in it, cut, or of another form.
    """
    with opened(path) as (file, size):
        array = _load(file, size, path)
    found = columns_of(array, name_of(path), columns)
    times = found["t_us"]
    if microseconds_per_tick != 1 and times.dtype.kind in "iu":
        # In a wide type, and never past what the gate refuses: a product that wraps looks valid.
        limit = 2**62 // microseconds_per_tick
        times = np.clip(times, -limit if times.dtype.kind == "i" else 0, limit).astype(np.int64)
    if microseconds_per_tick != 1:
        found["t_us"] = times * microseconds_per_tick
    return Raw(found)


def _load(file: BinaryIO, size: int, path: str | Path) -> NDArray[np.generic]:
    head = file.read(1024)
    file.seek(0)
    if not head.startswith(b"\x93NUMPY"):
        raise DataError(f"{name_of(path)} is not a NumPy file but {content_kind(head)}")
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    except Exception as fault:  # numpy lets several kinds through, tokenize.TokenError among them
        raise DataError(
            f"{name_of(path)} has a damaged header: {shown(str(fault), 200)}"
        ) from fault
    if dtype.hasobject:
        raise DataError(
            f"{name_of(path)} holds Python objects, which could run code: it is not read; save the "
            "events as a numeric array"
        )
    count = 1
    for side in shape:
        count *= int(side)
    wanted, left = count * dtype.itemsize, size - file.tell()
    if wanted != left or min(shape, default=0) < 0:
        raise DataError(
            f"{name_of(path)} is truncated or damaged: its header tells of {list(shape)} {dtype}, "
            f"{wanted} bytes; {left} are there"
        )
    array: NDArray[np.generic] = np.fromfile(file, dtype, count)
    return array.reshape(shape, order="F" if fortran else "C")
