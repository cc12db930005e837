"""Archives from strangers, unpacked so that nothing lands outside the folder that was named.

Zip archives from strangers, unpacked so that nothing lands outside the folder that was named.

Files that others publish: check them by hash, and fetch them when a user asks for it.

Nothing here runs unless it is called: a data set reads what is on disk and calls `download` only
when the user said so.

Archives that authors publish: used where they lie, fetched only when a user says so.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from spikeformer_lt.disk import free_bytes, sha256_of, sync_folder, write_atomic
from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.events.recording import name_of

log = logging.getLogger(__name__)
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
    log.info("unpacked %d files of %s into %s", len(files), archive, folder)
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
            files = _unzip_unpack(packed, stage, name, max_bytes, max_members)
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
    log.info("unpacked %d files of %s into %s", len(files), archive, folder)
    return [folder / file for file in files]


def _unzip_unpack(
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
        place = _unzip_inside(member, shape)
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


def _unzip_inside(member: zipfile.ZipInfo, shape: str) -> PurePosixPath:
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


def check_file(path: str | Path, *, md5: str, sha256: str = "") -> None:
    """Compare a file with its published hashes, reading it once.

    Args:
        path: the file.
        md5: 32 hex digits, as the publisher gives them.
        sha256: 64 hex digits, or "" where none is known.

    Raises:
        DataError: the file cannot be read, or a hash differs; both hashes are named.
    """
    hashes = [hashlib.md5(usedforsecurity=False), hashlib.sha256()]
    try:
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                for state in hashes if sha256 else hashes[:1]:
                    state.update(chunk)
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    _compare(path, md5, hashes[0].hexdigest(), sha256, hashes[1].hexdigest())


def read_checked(path: str | Path, *, md5: str, sha256: str = "") -> bytes:
    """Read a file and return its bytes only if they have the published hashes.

    The bytes that were hashed are the bytes that are returned: a file that changes after the check
    cannot slip in.

    Raises:
        DataError: as `check_file`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    got_md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    _compare(path, md5, got_md5, sha256, hashlib.sha256(data).hexdigest() if sha256 else "")
    return data


def _unreadable(path: str | Path, fault: OSError) -> DataError:
    return DataError(f"cannot read {shown(str(path), 300)}: {fault.strerror or fault}")


def _compare(path: str | Path, md5: str, got_md5: str, sha256: str, got_sha256: str) -> None:
    pairs = [("md5", md5, got_md5)] + ([("sha256", sha256, got_sha256)] if sha256 else [])
    for kind, wanted, got in pairs:
        if got != wanted.lower():
            raise DataError(
                f"{shown(str(path), 300)} has {kind} {got}; as published it is {wanted}; the file "
                "is damaged or was changed: it was not used; delete it and get it again"
            )


def download(
    url: str,
    path: str | Path,
    *,
    md5: str,
    size: int,
    sha256: str = "",
    timeout_s: float = 30.0,
    handlers: Sequence[urllib.request.BaseHandler] = (),
) -> Path:
    """Fetch a file over https; it appears under its name only when it is whole and its hash fits.

    Bytes arrive in ``<path>.part``, which the next call continues. A second process that wants the
    same file waits for the first one. A file that is already there is checked, not fetched.

    Args:
        url: https address; a redirect to anything but https is refused.
        path: where the file shall be; its folder is made.
        md5: published hash, 32 hex digits.
        size: published size in bytes; more are never written.
        sha256: a second hash, or "".
        timeout_s: longest silence of the server, in seconds.
        handlers: further urllib handlers, such as a proxy's.

    Returns:
        `path`.

    Raises:
        ConfigError: `url` is not https.
        DataError: no connection, wrong answer (page, empty, cut, too long), wrong hash, full disk;
            the message tells how to put the file there by hand.
    """
    path = Path(path)
    if urllib.parse.urlsplit(url).scheme != "https":
        raise ConfigError(f"{shown(url, 300)} is not an https address; only https is fetched")
    if path.exists():
        check_file(path, md5=md5, sha256=sha256)
        return path
    by_hand = (
        f"; run again to go on from what is there, or put the file there by hand: "
        f"{shown(str(path), 300)}, {size} bytes, md5 {md5}, from {url}"
    )
    opener = urllib.request.build_opener(_HttpsOnly(), *handlers)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            if path.exists():  # another process was faster
                check_file(path, md5=md5, sha256=sha256)
                return path
            log.info("fetching %s (%.1f MB) to %s", url, size / 1e6, path)
            _receive(opener, url, file, size, timeout_s)
            file.flush()
            os.fsync(file.fileno())
            _publish(part, path, md5, sha256)
        return path
    except DataError as fault:
        raise DataError(f"{fault}{by_hand}") from fault
    except (OSError, http.client.HTTPException, ValueError) as fault:
        reason = getattr(fault, "reason", None) or fault
        raise DataError(
            f"cannot fetch {url}: {type(fault).__name__}: {shown(str(reason), 200)} "
            f"({free_bytes(path.parent)} bytes free on the disk){by_hand}"
        ) from fault


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Refuses the step from https to anything else, which urllib would take silently."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme != "https":
            raise DataError(
                f"{req.full_url} redirects to {shown(newurl, 300)}, which is not https: refused"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_fetch = download  # `provide` has a parameter of that name


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
                with contextlib.suppress(OSError):
                    if part.stat().st_size == 0:
                        part.unlink()
            return


def _receive(
    opener: urllib.request.OpenerDirector, url: str, file: IO[bytes], size: int, timeout_s: float
) -> None:
    """Bring `file` to `size` bytes, continuing from what it holds."""
    have = file.seek(0, os.SEEK_END)
    if have > size:
        have = _restart(file)
    if have == size:
        return
    headers = {"User-Agent": "spikeformer_lt", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as fault:
        if fault.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _restart(file)
        raise DataError(f"{url} answered {fault.code} {shown(str(fault.reason))}") from fault
    with answer:
        if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            raise DataError(f"{url} answered {answer.status} instead of the file")
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise DataError(f"{url} answered with an HTML page instead of the file")
        continues = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if answer.status == http.HTTPStatus.OK or not continues:
            have = _restart(file)
            if answer.status != http.HTTPStatus.OK:
                raise DataError(f"{url} answered with another part of the file than was asked for")
        for chunk in iter(lambda: answer.read(_CHUNK), b""):
            if have == 0 and chunk[:200].lstrip().lower().startswith((b"<!doctype", b"<html")):
                raise DataError(f"{url} answered with an HTML page instead of the file")
            have += len(chunk)
            if have > size:
                _restart(file)
                raise DataError(f"{url} sends more than the published {size} bytes")
            file.write(chunk)
    if have < size:
        raise DataError(f"{url} sent {'nothing' if not have else f'{have} of {size} bytes'}")


def _restart(file: IO[bytes]) -> int:
    file.truncate(0)
    return 0


def _publish(part: Path, path: Path, md5: str, sha256: str) -> None:
    try:
        check_file(part, md5=md5, sha256=sha256)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)
    sync_folder(path.parent)


_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Archive:
    """An archive as its author publishes it.

    Attributes:
        name: file name, ending in .zip, .tar.gz or .tgz.
        url: https address, or "" where there is none that a program can use.
        md5: 32 hex digits, as the publisher gives them.
        page: where a person can get it.
        at_most: bytes that a download may have; the exact size is asked of the server.
        unpacked: bytes that its members may have together.
        members: files and folders that it may hold.
        into: folder below the root that it is unpacked into; "" is the root.
        sha256: 64 hex digits, or "" where no file at hand gave it.
    """

    name: str
    url: str
    md5: str
    page: str
    at_most: int
    unpacked: int
    members: int
    into: str = ""
    sha256: str = ""


def provide(
    name: str,
    archives: Sequence[Archive],
    root: str | Path,
    download: bool,
    present: Callable[[], bool],
) -> None:
    """See to it that a set is unpacked below `root`.

    Archives in `root` are checked and unpacked; the network is used only with `download`.

    Args:
        name: of the set.
        archives: all that it consists of.
        root: where they lie, and where they are unpacked.
        download: fetch what is missing.
        present: tells whether the set is there.

    Raises:
        DataError: something is missing (each archive is named with hash and address), damaged or
            hostile, or the network fails.
    """
    if present():
        return
    root = Path(root)
    missing = [archive for archive in archives if not (root / archive.name).is_file()]
    fetchable = download and all(archive.url for archive in missing)
    if missing and not fetchable:
        raise _not_there(name, archives, root, download)
    for archive in archives:
        path = root / archive.name
        sha256 = archive.sha256 or _pinned(path)
        if archive in missing:
            size = ask_size(archive.url, archive.at_most)
            _fetch(archive.url, path, md5=archive.md5, size=size, sha256=sha256)
        else:
            check_file(path, md5=archive.md5, sha256=sha256)
        if not sha256:
            _pin(path)
        log.info("unpacking %s", path)
        unpack(path, root / archive.into, archive.unpacked, archive.members)
    if not present():
        raise DataError(f"{name}: the archives in {name_of(root)} do not hold what they should")


def _pin_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _pinned(path: Path) -> str:
    """Return the sha256 that an archive had when it was first used, or ""."""
    try:
        text = _pin_of(path).read_text().strip()
    except OSError:
        return ""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise DataError(f"{name_of(_pin_of(path))} holds no sha256; remove it")
    return text


def _pin(path: Path) -> None:
    """Note the sha256 of an archive whose md5 was right: publishers give md5 sums only."""
    try:
        write_atomic(_pin_of(path), f"{sha256_of(path)}\n".encode(), DataError)
    except DataError as fault:  # a read-only root is no reason not to train
        log.warning("%s", fault)


def unpack(path: Path, folder: Path, max_bytes: int, max_members: int) -> list[Path]:
    """Unpack an archive of either kind, by the end of its name.

    Raises:
        DataError: as `extract_zip` and `extract_tar`.
    """
    extract = extract_zip if path.suffix.lower() == ".zip" else extract_tar
    return extract(path, folder, max_bytes=max_bytes, max_members=max_members)


def _not_there(name: str, archives: Sequence[Archive], root: Path, download: bool) -> DataError:
    wanted = "; ".join(
        f"{archive.name} (md5 {archive.md5}, from {archive.page})"
        for archive in archives
        if not (root / archive.name).is_file()
    )
    more = "or allow the network with --data.download; "
    if not all(archive.url for archive in archives):
        more = "it cannot be downloaded by a program; " if download else ""
    return DataError(
        f"{name} is not in {name_of(root.absolute())}. Put there: {wanted}; or its unpacked "
        f"folder; {more}or use what needs no files: --data.name moving_digits"
    )


def ask_size(
    url: str,
    at_most: int,
    handlers: Sequence[urllib.request.BaseHandler] = (),
) -> int:
    """Ask a server how many bytes a file has, by fetching its first.

    Args:
        url: https address.
        at_most: largest credible answer, in bytes.
        handlers: further urllib handlers.

    Raises:
        ConfigError: `url` is not https.
        DataError: no connection, no size, or one that is not credible.
    """
    if urllib.parse.urlsplit(url).scheme != "https":
        raise ConfigError(f"{shown(url, 300)} is not an https address; only https is fetched")
    headers = {"User-Agent": "spikeformer_lt", "Accept-Encoding": "identity", "Range": "bytes=0-0"}
    opener = urllib.request.build_opener(_HttpsOnly(), *handlers)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as got:
            told = re.fullmatch(r"bytes 0-0/(\d{1,18})", got.headers.get("Content-Range", ""))
            length = got.headers.get("Content-Length", "")
            size = int(told[1]) if told else int(length) if length.isdecimal() else -1
            kind, status = got.headers.get_content_type(), got.status
    except (OSError, ValueError) as fault:
        if isinstance(fault, DataError):
            raise
        reason = getattr(fault, "reason", None) or fault
        raise DataError(f"cannot fetch {url}: {shown(str(reason), 200)}") from fault
    if status not in (200, 206) or kind == "text/html" or not 0 < size <= at_most:
        raise DataError(
            f"{url} answered {status} with {shown(kind)} of {size} bytes; an archive of at most "
            f"{at_most} was expected: the address no longer serves the file"
        )
    return size
