"""Files and folders: names that stay inside the output folder, files that appear all at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path

from spikeformer_lt.errors import CheckpointError, SpikeformerError, shown

NAME_LIMIT = 100  # characters; file systems allow 255 bytes and we append to names
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows


def safe_name(text: str) -> str:
    """Turn any text into one file name: no separator, no leading dot, no control character.

    A text that already is such a name comes back unchanged. Any other is cleaned and gets eight
    hex digits of its hash, so that two texts never share a name.
    """
    clean = re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).lstrip(".-=+")[:NAME_LIMIT].rstrip("._")
    if _DEVICES.fullmatch(clean):
        clean = f"_{clean}"
    if clean == text and clean:
        return clean
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{clean[: NAME_LIMIT - 9] or 'unnamed'}-{digest}"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut; a no-op where the system cannot."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(
    path: str | Path, data: bytes, error: type[SpikeformerError] = CheckpointError
) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Args:
        path: the file; its folder is made if missing.
        data: the whole content.
        error: class of the exception for a full disk, a read-only folder and the like.

    Raises:
        SpikeformerError: (as `error`) with path, bytes needed and bytes free; the previous file is
            untouched.
    """
    path = Path(path)
    stage = path.with_name(f".{path.name[:NAME_LIMIT]}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(stage, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(stage, path)
        except BaseException:
            stage.unlink(missing_ok=True)
            raise
    except OSError as fault:
        raise error(
            f"cannot write {shown(str(path), 300)}: {fault.strerror or fault}; {len(data)} bytes "
            f"needed, {free_bytes(path.parent)} free; the previous file, if any, is untouched"
        ) from fault
    sync_folder(path.parent)


def free_bytes(folder: Path) -> int | str:
    """Return the bytes free on the disk of `folder`, or "unknown" if that cannot be asked."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return "unknown"


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file's content as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
