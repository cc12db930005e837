"""Frames kept between epochs and runs, one file a recording.

An entry is found only under a key that hashes every parameter and the code that made it, is used
only if its checksum and its source's size and date fit, and is otherwise made again. Two processes
may build one cache: the later rename wins with the same bytes.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.bundle import building, sweep_files
from spikeformer_lt.disk import allow_write, free_bytes, safe_name
from spikeformer_lt.errors import DataError

_log = logging.getLogger(__name__)
_MAGIC = b"SLTFRM2\n"
_HEAD = len(_MAGIC) + 4  # magic, checksum of all that follows: a line of JSON and the frames
_KINDS = ("uint8", "uint16", "int32")


@functools.cache
def code_version() -> str:
    """Return a hash of the source of this package: another code, another cache."""
    return _hash_of(sorted(Path(__file__).parent.glob("*.py")))


def source_of(thing: object) -> str:
    """Return a hash of the source file that defines the class of `thing`, or ""."""
    path = getattr(sys.modules.get(type(thing).__module__), "__file__", None)
    return _hash_of([Path(path)]) if path else ""


def _hash_of(paths: list[Path]) -> str:
    sources = (f"{path.name}\n".encode() + path.read_bytes() for path in paths if path.is_file())
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


class FrameCache:
    """Frames on disk under the hash of what they depend on.

    Args:
        folder: where caches live; this one makes a folder of its own in there.
        name: of the data set, the first part of that folder's name.
        parameters: whatever the frames depend on, as JSON values; the code's version is added.
    """

    def __init__(self, folder: str | Path, name: str, parameters: Mapping[str, Any]) -> None:
        everything = {**parameters, "code": code_version(), "name": name}
        try:
            self._describe = json.dumps(everything, sort_keys=True, allow_nan=False, indent=1)
        except (TypeError, ValueError) as fault:
            raise DataError(f"cache of {name}: a parameter is not JSON: {fault}") from fault
        self.key = hashlib.sha256(self._describe.encode()).hexdigest()[:20]
        self.folder = Path(folder).expanduser() / f"{safe_name(name)}-{self.key}"
        self._opened = False
        self._writes = True

    def get(self, name: str, fingerprint: str) -> NDArray[Any] | None:
        """Return the frames stored for a recording and its source's fingerprint, or None."""
        path = self._path(name)
        try:
            frames = _unpack(path.read_bytes(), name, fingerprint)
        except OSError:
            return None
        if frames is None:
            _log.info("cache entry %s is stale or damaged: it is made again", path)
        return frames

    def put(self, name: str, fingerprint: str, frames: NDArray[Any]) -> None:
        """Store integer frames [T, 2, H, W] under the names that `get` takes.

        Where the disk refuses, that is said once, and frames are made again when needed.
        """
        if not self._writes:
            return
        path = self._path(name)
        try:
            allow_write()
            if path.is_symlink() or (self.folder / "key.json").is_symlink():
                raise FileExistsError(errno.EEXIST, "a link is in the place of an entry")
            self._open()
            with building(path) as file:
                file.writelines(_pack(frames, name, fingerprint))
        except OSError as fault:
            self._writes = False
            _log.warning(
                "frames are not cached in %s: %s (%s bytes free); each is made again when needed",
                self.folder, fault.strerror or fault, free_bytes(self.folder),
            )  # fmt: skip

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:26]}.frames"

    def _open(self) -> None:
        """Describe the folder and sweep what killed processes left, at the first write."""
        if self._opened:
            return
        self._opened = True
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(self._describe)
        sweep_files(self.folder.glob("??/.*.tmp-*"))


def _pack(frames: NDArray[Any], name: str, fingerprint: str) -> list[bytes | memoryview]:
    header = json.dumps([name, fingerprint, frames.dtype.name, frames.shape]).encode() + b"\n"
    payload = np.ascontiguousarray(frames).data
    checksum = zlib.crc32(payload, zlib.crc32(header))
    return [_MAGIC + checksum.to_bytes(4, "little"), header, payload]


def _unpack(data: bytes, name: str, fingerprint: str) -> NDArray[Any] | None:
    checksum, rest = int.from_bytes(data[len(_MAGIC) : _HEAD], "little"), memoryview(data)[_HEAD:]
    if not data.startswith(_MAGIC) or not len(rest) or zlib.crc32(rest) != checksum:
        return None
    try:
        start = data.index(b"\n", _HEAD) + 1
        *names, kind, shape = json.loads(data[_HEAD:start])
        if names == [name, fingerprint] and kind in _KINDS:
            return np.frombuffer(data, kind, offset=start).reshape(shape)
    except (ValueError, TypeError, RecursionError):  # a checksum that fits makes no frames
        pass
    return None


class MemoryCache:
    """Frames kept in this process, for recordings that are made rather than read."""

    def __init__(self) -> None:
        self._frames: dict[tuple[str, str], NDArray[Any]] = {}

    def get(self, name: str, fingerprint: str) -> NDArray[Any] | None:
        """Return the frames stored for a recording, or None."""
        return self._frames.get((name, fingerprint))

    def put(self, name: str, fingerprint: str, frames: NDArray[Any]) -> None:
        """Store frames."""
        self._frames[name, fingerprint] = frames
