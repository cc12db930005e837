"""Files that others publish: check them by hash, and fetch them when a user asks for it.

Nothing here runs unless it is called: a data set reads what is on disk and calls `download` only
when the user said so.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.paths import free_bytes, sync_folder

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20  # bytes


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
            _log.info("fetching %s (%.1f MB) to %s", url, size / 1e6, path)
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
