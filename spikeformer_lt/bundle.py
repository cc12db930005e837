"""Sealed folders: tickets, exports and checkpoints.

A bundle is a folder of files and a manifest with the sha256 of each. It is staged beside its place,
written through to the disk and published in one step. Each file is verified when it is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spikeformer_lt import disk
from spikeformer_lt.errors import CheckpointError, ConfigError, SpikeformerError, name_of, shown

if TYPE_CHECKING:
    from torch import Tensor


MANIFEST_LIMIT = 1 << 24  # bytes; provenance of a long search has some thousands
NOTE, UNFINISHED = ".spikeformer_lt.json", "*"  # of the files that a command wrote into a folder
ABANDONED_S = 86400.0  # age of a leftover that is swept where a system has no locks
_STALE_S = 60  # age of an unfinished file that, if no process holds it, belongs to nobody
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{12}")


@dataclass(frozen=True)
class BundleKind:
    """What kind of bundle a folder is."""

    name: str  # word for it in messages
    format: str  # value of ``format`` in its manifest
    version: int  # newest ``format_version``; all from 1 on are read
    manifest: str  # file name
    error: type[SpikeformerError]
    files: tuple[str, ...] = ()  # others beside the manifest; a folder with more is never replaced
    sealed: bool = True  # whether a manifest without a checksum of its own, as all have, is refused
    sizes: bool = False  # size and sha256 of each file under ``files``, or sha256 under ``sha256``
    indent: int | None = 2  # of the manifest; None for one line

    def __str__(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


@dataclass(frozen=True)
class Stage:
    """A bundle in the making, at a path that nobody reads."""

    path: Path
    kind: BundleKind
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # size and sha256, so far

    def write(self, name: str, data: bytes) -> None:
        """Write a file through to the disk."""
        disk.write_through(self.path / name, data)
        self.files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Any) -> None:
        """Write a file of tensors, as `disk.write_tensors` does."""
        self.write(name, disk.pack_tensors(tensors, metadata, repr(name)))

    def seal(self, body: Mapping[str, Any]) -> None:
        """Write the manifest: `body`, which JSON must hold, and the hashes of the files so far."""
        kind = self.kind
        for key, value in body.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as fault:
                what = f"the {kind.name}'s {key} cannot be stored as JSON"
                raise kind.error(f"{what}: {fault}") from None
        found = {"format": kind.format, "format_version": kind.version, **body}
        if kind.sizes:
            found["files"] = dict(self.files)
        else:
            found["sha256"] = {name: entry["sha256"] for name, entry in self.files.items()}
        found["seal"] = _seal(found)
        separators = (",", ":") if kind.indent is None else None
        text = json.dumps(found, indent=kind.indent, separators=separators)
        self.write(kind.manifest, text.encode("ascii"))


@contextlib.contextmanager
def staged(folder: str | Path, kind: BundleKind, overwrite: bool = False) -> Iterator[Stage]:
    """Give a stage to fill inside; at the end it is published as `folder`, whole or not at all.

    The folder is new or empty; with `overwrite` it may hold a bundle of this kind.

    Raises:
        SpikeformerError: (as the kind's) the folder holds something else, or the disk refuses; what
            was there is untouched.
    """
    folder = Path(folder).expanduser()
    recover(folder)
    refuse_foreign(folder, kind, overwrite)
    with contextlib.ExitStack() as cleaning:
        try:
            stage = Stage(new_stage(folder, cleaning), kind)
            yield stage
            disk.sync_folder(stage.path)
            refuse_foreign(folder, kind, overwrite)
            _publish(stage.path, folder)
        except OSError as fault:
            free = f"{disk.free_bytes(folder.parent)} bytes free"
            what = f"cannot write {name_of(folder)}: {fault.strerror or fault}"
            raise kind.error(f"{what}; {free}") from fault


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: its place and its manifest, whose checksum was right."""

    folder: Path
    kind: BundleKind
    about: dict[str, Any]
    files: dict[str, dict[str, Any]]  # sha256, and size where it is known

    def read(self, name: str) -> bytes:
        """Read a file, once; it raises as the kind if that is not listed, unreadable or changed."""
        with self._file(name) as (file, _):
            data: bytes = file.read()
        self._verify(name, data)
        return data

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[memoryview]:
        """Give the bytes of a file, which a thread verifies beside; raises as `read`.

        What the block raises gives way to the fault of a file that changed.
        """
        import numpy as np

        with self._file(name) as (file, size):
            memory = np.empty(size, np.uint8).data  # of large pages
            data = memory[: file.readinto(memory)]
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(self._verify, name, data)
            try:
                yield data
            finally:
                checked.result()

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[tuple[Any, int]]:
        try:
            with disk.regular(self.folder / name, disk.free_memory() // 2) as opened:
                yield opened
        except OSError as fault:
            raise self._fault(f"cannot read {name}: {fault.strerror}") from None

    def _verify(self, name: str, data: bytes | memoryview) -> None:
        written = self.files.get(name, {})
        size, expected = written.get("size", len(data)), written.get("sha256", "no file")
        found = hashlib.sha256(data).hexdigest()
        if found == expected and size == len(data):
            return
        replaced = False
        with contextlib.suppress(self.kind.error):
            replaced = _opened(self.folder, self.kind).files != self.files
        if replaced:
            raise self._fault("another one took its place while it was read; read it again")
        odd = f"sha256 {found[:12]}..., {expected[:12]}... was written"
        if size != len(data):
            odd = f"{len(data)} bytes there, {size} were written"
        if name.endswith(".safetensors"):
            try:
                disk.unpack_tensors(data, name)
            except CheckpointError as fault:
                odd += f"; {fault}"
        raise self._fault(
            f"{name} changed since the {self.kind.name} was saved ({odd}); restore it from a copy"
        )

    def tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a file of tensors: the tensors on the CPU, and their metadata; raises as `read`."""
        return disk.unpack_tensors(self.read(name), self.folder / name)

    def _fault(self, what: str) -> SpikeformerError:
        return self.kind.error(f"{name_of(self.folder)}: {what}")


def open_bundle(folder: str | Path, kind: BundleKind) -> Bundle:
    """Read and check a manifest; the files are read by the bundle's methods.

    Raises:
        SpikeformerError: (as the kind's) no such bundle, a newer one, or an edited manifest.
    """
    if not isinstance(folder, str | Path):
        raise kind.error(f"folder={shown(folder)} is not allowed: the path of one folder")
    folder = Path(folder).expanduser()
    try:
        return _opened(folder, kind)
    except kind.error as fault:
        raise kind.error(f"{name_of(folder)}: {fault}") from None


def _opened(folder: Path, kind: BundleKind) -> Bundle:
    manifest = kind.manifest
    if folder.is_file():
        with open(folder, "rb") as file:
            what = disk.content_kind(file.read(1024))
        raise kind.error(f"{kind} is a folder with {manifest}; this is {what}")
    if not folder.exists():
        recover(folder)
    if not folder.exists():
        raise kind.error(f"no {kind.name}: there is no such folder")
    try:
        text = disk.read_regular(folder / manifest, MANIFEST_LIMIT).decode("utf-8")
    except OSError as fault:
        raise kind.error(f"no {kind.name}: {manifest}: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise kind.error(f"{manifest} is damaged: not UTF-8 text") from None
    about = disk.parse_json(text, manifest, kind.error)
    if not isinstance(about, dict) or about.get("format") != kind.format:
        raise kind.error(f"{manifest} is not of {kind} of spikeformer_lt")
    version = about.get("format_version")
    if type(version) is int and version > kind.version:
        found = f"found {kind.name} format v{version}, supports <= v{kind.version}"
        raise kind.error(f"{found}; install a newer spikeformer_lt")
    seal = about.pop("seal", None)
    sealed = seal == _seal(about) or (seal is None and not kind.sealed)
    if type(version) is not int or version < 1 or not sealed:
        raise kind.error(f"{manifest} is damaged or was edited: its checksum differs")
    listed = about.get("files" if kind.sizes else "sha256")
    if not isinstance(listed, dict) or not listed:
        raise kind.error(f"{manifest} lists no files; it was edited")
    files = listed if kind.sizes else {name: {"sha256": entry} for name, entry in listed.items()}
    for name, entry in files.items():
        known = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
        if disk.safe_name(name) != name or not known:
            raise kind.error(f"{manifest} is damaged: odd entry {shown(name)}")
    return Bundle(folder, kind, about, files)


def recover(folder: Path) -> None:
    """Clear up beside `folder` after processes that are gone; put an old one back into a gap."""
    parent, name = folder.parent, disk.safe_name(folder.name)
    try:
        entries = sorted(os.listdir(parent))
    except OSError:
        return
    for entry in entries:
        match, path = _LEFTOVER.fullmatch(entry), parent / entry
        if match is None or match["name"] != name or not path.is_dir():
            continue
        with contextlib.ExitStack() as held:
            if not claim(path, held):
                continue
            if match["kind"] == "old" and not folder.exists():
                with contextlib.suppress(OSError):
                    os.replace(path, folder)
            else:
                shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed processes left half made in a folder that this one alone writes to.

    What was set aside to be replaced goes back to its place if nothing is there.
    """
    for path in sorted(folder.rglob(".*")):
        if match := _LEFTOVER.fullmatch(path.name):
            if path.is_dir():
                recover(path.with_name(match["name"]))
            elif path.is_file():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def outputs(folder: str | Path, overwrite: bool, *wanted: str | Path) -> Iterator[None]:
    """Write files into a folder inside; none that is not ours is replaced.

    What is `wanted` are patterns of names, or paths, which stand for their last part as it is.
    The sha256 of each is noted in a hidden file of the folder: the next call replaces what is still
    as it was written, and with `overwrite` anything of these names. No folder is no writing.

    Raises:
        ConfigError: a file of these names is not ours, or was changed since; nothing was written.
    """
    if not folder:
        yield
        return
    folder = Path(folder)
    patterns = [glob.escape(own.name) if isinstance(own, Path) else own for own in wanted]
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        known = dict(json.loads(disk.read_regular(folder / NOTE, MANIFEST_LIMIT)))
    unfinished = known.pop(UNFINISHED, []) == patterns  # a call that was killed

    def there() -> Iterator[Path]:
        return (path for pattern in patterns for path in sorted(folder.glob(pattern)))

    for path in there():
        disk.refuse_link(path, ConfigError)
        if path.is_dir():
            raise ConfigError(f"{name_of(path)} is a folder, never replaced; choose another --out")
        if overwrite or unfinished:
            continue
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or known.get(name) != disk.sha256_of(path):
            raise ConfigError(
                f"{name_of(path)} is there, and not as this command wrote it; choose another --out "
                "or replace it with --overwrite"
            )
    made = not folder.exists()
    try:
        _note(folder, {**known, UNFINISHED: patterns})
        yield
    finally:
        for path in there():
            if path.is_file():
                known[path.relative_to(folder).as_posix()] = disk.sha256_of(path)
        if known:
            _note(folder, known)
        else:
            (folder / NOTE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                if made:
                    folder.rmdir()


def _note(folder: Path, known: Mapping[str, Any]) -> None:
    disk.write_atomic(folder / NOTE, f"{json.dumps(known, indent=1)}\n".encode(), ConfigError)


def discard(folder: Path) -> None:
    """Delete a bundle; a kill amid the deletion leaves no damaged one."""
    trash = _beside(folder, "tmp")
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{disk.safe_name(folder.name)}.{kind}-{uuid.uuid4().hex[:12]}")


def new_stage(folder: Path, cleaning: contextlib.ExitStack) -> Path:
    """Make a stage that this process holds; it is deleted and given up at the end."""
    while True:
        path = _beside(folder, "tmp")
        path.mkdir(parents=True)
        # Another process that clears up may have come between.
        if claim(path, cleaning) and path.exists():
            cleaning.callback(shutil.rmtree, path, ignore_errors=True)
            return path


def claim(path: Path, held: contextlib.ExitStack) -> bool:
    """Hold a path until `held` ends, unless a living process does; whether it could be held."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
        held.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, PermissionError, BlockingIOError):
        return False
    except (ImportError, OSError):  # Windows; a file system without locks
        old = time.time() - path.stat().st_mtime > ABANDONED_S
        return old or (path.is_dir() and not any(path.iterdir()))
    return True


@contextlib.contextmanager
def building(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write inside, held by this process; at the end it takes its place."""
    disk.allow_write()
    stage = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(stage, "xb") as file, contextlib.ExitStack() as held:
            claim(stage, held)
            yield file
        os.replace(stage, path)
    finally:
        stage.unlink(missing_ok=True)


def sweep_files(left: Iterable[Path]) -> None:
    """Delete unfinished files of processes that are gone, a minute old at least."""
    for path in left:
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            if claim(path, held) and time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def refuse_foreign(folder: Path, kind: BundleKind, overwrite: bool) -> None:
    """Refuse to publish at a link, and in a folder that holds anything else than the kind."""
    disk.refuse_link(folder, kind.error)
    if not folder.is_dir():
        if folder.exists():
            raise kind.error(f"{name_of(folder)} is a file; give a folder's name")
        return
    there = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in there if name not in (kind.manifest, *kind.files)]
    if there and overwrite and not foreign:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            about = json.loads((folder / kind.manifest).read_text("utf-8"))
            if isinstance(about, dict) and about.get("format") == kind.format:
                return
    if there:
        advice = f" or overwrite=True (--overwrite), which replaces {kind} only"
        if overwrite:
            advice = f", not this one: {kind} is replaced by {kind} only"
        what = shown((foreign or there)[0])
        raise kind.error(f"{name_of(folder)} already holds {what}; give a new folder{advice}")


def _publish(stage: Path, folder: Path) -> None:
    """Put a stage in its place; what was there goes to the stage's path or is deleted."""
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(stage, folder)
    elif not _exchange(stage, folder):
        old = _beside(folder, "old")
        with contextlib.ExitStack() as held:
            claim(folder, held)
            os.replace(folder, old)
            try:
                os.replace(stage, folder)
            except OSError as fault:
                try:
                    os.replace(old, folder)
                except OSError:
                    raise OSError(fault.errno, f"{fault.strerror}; the old one is {old}") from fault
                raise
        shutil.rmtree(old, ignore_errors=True)
    disk.sync_folder(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    names = {"linux": "renameat2", "darwin": "renameatx_np"}
    here = {"linux": -100, "darwin": -2}.get(sys.platform)  # AT_FDCWD
    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), names[sys.platform])
    except (KeyError, AttributeError, OSError):
        return False
    if call(here, os.fsencode(one), here, os.fsencode(other), 2) == 0:  # RENAME_EXCHANGE, _SWAP
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()
