"""Archives from strangers, unpacked so that nothing lands outside the folder that was named."""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, cast

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.paths import free_bytes

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20  # bytes
_HEADERS = 4096  # bytes a member may cost beside its content: header, long name, padding


def extract_tar(
    archive: str | Path, folder: str | Path, *, max_bytes: int, max_members: int
) -> list[Path]:
    """Unpack a tar or tar.gz: plain files and folders only, and all of them or none.

    Members are written to a stage inside `folder` and moved to their places when the last one has
    passed. Modes, owners and times of the archive are not applied.

    Args:
        archive: the file; check its hash first where one is known.
        folder: where its members go; made if missing.
        max_bytes: most bytes that all members together may have.
        max_members: most files and folders that it may hold.

    Returns:
        The files, in archive order.

    Raises:
        DataError: a link, a device, a name that leaves `folder`, two members of one name (letter
            case aside), more bytes or members than allowed, a damaged archive, a full disk; the
            message names the member and nothing was moved into `folder`.
    """
    folder = Path(folder)
    name = shown(str(archive), 300)
    stage: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".extract-", dir=folder))
        with open(archive, "rb") as packed:
            files = _unpack(packed, stage, name, max_bytes, max_members)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / file, folder / file)
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(f"{name} is not a whole tar archive: {shown(str(fault))}") from fault
    except OSError as fault:
        raise DataError(
            f"cannot unpack {name} into {shown(str(folder), 300)}: {fault.strerror or fault}; "
            f"{free_bytes(folder)} bytes free"
        ) from fault
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
    _log.info("unpacked %d files of %s into %s", len(files), archive, folder)
    return [folder / file for file in files]


def _unpack(
    packed: IO[bytes], stage: Path, name: str, max_bytes: int, max_members: int
) -> list[Path]:
    magic = packed.read(2)
    packed.seek(0)
    plain = cast("IO[bytes]", gzip.GzipFile(fileobj=packed)) if magic == b"\x1f\x8b" else packed
    capped = _Capped(plain, name, max_bytes + _HEADERS * (max_members + 256))
    files: list[Path] = []
    seen: set[str] = set()
    left = max_bytes
    # A stream is read front to back, once: no member is looked at before the caps have passed it.
    with tarfile.open(fileobj=cast("IO[bytes]", capped), mode="r|") as tar:
        for count, member in enumerate(tar, start=1):
            shape = f"{name}: member {shown(member.name, 120)}"
            if count > max_members:
                raise DataError(f"{shape} is one more than the {max_members} allowed")
            place = _inside(member.name, shape)
            if member.isdir():
                (stage / place).mkdir(parents=True, exist_ok=True)
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                kind = "a link" if member.issym() or member.islnk() else "not a plain file"
                raise DataError(f"{shape} is {kind}: refused, nothing was unpacked")
            key = place.as_posix().casefold()
            if not place.parts or key in seen:
                raise DataError(f"{shape} is there twice, or has no name: nothing was unpacked")
            seen.add(key)
            left -= member.size
            if left < 0 or member.size < 0:
                raise DataError(f"{shape} goes past the {max_bytes} bytes allowed in all")
            content = tar.extractfile(member)
            assert content is not None  # it is a plain file
            _write(content, stage / place, member.size, shape)
            files.append(Path(place))
    if not files:
        raise DataError(f"{name} holds no file")
    return files


def _inside(name: str, shape: str) -> PurePosixPath:
    """Return the relative path that `name` spells, which stays below where it starts."""
    place = PurePosixPath(name)
    if "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{shape} has a name that other systems read as another place: refused")
    if place.is_absolute() or ".." in place.parts:
        raise DataError(f"{shape} would land outside the folder: refused, nothing was unpacked")
    return place


def _write(content: IO[bytes], path: Path, size: int, shape: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with open(path, "xb") as file:
        for chunk in iter(lambda: content.read(_CHUNK), b""):
            written += len(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if written != size:
        raise DataError(f"{shape} has {written} of its {size} bytes: the archive is cut")


class _Capped:
    """A stream that refuses to give more than `limit` bytes (a small file can unpack to 100 GB)."""

    def __init__(self, stream: IO[bytes], name: str, limit: int) -> None:
        self.stream, self.name, self.limit, self.given = stream, name, limit, 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.given += len(data)
        if self.given > self.limit:
            raise DataError(f"{self.name} unpacks to more than the {self.limit} bytes allowed")
        return data
