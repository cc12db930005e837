"""Readers of event files: NumPy arrays, an ATIS camera's .bin, DVS128 Gesture's label tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.disk import content_kind
from spikeformer_lt.errors import DataError, name_of, one_of, shown
from spikeformer_lt.events.aedat import as_cifar10_dvs, read_aedat2, read_aedat4, read_aedat31
from spikeformer_lt.events.recording import FIELDS, Raw, columns_of, make_events, opened
from spikeformer_lt.events.split import Sample

FORMS = ("aedat2", "aedat31", "aedat4", "auto", "bin", "cifar10_dvs", "npy")
SUFFIXES = (".aedat", ".aedat4", ".bin", ".npy")


@dataclass(frozen=True)
class FileReader:
    """Reads the recordings of one folder."""

    root: Path = field(repr=False)
    form: str  # one of FORMS; "auto" is `form_of` a file, "cifar10_dvs" "aedat2" turned upright
    columns: tuple[str, ...] = FIELDS  # what the columns of a plain npy array are
    microseconds_per_tick: int = 1  # unit of times in npy files

    def __post_init__(self) -> None:
        one_of("form", self.form, FORMS)

    def __call__(self, sample: Sample) -> Raw:
        """Return what the file of a sample, or the stretch of it, holds; see the form's reader."""
        path = self.root / sample.path
        form = form_of(path) if self.form == "auto" else self.form
        match form:
            case "npy":
                return read_npy(path, self.columns, self.microseconds_per_tick)
            case "aedat31":
                return read_aedat31(path, sample.start_us, sample.end_us)
            case "cifar10_dvs":
                return as_cifar10_dvs(read_aedat2(path))
        return {"aedat2": read_aedat2, "aedat4": read_aedat4, "bin": read_bin}[form](path)

    def fingerprint(self, sample: Sample) -> str:
        """Return size and date of a sample's file; a DataError if it is not there."""
        path = self.root / sample.path
        try:
            state = path.stat()
        except OSError as fault:
            raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault
        return f"{state.st_size}-{state.st_mtime_ns}"


def form_of(path: str | Path) -> str:
    """Tell the form of a recording by the end of its name and its first bytes."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise DataError(f"{name_of(path)} has no name of a recording: {', '.join(SUFFIXES)}")
    if suffix != ".aedat":
        return suffix[1:]
    with opened(path) as (file, _):
        head = file.read(1024)
    for start, form in ((b"2.", "aedat2"), (b"3.1", "aedat31"), (b"4.0", "aedat4")):
        if head.startswith(b"#!AER-DAT" + start):
            return form
    raise DataError(f"{name_of(path)} is not AEDAT 2, 3.1 or 4 but {content_kind(head)}")


def read_npy(
    path: str | Path, columns: Sequence[str] = FIELDS, microseconds_per_tick: int = 1
) -> Raw:
    """Read a structured array with x, y, p and t (or t_us), or a plain [N, 4] array.

    Nothing larger than the file is allocated on the word of its header. The columns that come back
    have the file's own types; times are in microseconds.

    Raises:
        DataError: not a NumPy file, one with objects in it, cut, or of another form.
    """
    with opened(path) as (file, size):
        array = _load(file, size, path)
    found = columns_of(array, name_of(path), columns)
    if microseconds_per_tick != 1:
        times = found["t_us"]
        if times.dtype.kind in "iu":
            # In a wide type, never past what the gate refuses: a product that wraps looks valid.
            limit = 2**62 // microseconds_per_tick
            times = np.clip(times, -limit if times.dtype.kind == "i" else 0, limit).astype(np.int64)
        found["t_us"] = times * microseconds_per_tick
    return Raw(found)


def _load(file: BinaryIO, size: int, path: str | Path) -> NDArray[np.generic]:
    head = file.read(1024)
    file.seek(0)
    if not head.startswith(b"\x93NUMPY"):
        raise DataError(f"{name_of(path)} is not a NumPy file but {content_kind(head)}")
    try:
        version = np.lib.format.read_magic(file)
        read_header = getattr(np.lib.format, f"read_array_header_{min(version[0], 2)}_0")
        shape, fortran, dtype = read_header(file)
    except Exception as fault:  # numpy lets several kinds through, tokenize.TokenError among them
        raise DataError(
            f"{name_of(path)} has a damaged header: {shown(str(fault), 200)}"
        ) from fault
    if dtype.hasobject:
        raise DataError(
            f"{name_of(path)} holds Python objects, which could run code: it is not read; save the "
            "events as a numeric array"
        )
    count = math.prod(map(int, shape))
    wanted, left = count * dtype.itemsize, size - file.tell()
    if wanted != left or min(shape, default=0) < 0:
        raise DataError(
            f"{name_of(path)} is truncated or damaged: its header tells of {list(shape)} {dtype}, "
            f"{wanted} bytes; {left} are there"
        )
    array: NDArray[np.generic] = np.fromfile(file, dtype, count)
    return array.reshape(shape, order="F" if fortran else "C")


_SIZE = 5  # bytes an event
_OVERFLOW_ROW = 240
_OVERFLOW_US = 2**13
# Kinds whose first bytes cannot be events by chance; those of a zip or a pickle can.
_FOREIGN = ("an HTML", "a Git LFS", "a text file")
_SHORT = 64  # bytes; a dozen events may well be printable


def read_bin(path: str | Path) -> Raw:
    """Read a recording of an ATIS camera, the form of N-MNIST and N-Caltech101.

    An event has 5 bytes: column, row, a bit of polarity, 23 bits of microseconds, big-endian. Row
    240 marks that the clock ran over: later times grow by 8192 us; marks are counted as "overflow".
    Garbage shows as faults of coordinates and order. Memory stays below ten times the file.

    Raises:
        DataError: a cut event, a text or a web page.

    Source: the readers of Orchard et al. 2015, "Converting Static Image Datasets to Spiking
    Neuromorphic Datasets Using Saccades".
    """
    with opened(path) as (file, size):
        head = file.read(1024)
        kind = content_kind(head)
        if kind.startswith(_FOREIGN) and len(head) > _SHORT:
            raise DataError(f"{name_of(path)} is not an ATIS recording but {kind}")
        if size % _SIZE:
            raise DataError(
                f"{name_of(path)} breaks off: {size} bytes are no multiple of {_SIZE}; the file is "
                "truncated or damaged"
            )
        file.seek(0)
        rows = np.fromfile(file, np.uint8).reshape(-1, _SIZE)
    mark = rows[:, 1] == _OVERFLOW_ROW
    times = ((rows[:, 2] & 127).astype(np.int64) << 16) | (rows[:, 3].astype(np.int64) << 8)
    times |= rows[:, 4]
    overflows = int(np.count_nonzero(mark))
    if overflows:
        times += np.cumsum(mark) * _OVERFLOW_US
        rows, times = rows[~mark], times[~mark]
    events = make_events(rows[:, 0], rows[:, 1], rows[:, 2] >> 7, times)
    return Raw(events, {"overflow": overflows} if overflows else {})


_NAME = re.compile(r"user(\d+)_[\w-]+\.aedat")
_ROW = re.compile(r"\s*(\d{1,4})\s*,\s*(\d{1,15})\s*,\s*(\d{1,15})\s*")
_LIMIT = 1_000_000  # bytes of a list or csv file


def read_trials(home: Path, num_classes: int) -> dict[str, list[Sample]]:
    """Read which stretch of which file of the original DVS128 Gesture is which gesture.

    ``trials_to_train.txt`` and ``trials_to_test.txt`` name files; beside ``user01_led.aedat`` the
    file ``user01_led_labels.csv`` has lines ``class,startTime_usec,endTime_usec``, classes from 1.

    Returns:
        {"train": ..., "test": ...}: stretches, sorted, each with its person as the group.

    Raises:
        DataError: a file is missing or malformed; file and line are named.
    """
    parts: dict[str, list[Sample]] = {"train": [], "test": []}
    for part, samples in parts.items():
        listing = home / f"trials_to_{part}.txt"
        for number, line in _lines(listing):
            named = _NAME.fullmatch(line)
            if named is None:
                what = f"{shown(line)} is no user<number>_<light>.aedat"
                raise DataError(f"{name_of(listing)}, line {number}: {what}")
            if not (home / line).is_file():
                raise DataError(f"{name_of(home / line)} is missing; {listing.name} lists it")
            samples += _stretches(home, line, str(int(named[1])), num_classes)
        samples.sort()
    return parts


def _stretches(home: Path, recording: str, person: str, num_classes: int) -> list[Sample]:
    table = home / f"{recording.removesuffix('.aedat')}_labels.csv"
    samples = []
    for number, line in _lines(table):
        if number == 1 and line.lower().startswith("class"):
            continue
        row = _ROW.fullmatch(line)
        label, start, end = (int(cell) for cell in row.groups()) if row else (0, 0, 0)
        if not 1 <= label <= num_classes or end <= start:
            raise DataError(
                f"{name_of(table)}, line {number}: {shown(line)} is no class (1 to {num_classes}), "
                "start and later end in microseconds"
            )
        samples.append(Sample(recording, start, end, label - 1, person))
    return samples


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return (number, text) of the lines that are not blank."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_LIMIT).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault}") from fault
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
