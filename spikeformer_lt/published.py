"""Files that authors publish: found where a user put them, checked, fetched on demand, unpacked.

The network is used only where a user allows it by ``--data.download``.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.client
import logging
import os
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar, cast

from spikeformer_lt.bundle import claim
from spikeformer_lt.disk import allow_write, free_bytes, refuse_link, sync_folder, write_atomic
from spikeformer_lt.errors import ConfigError, DataError, name_of, shown

T = TypeVar("T")
log = logging.getLogger(__name__)
Member = tuple[str, Callable[[], Any] | None, str]  # name, content or None (folder), what is wrong
_CHUNK = 1 << 20  # bytes
_HEADERS = 4096  # bytes a member may cost beside its content: header, long name, padding
_JUNK = "__MACOSX"  # a folder that macOS adds to archives
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class PublishedFile:
    """A file as its author publishes it."""

    name: str
    size: int  # bytes; 0 where the author does not say, so that the server is asked
    md5: str  # 32 hex digits
    sha256: str = ""  # 64 hex digits, or "" where it is not known
    url: str = ""  # https address, or "" where none serves programs
    page: str = ""  # where a person gets it; "" is `url`
    at_most: int = 0  # bytes that a download of unknown size may have

    def __str__(self) -> str:
        size = f"{self.size} bytes, " if self.size else ""
        source = self.page or self.url
        return f"{self.name} ({size}md5 {self.md5}{source and f', from {source}'})"

    def read(self, folder: Path) -> bytes:
        """Return the file's bytes if they have its hashes; see `read_checked`."""
        return read_checked(folder / self.name, md5=self.md5, sha256=self.sha256)


@dataclass(frozen=True, kw_only=True)
class Archive(PublishedFile):
    """A published archive; its name ends in .zip, .tar.gz or .tgz."""

    unpacked: int  # bytes that its members may have together
    members: int  # files and folders that it may hold
    into: str = ""  # folder below the root that it is unpacked into; "" is the root


def provide(
    name: str,
    root: str | Path,
    download: bool,
    find: Callable[[], T | None],
    *,
    archives: Sequence[Archive] = (),
    files: Sequence[PublishedFile] = (),
    folder: str = "",
) -> T:
    """Return what `find` finds; where it finds nothing, unpack or fetch the set first.

    Archives lie in the root, single files in `folder` below it. A DataError names what is missing
    (with size, hash and address), damaged or hostile.
    """
    root = Path(root)
    for archive in archives:
        _sweep(root / archive.into)
    if found := find():
        return found
    wanted: dict[Path, PublishedFile] = {root / archive.name: archive for archive in archives}
    if not archives:
        wanted = {root / folder / file.name: file for file in files}
    missing = {path: file for path, file in wanted.items() if not path.is_file()}
    if missing and not (download and all(file.url for file in missing.values())):
        raise _not_there(name, root, list(missing.values()), files, folder, download)
    for path, file in wanted.items():
        if isinstance(file, Archive):
            _install(file, path, root / file.into)
        elif path in missing:
            fetch(file, path)
    if found := find():
        return found
    names = ", ".join(file.name for file in wanted.values())
    raise DataError(f"{name}: {names} in {name_of(root)} does not hold what it should")


def _not_there(
    name: str, root: Path, missing: list[PublishedFile], files: Any, folder: str, download: bool
) -> DataError:
    lacking = [file for file in files if not (root / folder / file.name).is_file()]
    listed = f" with {', '.join(map(str, lacking))}" if lacking else ""
    wanted = f"the folder {folder or 'that it holds'}{listed}"
    if isinstance(missing[0], Archive):
        wanted = f"{'; '.join(map(str, missing))} or {wanted}"
    hint = network = ""
    if astray := [file.name for file in lacking if (root / file.name).is_file()]:
        hint = (
            f" {astray[0]} lies in the root itself: put it into the folder {folder} there, or give "
            "the folder above it as the root."
        )
    if all(file.url for file in missing):
        network = "or allow the network with --data.download; "
    elif download:
        network = "it cannot be downloaded by a program; "
    return DataError(
        f"{name} is not in {name_of(root.absolute())}.{hint} Put there {wanted}; {network}or use "
        "what needs no files: --data.name digits or moving_digits"
    )


def _install(archive: Archive, path: Path, folder: Path) -> None:
    """Fetch or check an archive and unpack it; its sha256 is noted beside it at its first use."""
    note, sha256 = path.with_name(f"{path.name}.sha256"), archive.sha256
    if not sha256:  # publishers give md5 sums only
        with contextlib.suppress(OSError):
            sha256 = note.read_text().strip() or "nothing"
        if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise DataError(f"{name_of(note)} holds no sha256; remove it")
    if path.is_file():
        found = check_file(path, md5=archive.md5, sha256=sha256)
    else:
        found = fetch(archive, path, sha256=sha256)
    if not sha256:
        try:
            write_atomic(note, f"{found}\n".encode(), DataError)
        except DataError as fault:  # a read-only root is no reason not to train
            log.warning("%s", fault)
    log.info("unpacking %s", path)
    unpack(path, folder, max_bytes=archive.unpacked, max_members=archive.members)


def check_file(path: str | Path, *, md5: str, sha256: str = "") -> str:
    """Compare a file with its published hashes, "" where unknown, and return its sha256."""
    try:
        with open(path, "rb") as file:
            return _compare(path, iter(lambda: file.read(_CHUNK), b""), md5, sha256)
    except OSError as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault


def read_checked(path: str | Path, *, md5: str, sha256: str = "") -> bytes:
    """Return the bytes of a file if they, as they were read, have the hashes; see `check_file`."""
    try:
        data = Path(path).read_bytes()
    except OSError as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault
    _compare(path, [data], md5, sha256)
    return data


def _compare(path: str | Path, chunks: Iterable[bytes], md5: str, sha256: str) -> str:
    one, other = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    for chunk in chunks:
        one.update(chunk)
        other.update(chunk)
    for kind, wanted, got in (("md5", md5, one), ("sha256", sha256, other)):
        if wanted and got.hexdigest() != wanted.lower():
            raise DataError(
                f"{name_of(path)} has {kind} {got.hexdigest()}; as published it is {wanted}; the "
                "file is damaged or was changed: it was not used; delete it and get it again"
            )
    return other.hexdigest()


def fetch(
    file: PublishedFile,
    path: str | Path,
    *,
    sha256: str = "",
    timeout_s: float = 30.0,
    handlers: Sequence[urllib.request.BaseHandler] = (),
) -> str:
    """Fetch a file over https, or check the one that is there, and return its sha256.

    Bytes arrive in ``<path>.part``, which the next call continues, and which a second process waits
    for. The file appears under its name only when it is whole and its hash fits.

    `sha256` is asked for where `file` has none; `timeout_s` seconds are the longest silence of the
    server; `handlers` are further ones of urllib, such as a proxy's.

    Raises:
        ConfigError: the address is not https.
        DataError: anything else; the message tells how to put the file there by hand.
    """
    path = Path(path)
    check_hashes = functools.partial(check_file, md5=file.md5, sha256=file.sha256 or sha256)
    if urllib.parse.urlsplit(file.url).scheme != "https":
        raise ConfigError(f"{shown(file.url, 300)} is not an https address; only https is fetched")
    if path.exists():
        return check_hashes(path)
    opener = urllib.request.build_opener(_HttpsOnly(), *handlers)
    part = path.with_name(path.name + ".part")
    for target in (path, part):
        refuse_link(target, DataError)
    again = "; run again to go on from what is there, or put the file there by hand"
    by_hand = f"{again}: {name_of(path)}, which is {file}"
    try:
        allow_write()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as stream:
            if path.exists():  # another process was faster
                return check_hashes(path)
            log.info("fetching %s to %s", file.url, path)
            _receive(opener, file, stream, timeout_s)
            stream.flush()
            os.fsync(stream.fileno())
            try:
                found = check_hashes(part)
            except DataError:
                part.unlink()
                raise
            os.replace(part, path)
        sync_folder(path.parent)
        return found
    except DataError as fault:
        raise DataError(f"{fault}{by_hand}") from fault
    except (OSError, http.client.HTTPException, ValueError) as fault:
        reason = getattr(fault, "reason", None) or fault
        raise DataError(
            f"cannot fetch {file.url}: {type(fault).__name__}: {shown(str(reason), 200)} "
            f"({free_bytes(path.parent)} bytes free on the disk){by_hand}"
        ) from fault


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Refuses the step from https to anything else, which urllib would take silently."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme != "https":
            place = f"{shown(newurl, 300)}, which is not https"
            raise DataError(f"{req.full_url} redirects to {place}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """Open `part` for appending; wait here while another process has it; leave no empty file."""
    while True:
        with open(part, "ab+") as file:
            with contextlib.suppress(ImportError):  # a system without these locks goes without
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            # The process that we waited for may have renamed or removed what we opened.
            if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
                continue
            try:
                yield file
            finally:
                file.flush()
                if os.fstat(file.fileno()).st_size == 0:
                    part.unlink(missing_ok=True)
            return


def _receive(
    opener: urllib.request.OpenerDirector, file: PublishedFile, part: IO[bytes], timeout_s: float
) -> None:
    """Bring `part` to the size of the file, continuing from what it holds."""
    url, size = file.url, file.size
    page = DataError(f"{url} answered with an HTML page instead of the file")
    have = part.seek(0, os.SEEK_END)
    if size and have > size:
        have = part.truncate(0)
    if have and have == size:
        return
    headers = {"User-Agent": "spikeformer_lt", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as fault:
        if fault.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if not size and fault.headers.get("Content-Range") == f"bytes */{have}":
                return  # it was whole; its hash decides
            part.truncate(0)
        raise DataError(f"{url} answered {fault.code} {shown(str(fault.reason))}") from fault
    with answer:
        if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            raise DataError(f"{url} answered {answer.status} instead of the file")
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise page
        span = answer.headers.get("Content-Range", "")
        length = span.rpartition("/")[2] or answer.headers.get("Content-Length", "")
        if answer.status == http.HTTPStatus.OK:
            have = part.truncate(0)
        elif not span.startswith(f"bytes {have}-"):
            part.truncate(0)
            raise DataError(f"{url} answered with another part of the file than was asked for")
        if not size:
            size = int(length) if length.isdecimal() and len(length) <= 18 else -1
            if not 0 < size <= file.at_most:
                expected = f"an archive of at most {file.at_most} was expected"
                moved = "the address no longer serves the file"
                raise DataError(f"{url} has {size} bytes; {expected}: {moved}")
        for chunk in iter(lambda: answer.read(_CHUNK), b""):
            if have == 0 and chunk[:200].lstrip().lower().startswith((b"<!doctype", b"<html")):
                raise page
            have += len(chunk)
            if have > size:
                part.truncate(0)
                raise DataError(f"{url} sends more than the published {size} bytes")
            part.write(chunk)
    if have < size:
        raise DataError(f"{url} sent {'nothing' if not have else f'{have} of {size} bytes'}")


def unpack(
    archive: str | Path, folder: str | Path, *, max_bytes: int, max_members: int
) -> list[Path]:
    """Unpack a zip (named so), tar or tar.gz into a folder and return the files in archive order.

    Members are written to a stage inside `folder` and moved to their places when the last one has
    passed. Modes, owners and times of the archive are not applied, and what macOS adds is left out.

    `max_bytes` are of all members together, unpacked.

    Raises:
        DataError: a link, a device, a name that leaves `folder` or means another place elsewhere,
            two members of one name (letter case aside), encryption, too many bytes or members, a
            damaged archive, a link in `folder` where a member goes, a full disk; the member is
            named and nothing was moved into `folder`.
    """
    folder, name = Path(folder), name_of(archive)
    kind = "zip" if Path(archive).suffix.lower() == ".zip" else "tar"
    try:
        allow_write()
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with contextlib.ExitStack() as held, open(archive, "rb") as packed:
            stage = _stage(folder, held)
            limit = max_bytes + _HEADERS * (max_members + 256)
            members = _zip_members(packed) if kind == "zip" else _tar_members(packed, name, limit)
            files = _write(members, stage, name, max_bytes, max_members)
            for place in {place for file in files for place in (file, *file.parents[:-1])}:
                refuse_link(folder / place, DataError)
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(stage / file, folder / file)
    except DataError:
        raise
    except OSError as fault:
        reason = f"{fault.strerror or fault}; {free_bytes(folder)} bytes free"
        raise DataError(f"cannot unpack {name} into {name_of(folder)}: {reason}") from fault
    except _DAMAGED as fault:
        reason = shown(str(fault), 200)
        raise DataError(f"{name} is not a whole {kind} archive: {reason}") from fault
    log.info("unpacked %d files of %s into %s", len(files), archive, folder)
    return [folder / file for file in files]


def _stage(folder: Path, held: contextlib.ExitStack) -> Path:
    """Make a folder inside that this process holds until it is deleted, at the end."""
    while True:
        made = tempfile.TemporaryDirectory(
            prefix=".extract-", dir=folder, ignore_cleanup_errors=True
        )
        held.callback(made.cleanup)
        if claim(Path(made.name), held) and os.path.isdir(made.name):  # it was not swept meanwhile
            return Path(made.name)


def _sweep(folder: Path) -> None:
    """Delete the stages of processes that are gone."""
    for left in folder.glob(".extract-*"):
        with contextlib.ExitStack() as held:
            if claim(left, held):
                shutil.rmtree(left, ignore_errors=True)


def _write(
    members: Iterator[Member], stage: Path, name: str, max_bytes: int, max_members: int
) -> list[PurePosixPath]:
    """Write the members into `stage` and return the paths of the files."""
    files: list[PurePosixPath] = []
    seen: set[str] = set()
    left = max_bytes
    for count, (written, content, refused) in enumerate(members, start=1):
        shape = f"{name}: member {shown(written, 120)}"
        if count > max_members:
            raise DataError(f"{shape} is one more than the {max_members} allowed")
        place = PurePosixPath(written)
        if "\\" in written or "\0" in written or re.match(r"[A-Za-z]:", written):
            raise DataError(f"{shape} has a name that other systems read as another place: refused")
        if place.is_absolute() or ".." in place.parts:
            raise DataError(f"{shape} would land outside the folder: refused, nothing was unpacked")
        if place.parts[:1] == (_JUNK,):
            continue
        if refused:
            raise DataError(f"{shape} is {refused}: refused, nothing was unpacked")
        if content is None:
            (stage / place).mkdir(parents=True, exist_ok=True)
            continue
        key = place.as_posix().casefold()
        if not place.parts or key in seen:
            raise DataError(f"{shape} is there twice, or has no name: nothing was unpacked")
        seen.add(key)
        (stage / place).parent.mkdir(parents=True, exist_ok=True)
        with content() as stream, open(stage / place, "xb") as file:
            # What it unpacks to is counted, not what the archive says of it.
            while chunk := stream.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise DataError(f"{shape} goes past the {max_bytes} bytes allowed in all")
                file.write(chunk)
            if file.tell() > _CHUNK:  # a small file is quickly unpacked again; many would be slow
                file.flush()
                os.fsync(file.fileno())
        files.append(place)
    if not files:
        raise DataError(f"{name} holds no file")
    return files


def _zip_members(packed: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(packed) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            refused = "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or no plain file"
            if info.flag_bits & 0x1:
                refused = "encrypted"
            content = None if info.is_dir() else functools.partial(archive.open, info)
            # zipfile mends names on its own; the one in the archive is what is judged.
            yield info.orig_filename, content, refused


def _tar_members(packed: IO[bytes], name: str, limit: int) -> Iterator[Member]:
    magic = packed.read(2)
    packed.seek(0)
    plain = cast("IO[bytes]", gzip.GzipFile(fileobj=packed)) if magic == b"\x1f\x8b" else packed
    # A stream is read front to back, once: no member is looked at before the caps have passed it.
    capped = cast("IO[bytes]", _Capped(plain, name, limit))
    with tarfile.open(fileobj=capped, mode="r|", tarinfo=MemberOfWhole) as tar:
        for info in tar:
            sound = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.size >= 0
            refused = "a link" if info.issym() or info.islnk() else "no plain file"
            content = None if info.isdir() else functools.partial(tar.extractfile, info)
            yield info.name, content, "" if sound or info.isdir() else refused


class MemberOfWhole(tarfile.TarInfo):
    """A member of a tar that is whole: tarfile takes a damaged header, or a cut, for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        """Return the next member, or raise tarfile's ReadError where the archive breaks off."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            left, read = 0, b"\0"
            while not read.strip(b"\0") and left <= _CHUNK and read:
                left += len(read := tarfile_.fileobj.read(_CHUNK >> 4))
            if read:  # more than records are filled up with, or something behind the end
                told = f"its end, at byte {tarfile_.offset}, has something behind it"
                raise tarfile.ReadError(told) from None
            raise
        except tarfile.HeaderError as fault:
            told = f"it breaks off or is damaged at byte {tarfile_.offset}"
            raise tarfile.ReadError(told) from fault


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
