"""The reader of a set of files: which form they have, and what their columns mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spikeformer_lt.errors import ConfigError, DataError, near
from spikeformer_lt.events.aedat2 import as_cifar10_dvs, read_aedat2
from spikeformer_lt.events.aedat4 import read_aedat4
from spikeformer_lt.events.aedat31 import read_aedat31
from spikeformer_lt.events.bin import read_bin
from spikeformer_lt.events.npy import read_npy
from spikeformer_lt.events.recording import FIELDS
from spikeformer_lt.events.samples import Sample
from spikeformer_lt.events.source import Raw, name_of, opened
from spikeformer_lt.tensorfile import content_kind

FORMS = ("aedat2", "aedat31", "aedat4", "bin", "cifar10_dvs", "npy")
SUFFIXES = (".aedat", ".aedat4", ".bin", ".npy")


@dataclass(frozen=True)
class FileReader:
    """Reads the recordings of one folder.

    Attributes:
        root: the folder.
        form: "npy", "aedat2", "aedat31", "aedat4", "bin", or "cifar10_dvs" (AEDAT 2, turned
            upright).
        columns: what the columns of a plain npy array are.
        microseconds_per_tick: unit of times in npy files.
    """

    root: Path = field(repr=False)
    form: str
    columns: tuple[str, ...] = FIELDS
    microseconds_per_tick: int = 1

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(
                f"form={self.form!r} is not allowed{near(self.form, FORMS) or ';'} "
                f"use {', '.join(FORMS)}"
            )

    def __call__(self, sample: Sample) -> Raw:
        """Return what the file of a sample holds, or the stretch of it.

        Raises:
            DataError: as the reader of the form.
        """
        path = self.root / sample.path
        if self.form == "npy":
            return read_npy(path, self.columns, self.microseconds_per_tick)
        if self.form == "aedat31":
            return read_aedat31(path, sample.start_us, sample.end_us)
        if self.form == "cifar10_dvs":
            return as_cifar10_dvs(read_aedat2(path))
        return {"aedat2": read_aedat2, "aedat4": read_aedat4, "bin": read_bin}[self.form](path)

    def fingerprint(self, sample: Sample) -> str:
        """Return size and date of a sample's file.

        Raises:
            DataError: it is not there.
        """
        path = self.root / sample.path
        try:
            state = path.stat()
        except OSError as fault:
            raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault
        return f"{state.st_size}-{state.st_mtime_ns}"


def form_of(path: str | Path) -> str:
    """Tell the form of a recording by the end of its name and its first bytes.

    Raises:
        DataError: none of ours; the message says what the file is.
    """
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
