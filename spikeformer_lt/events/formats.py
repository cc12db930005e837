"""Readers of event files, and `FileReader`, which takes the one that a file needs.

AEDAT has a room of its own, `events.aedat`. DVS128 Gesture's label tables are read here, too.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.config import check
from spikeformer_lt.disk import content_kind
from spikeformer_lt.errors import DataError, name_of, one_of, shown
from spikeformer_lt.events import aedat
from spikeformer_lt.events.recording import (
    EVENTS,
    FIELDS,
    UNITS,
    Events,
    Raw,
    check_size,
    check_whole,
    columns_of,
    decoding,
    field_of,
    file_state,
    make_events,
    opened,
    parse_columns,
)
from spikeformer_lt.events.split import Sample

FORMS = (
    *("aedat2", "aedat31", "aedat4", "auto", "bin", "cifar10_dvs"),
    *("dat", "hdf5", "npy", "npz", "raw", "txt"),
)
_SUFFIXES = {
    **{".aedat": "aedat", ".aedat4": "aedat4", ".bin": "bin", ".bs2": "bin", ".dat": "dat"},
    **{".h5": "hdf5", ".hdf5": "hdf5", ".npy": "npy", ".npz": "npz", ".raw": "raw", ".txt": "txt"},
}
SUFFIXES = tuple(_SUFFIXES)
_LONGEST_HEADER = 1 << 16  # bytes before the numbers of a NumPy file
TABLES = ("hdf5", "npy", "npz", "txt")  # forms whose columns and unit of time a user may name


TABLE_ENDS = {end for end, form in _SUFFIXES.items() if form in TABLES}


@dataclass(frozen=True)
class FileReader:
    """Reads the recordings of one folder."""

    root: Path = field(repr=False)
    form: str  # one of FORMS; "auto" is `form_of` a file, "cifar10_dvs" "aedat2" turned upright
    columns: tuple[str, ...] = FIELDS  # what the columns of a plain npy array are
    microseconds_per_tick: int | None = None
    """Unit of times t, not of t_us, in tables; None are microseconds, or what a form says."""

    def __post_init__(self) -> None:
        one_of("form", self.form, FORMS)

    def __call__(self, sample: Sample) -> Raw:
        """Return what the file of a sample, or the stretch of it, holds; see the form's reader."""
        path = self.root / sample.path
        form = form_of(path) if self.form == "auto" else self.form
        if form in _OF_TABLES:
            return _OF_TABLES[form](path, self.columns, self.microseconds_per_tick)
        if form == "hdf5":
            return read_hdf5(path, self.microseconds_per_tick)
        if form == "aedat31":
            return aedat.read_aedat31(path, sample.start_us, sample.end_us)
        return _PLAIN[form](path)

    def fingerprint(self, sample: Sample) -> str:
        """Return size and date of a sample's file; a DataError if it is not there."""
        return file_state(self.root / sample.path)

    def reading(self, unit: str | None, columns: str | None) -> FileReader:
        """Return the reader with a unit of time, "us" or "ms", and columns such as "t,x,y,p".

        Raises:
            ConfigError: the form has a unit and columns of its own.
        """
        for name, value in (("unit", unit), ("columns", columns)):
            own = value is None or self.form in (*TABLES, "auto")
            check(own, name, value, f"{self.form} files say that themselves; leave it out")
        ticks = self.microseconds_per_tick if unit is None else UNITS[unit]
        named = self.columns if columns is None else parse_columns(columns)
        return replace(self, columns=named, microseconds_per_tick=ticks)


def form_of(path: str | Path) -> str:
    """Tell the form of a recording by the end of its name and its first bytes."""
    form = _SUFFIXES.get(Path(path).suffix.lower(), "")
    if not form:
        raise DataError(f"{name_of(path)} has no name of a recording: {', '.join(SUFFIXES)}")
    if form != "aedat":
        return form
    with opened(path) as (file, _):
        head = file.read(1024)
    for start, version in ((b"2.", "aedat2"), (b"3.1", "aedat31"), (b"4.0", "aedat4")):
        if head.startswith(b"#!AER-DAT" + start):
            return version
    raise DataError(f"{name_of(path)} is not AEDAT 2, 3.1 or 4 but {content_kind(head)}")


def read_npy(
    path: str | Path, columns: Sequence[str] = FIELDS, microseconds_per_tick: int | None = None
) -> Raw:
    """Read a structured array with x, y, p and t (or t_us), or a plain [N, 4] array.

    Nothing larger than the file is allocated on the word of its header. The columns that come back
    have the file's own types; times are in microseconds, as a field t_us is in any case.

    Raises:
        DataError: not a NumPy file, one with objects in it, cut, or of another form.
    """
    with opened(path) as (file, size):
        array = _load(file, size, name_of(path))
    return _in_microseconds(array, path, columns, microseconds_per_tick)


def read_npz(
    path: str | Path, columns: Sequence[str] = FIELDS, microseconds_per_tick: int | None = None
) -> Raw:
    """Read an archive of NumPy arrays x, y, p and t (or t_us), or of one array as `read_npy` does.

    Raises:
        DataError: as `read_npy`, or larger unpacked than a recording can be.
    """
    with opened(path) as (file, size):
        if not zipfile.is_zipfile(file):
            file.seek(0)
            raise DataError(f"{name_of(path)} is no .npz but {content_kind(file.read(1024))}")
        arrays = {}
        with decoding(path), zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            check_size(path, size, sum(entry.file_size for entry in entries))
            for name, entry in zip(names, entries, strict=True):
                if len(names) > 1 and field_of(name) not in (*FIELDS, "t"):
                    continue
                where = f"{name_of(path)}, {shown(entry.filename)},"
                if name in arrays:
                    raise DataError(f"{where} is there twice")
                with archive.open(entry) as member:
                    arrays[name] = _load(cast("BinaryIO", member), entry.file_size, where)
    only = arrays[names[0]] if len(names) == 1 else arrays
    return _in_microseconds(only, path, columns, microseconds_per_tick)


def read_hdf5(path: str | Path, microseconds_per_tick: int | None = None) -> Raw:
    """Read x, y, p and t (or t_us) of a group "events" or of the file, or a table "CD/events".

    Columns may also be called as `field_of` knows; ts is in seconds where it is real, unless a
    unit is given.

    Raises:
        DataError: the package h5py or the plug-in that unpacks it is missing, the file is damaged,
            has no such columns of its own, or is larger unpacked than a recording can be.
    """
    with opened(path) as (file, size):
        head = file.read(1024)
        if not head.startswith(b"\x89HDF\r\n\x1a\n"):
            raise DataError(f"{name_of(path)} is no HDF5 file but {content_kind(head)}")
        try:
            import h5py
        except ImportError as fault:
            raise DataError(
                f"{name_of(path)}: HDF5 files need the package h5py; install it with: "
                "pip install 'spikeformer_lt[hdf5]'"
            ) from fault
        with decoding(path), h5py.File(file, "r") as store:
            found = _own(store, "events") or _own(store, "CD/events") or store
            tables = {"": found}
            if isinstance(found, h5py.Group):
                theirs = sorted(map(str, found), key=lambda own: field_of(own) == own)
                names = {field_of(own): own for own in theirs if field_of(own) in (*FIELDS, "t")}
                tables = {name: _own(found, own) for name, own in names.items()}
                time = tables.get("t")
                real = names.get("t") == "ts" and time is not None and time.dtype.kind == "f"
                if real and microseconds_per_tick is None:
                    microseconds_per_tick = UNITS["s"]
            kept = {n: table for n, table in tables.items() if isinstance(table, h5py.Dataset)}
            for name, table in kept.items():
                odd = table.dtype.hasobject or table.is_virtual or table.external
                if odd or table.shape is None or table.ndim != 1:
                    what = f"{shown(table.dtype)} {table.shape}"
                    raise DataError(
                        f"{name_of(path)}: {shown(name or table.name)} is {what}; needed are "
                        "numbers in one dimension, in the file itself"
                    )
                plan = table.id.get_create_plist()
                for code, *_ in map(plan.get_filter, range(plan.get_nfilters())):
                    if not h5py.h5z.filter_avail(code):
                        raise DataError(
                            f"{name_of(path)} is packed with HDF5's filter {code}, whose plug-in "
                            "is not in HDF5_PLUGIN_PATH; 36559 is Prophesee's ECF: "
                            "github.com/prophesee-ai/hdf5_ecf"
                        )
            check_size(path, size, sum(table.nbytes for table in kept.values()))
            columns = {name: table[()] for name, table in kept.items()}
    return _in_microseconds(columns.get("", columns), path, FIELDS, microseconds_per_tick)


_LINES = 1 << 16  # of a text, read at once


def read_txt(
    path: str | Path, columns: Sequence[str] = FIELDS, microseconds_per_tick: int | None = None
) -> Raw:
    """Read lines of four numbers, parted by blanks or commas; # and % begin a comment.

    A first line of the names x, y, p and t (or t_us) tells the order. Without it the order is
    `columns`; where these are the usual ones and not all of the first column is whole, it is t, x,
    y, p with times in seconds, as in the Event Camera Dataset (Mueggler et al., arXiv:1610.08336),
    unless a unit is given.

    Raises:
        DataError: no text, or a line of another form.
    """
    named: tuple[str, ...] = ()
    parts: list[NDArray[np.float64]] = []
    with opened(path) as (file, size), decoding(path, "its lines"):
        kind = content_kind(file.read(1024))
        if not kind.startswith("a text file"):
            raise DataError(f"{name_of(path)} is no text of events but {kind}")
        file.seek(0)
        lines: Iterator[str] = (
            line
            for line in io.TextIOWrapper(file, "utf-8-sig", errors="replace")
            if line.strip()[:1] not in "#%"
        )
        first = next(lines, "")
        words, comma = re.split(r"[\s,]+", first.strip()), "," if "," in first else None
        if words[0].isidentifier():
            named = tuple(words)
        else:
            lines = itertools.chain([first], lines)
        while some := list(itertools.islice(lines, _LINES)):
            parts.append(np.loadtxt(some, delimiter=comma, comments=("#", "%"), ndmin=2))
            check_size(path, size, sum(part.nbytes for part in parts))
        table: Any = np.concatenate(parts) if parts else np.empty((0, len(FIELDS)))
        if named:
            if not len(FIELDS) <= len(named) == table.shape[1]:
                told = f"{shown(first.strip())} over lines of {table.shape[1]} numbers"
                raise DataError(f"{name_of(path)} is no text of events: {told}; name x, y, p and t")
            table = dict(zip(named, table.T, strict=True))
        elif tuple(columns) == FIELDS and (np.floor(table[:, 0]) < table[:, 0]).any():
            columns = ("t_us", "x", "y", "p")
            if microseconds_per_tick is None:
                microseconds_per_tick = UNITS["s"]
    return _in_microseconds(table, path, columns, microseconds_per_tick)


def _own(group: Any, name: str) -> Any:
    """Return a member that is in the HDF5 file itself, no link to another place, or None."""
    import h5py

    for part in name.split("/"):
        kept = isinstance(group, h5py.Group) and group.get(part, getlink=True)
        if not isinstance(kept, h5py.HardLink):
            return None
        group = group[part]
    return group


def _in_microseconds(
    events: Any, path: str | Path, columns: Sequence[str], microseconds_per_tick: int | None
) -> Raw:
    """Return the columns with times in microseconds, whole ones; a field t_us has them already."""
    named = events if isinstance(events, dict) else events.dtype.names or ()
    found = columns_of(events, name_of(path), columns)
    times = found["t_us"]
    if "t_us" in named or microseconds_per_tick in (None, 1):
        return Raw(found)
    if times.dtype.kind in "iu":
        # In a wide type, never past what the gate refuses: a product that wraps looks valid.
        limit = 2**62 // microseconds_per_tick
        times = np.clip(times, -limit if times.dtype.kind == "i" else 0, limit).astype(np.int64)
    times = times * microseconds_per_tick
    return Raw({**found, "t_us": np.rint(times) if times.dtype.kind == "f" else times})


def _load(file: BinaryIO, size: int, where: str) -> NDArray[np.generic]:
    """Read a NumPy file of `size` bytes: its header first, then no more than it has."""
    head = io.BytesIO(file.read(_LONGEST_HEADER))
    if not head.getvalue().startswith(b"\x93NUMPY"):
        raise DataError(f"{where} is not a NumPy file but {content_kind(head.read(1024))}")
    try:
        version = np.lib.format.read_magic(head)
        read_header = getattr(np.lib.format, f"read_array_header_{min(version[0], 2)}_0")
        shape, fortran, dtype = read_header(head)
    except Exception as fault:  # numpy lets several kinds through, tokenize.TokenError among them
        raise DataError(f"{where} has a damaged header: {shown(str(fault), 200)}") from fault
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, which could run code: it is not read; save the events "
            "as a numeric array"
        )
    if not dtype.itemsize or any(type(side) is not int for side in shape):
        raise DataError(f"{where} has a damaged header: {shown(shape)} of {dtype} are no events")
    count = math.prod(map(int, shape))
    wanted, left = count * dtype.itemsize, size - head.tell()
    if wanted != left or min(shape, default=0) < 0:
        raise DataError(
            f"{where} is truncated or damaged: its header tells of {list(shape)} {dtype}, {wanted} "
            f"bytes; {left} are there"
        )
    file.seek(head.tell())
    array: NDArray[np.generic] = np.frombuffer(file.read(wanted), dtype)
    return array.reshape(shape if wanted else (0, *shape[1:2]), order="F" if fortran else "C")


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
        check_whole(path, size, _SIZE)
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


_CHUNK = 1 << 14  # words of EVT 3, or events of .dat, unpacked at once


def read_evt(path: str | Path) -> Raw:
    """Read the pixel events of a Prophesee recording (.raw) in EVT 2.0 or EVT 3.0.

    Triggers and other words that are no pixel's are passed over. Memory stays below twenty times
    the file and twice the events.

    Raises:
        DataError: no such file, another version, or more events than a recording can have.

    Source: Prophesee's description of the forms and openeb's decoders.
    """
    with opened(path) as (file, size):
        header = _percent_header(file, path)
        found = re.search(r"evt ([\d.]+)|format EVT([\d.]+)", header)
        version = found and (found[1] or found[2])
        if version not in ("2.0", "2", "3.0", "3"):
            raise DataError(
                f"{name_of(path)} is in {'EVT ' + shown(version) if version else 'no EVT form'}; "
                "EVT 2.0 and 3.0 are read: convert it with Prophesee's tools"
            )
        width = 4 if version in ("2.0", "2") else 2  # bytes of a word
        check_whole(path, size - file.tell(), width)
        data = file.read()
    if width == 4:
        return Raw(_evt2_events(np.frombuffer(data, "<u4")))
    return Raw(_evt3_events(np.frombuffer(data, "<u2"), path, size))


def _percent_header(file: BinaryIO, path: str | Path) -> str:
    """Read the lines with a % at the head of a file, and leave it at the first byte after."""
    head = file.read(_LIMIT)
    if not head.startswith(b"%"):
        raise DataError(
            f"{name_of(path)} is no Prophesee recording but {content_kind(head[:1024])}"
        )
    end, line = 0, b""
    while head[end : end + 1] == b"%" and line.strip() != b"% end":
        line = head[end:].split(b"\n", 1)[0]
        if aedat.NO_TEXT.search(line):  # a word that begins with the byte of a %
            break
        end += len(line) + 1
        if end > len(head):
            raise DataError(f"{name_of(path)} breaks off in its header, or has no end of it")
    file.seek(end)
    return head[:end].decode("latin-1")


def _last(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each position the last one up to it that is marked, or -1."""
    return np.maximum.accumulate(np.where(marks, np.arange(len(marks)), -1))


def _evt2_events(words: NDArray[np.uint32]) -> Events:
    kind = words >> 28
    high = kind == 8  # the upper 28 bits of the time
    last = _last(high)
    pixel = (kind <= 1) & (last >= 0)
    upper = np.unwrap((words & 0xFFFFFFF).astype(np.int64)[high], period=1 << 28)
    words, kind = words[pixel], kind[pixel]
    turn = (np.cumsum(high) - 1)[pixel]
    times = (upper[turn] << 6) | ((words >> 22) & 0x3F)
    return make_events((words >> 11) & 0x7FF, words & 0x7FF, kind, times)


def _evt3_events(words: NDArray[np.uint16], path: str | Path, size: int) -> Events:
    """Unpack EVT 3, whose words change a state that later words add to.

    Each chunk begins with words that repeat the state at the end of the one before.
    """
    parts: list[Events] = [np.empty(0, EVENTS)]
    state, high = words[:0], int(words[words >> 12 == 8][:1].sum() & 0xFFF)
    for first in range(0, len(words), _CHUNK):
        chunk = np.concatenate([state, words[first : first + _CHUNK]])
        kind, value = chunk >> 12, (chunk & 0xFFF).astype(np.int64)
        row, base, low, upper = (_last(kind == code) for code in (0, 3, 6, 8))
        # 12 bits of the time that start again each 16.8 s, and 12 below, 0 from where those change.
        highs = np.unwrap(np.append(high, value[kind == 8]), period=1 << 12)
        now = highs[np.cumsum(kind == 8)]
        fine = np.where((low >= 0) & (now[low] == now), value[low], 0)
        # An event by itself, or up to 12 in a vector, which moves the base by its width.
        single, width = kind == 2, 12 * (kind == 4) + 8 * (kind == 5)
        end = (value & 0x7FF)[base] + np.cumsum(width) - np.cumsum(width)[base]
        x = np.where(single, value & 0x7FF, end - width)
        p = np.where(single, value, value[base]) >> 11
        bits = np.where(single, 1, value & ((1 << width) - 1))
        known = (upper >= 0) & (row >= 0) & (single | (base >= 0))
        at, place = np.nonzero(np.where(known, bits, 0)[:, None] >> np.arange(12) & 1)
        times = (now << 12) | fine
        parts.append(make_events(x[at] + place, (value & 0x7FF)[row[at]], p[at], times[at]))
        check_size(path, size, sum(part.nbytes for part in parts))
        high = int(now[-1])
        marks = ((8, upper, high & 0xFFF), (6, low, fine[-1]), (0, row, value[row[-1]]))
        repeated = [code << 12 | int(number) for code, last, number in marks if last[-1] >= 0]
        if base[-1] >= 0:
            repeated.append(3 << 12 | int(value[base[-1]] & 0x800) | int(end[-1]) & 0x7FF)
        state = np.array(repeated, np.uint16)
    return np.concatenate(parts)


def read_dat(path: str | Path) -> Raw:
    """Read the pixel events of a Prophesee .dat file, the form of N-Cars.

    Raises:
        DataError: no such file, of another kind of events, or cut.
    """
    with opened(path) as (file, size):
        header = _percent_header(file, path)
        kind, each = aedat.read_exactly(file, 2, path, "the kind of events")
        version = re.search(r"[Vv]ersion (\d+)", header)
        if kind not in (0, 12) or each != 8 or (version and version[1] != "2"):
            raise DataError(
                f"{name_of(path)} has events of kind {kind}, {each} bytes each, in version "
                f"{version[1] if version else 'none'}; pixel events of version 2 are read"
            )
        check_whole(path, size - file.tell(), each)
        events = np.empty((size - file.tell()) // each, EVENTS)
        before, now = np.empty(0, np.uint32), 0
        for first in range(0, len(events), _CHUNK):
            part = events[first : first + _CHUNK]
            words = np.frombuffer(aedat.read_exactly(file, each * len(part), path, "events"), "<u4")
            clock, data = words[::2], words[1::2]
            if first == 0:
                before, now = clock[:1], int(clock[0])
            # A clock that runs over steps by less than half its range, in 32 bits as in more.
            steps = np.diff(clock, prepend=before).view("<i4")
            part["t_us"] = now + np.cumsum(steps, dtype=np.int64)
            part["x"], part["y"], part["p"] = data & 0x3FFF, data >> 14 & 0x3FFF, data >> 28 & 1
            before, now = clock[-1:], int(part["t_us"][-1])
    return Raw(events)


_OF_TABLES = {"npy": read_npy, "npz": read_npz, "txt": read_txt}
_PLAIN: dict[str, Callable[[Path], Raw]] = {
    **{"aedat2": aedat.read_aedat2, "aedat4": aedat.read_aedat4, "bin": read_bin, "dat": read_dat},
    **{"cifar10_dvs": lambda p: aedat.as_cifar10_dvs(aedat.read_aedat2(p)), "raw": read_evt},
}

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
        with opened(path) as (file, _):
            lines = file.read(_LIMIT).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault}") from fault
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
