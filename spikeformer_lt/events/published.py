"""Archives that authors publish: used where they lie, fetched only when a user says so."""

from __future__ import annotations

import logging
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeformer_lt import fetch
from spikeformer_lt.archive import extract_tar
from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.events.source import name_of
from spikeformer_lt.paths import sha256_of, write_atomic
from spikeformer_lt.unzip import extract_zip

_log = logging.getLogger(__name__)
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
            fetch.download(archive.url, path, md5=archive.md5, size=size, sha256=sha256)
        else:
            fetch.check_file(path, md5=archive.md5, sha256=sha256)
        if not sha256:
            _pin(path)
        _log.info("unpacking %s", path)
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
        _log.warning("%s", fault)


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
