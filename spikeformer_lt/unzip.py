"""Zip archives from strangers, unpacked so that nothing lands outside the folder that was named."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.paths import free_bytes

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20  # bytes
_JUNK = "__MACOSX"  # a folder that macOS adds to archives


def extract_zip(
    archive: str | Path, folder: str | Path, *, max_bytes: int, max_members: int
) -> list[Path]:
    """Unpack a zip: plain files and folders only, and all of them or none.

    Members are written to a stage inside `folder` and moved to their places when the last one has
    passed its checksum.

    Args:
        archive: the file; check its hash first where one is known.
        folder: where its members go; made if missing.
        max_bytes: most bytes that all members together may have, unpacked.
        max_members: most files and folders that it may hold.

    Returns:
        The files, in archive order.

    Raises:
        DataError: a link, a name that leaves `folder` or means another place elsewhere, two members
            of one name (letter case aside), encryption, more bytes or members than allowed, a
            damaged archive, a full disk; nothing was moved into `folder`.
    """
    folder, name = Path(folder), shown(str(archive), 300)
    stage: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".extract-", dir=folder))
        with zipfile.ZipFile(archive) as packed:
            files = _unpack(packed, stage, name, max_bytes, max_members)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / file, folder / file)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as fault:
        raise DataError(f"{name} is not a whole zip archive: {shown(str(fault), 200)}") from fault
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
    packed: zipfile.ZipFile, stage: Path, name: str, max_bytes: int, max_members: int
) -> list[Path]:
    members = packed.infolist()
    if len(members) > max_members:
        raise DataError(f"{name} has {len(members)} members; allowed are {max_members}")
    files: list[Path] = []
    seen: set[str] = set()
    left = max_bytes
    for member in members:
        shape = f"{name}: member {shown(member.filename, 120)}"
        place = _inside(member, shape)
        if place.parts and place.parts[0] == _JUNK:
            continue
        if member.is_dir():
            (stage / place).mkdir(parents=True, exist_ok=True)
            continue
        key = place.as_posix().casefold()
        if not place.parts or key in seen:
            raise DataError(f"{shape} is there twice, or has no name: nothing was unpacked")
        seen.add(key)
        (stage / place).parent.mkdir(parents=True, exist_ok=True)
        with packed.open(member) as content, open(stage / place, "xb") as file:
            # What it unpacks to is counted, not what the archive says of it.
            for chunk in iter(lambda content=content: content.read(_CHUNK), b""):  # type: ignore[misc]
                left -= len(chunk)
                if left < 0:
                    raise DataError(f"{shape} goes past the {max_bytes} bytes allowed in all")
                file.write(chunk)
        files.append(Path(place))
    if not files:
        raise DataError(f"{name} holds no file")
    return files


def _inside(member: zipfile.ZipInfo, shape: str) -> PurePosixPath:
    """Return the relative path of a member, which stays below where it starts."""
    # zipfile mends names on its own; the one in the archive is what is judged.
    written = member.orig_filename
    place = PurePosixPath(written)
    if "\\" in written or "\0" in written or re.match(r"[A-Za-z]:", written):
        raise DataError(f"{shape} has a name that other systems read as another place: refused")
    if place.is_absolute() or ".." in place.parts:
        raise DataError(f"{shape} would land outside the folder: refused, nothing was unpacked")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{shape} is a link or no plain file: refused, nothing was unpacked")
    if member.flag_bits & 0x1:
        raise DataError(f"{shape} is encrypted: refused, nothing was unpacked")
    return place
