"""Kills at every operation of all that publishes: whole files, the old one or the new one."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import http.server
import io
import json
import random
import shutil
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spikeformer_lt import bundle, disk, published
from spikeformer_lt.bundle import outputs, staged
from spikeformer_lt.events.cache import FrameCache
from spikeformer_lt.export.file import EXPORT, read_packed, write_packed
from spikeformer_lt.mask import Mask
from spikeformer_lt.published import Archive, provide, unpack
from spikeformer_lt.ticket import Ticket

LEAST = 100  # kills


def ticket(number: int) -> Ticket:
    generator = torch.Generator().manual_seed(number)
    weight = torch.randn(8, 4, generator=generator)
    kept = weight > 0
    return Ticket(Mask({"w": kept}), {"w": weight * kept, "b": torch.randn(3)}, {"seed": number})


def save_ticket(folder: Path, number: int, overwrite: bool = True) -> None:
    ticket(number).save(folder / "ticket", overwrite)


def saved_ticket(folder: Path) -> int | None:
    place = folder / "ticket"
    try:
        return int(Ticket.load(place).provenance["seed"])
    except Exception:
        return None if not place.exists() else -1


def save_export(folder: Path, number: int, overwrite: bool = True) -> None:
    with staged(folder / "export", EXPORT, overwrite) as stage:
        write_packed(stage, ticket(number))


def saved_export(folder: Path) -> int | None:
    place = folder / "export"
    try:
        return int(read_packed(place).ticket.provenance["seed"])
    except Exception:
        return None if not place.exists() else -1


FRAMES = {number: np.full((2, 2, 8, 8), number, np.uint8) for number in (1, 2)}


def save_frames(folder: Path, number: int) -> None:
    FrameCache(folder, "set", {}).put("a", f"fingerprint {number}", FRAMES[number])


def saved_frames(folder: Path) -> int | None:
    for number, frames in FRAMES.items():
        found = FrameCache(folder, "set", {}).get("a", f"fingerprint {number}")
        if found is not None:
            return number if np.array_equal(found, frames) else -1
    return None


def extract(folder: Path, number: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("a", "deep/b"):
            archive.writestr(name, str(number) * 100)
    (folder / "set.zip").write_bytes(packed.getvalue())
    unpack(folder / "set.zip", folder / "set", max_bytes=10_000, max_members=9)


def extracted(folder: Path) -> int | None:
    """Each file is whole; a set of old and new ones is unpacked again, as it is not complete."""
    files = [folder / "set" / name for name in ("a", "deep/b")]
    texts = {file.read_text() for file in files if file.exists()}
    if not texts <= {"1" * 100, "2" * 100}:
        return -1
    return int(texts.pop()[0]) if len(texts) == 1 and all(map(Path.exists, files)) else None


def packed(number: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("a", "deep/b"):
            archive.writestr(name, str(number) * 100)
        archive.writestr("rest", random.Random(number).randbytes(2_500_000))  # three reads
    return content.getvalue()


BODIES = {number: packed(number) for number in (1, 2)}
PORT = [0]  # of the server on this machine


class Answer(http.server.BaseHTTPRequestHandler):
    """Serves BODIES by number, from any byte on."""

    def do_GET(self) -> None:
        body = BODIES[int(self.path.strip("/"))]
        span = self.headers.get("Range", "bytes=0-")
        first = int(span.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[first:])

    def log_message(self, *told: object) -> None:
        pass


class PlainHttps(urllib.request.HTTPSHandler):
    """Speaks http where https is asked for."""

    def https_open(self, req: Any) -> Any:
        return self.do_open(http.client.HTTPConnection, req)


def fetch_and_extract(folder: Path, number: int) -> None:
    """Download an archive into a folder of its own, and unpack it there."""
    home, body = folder / f"set{number}", BODIES[number]
    archive = Archive(
        "set.zip", len(body), hashlib.md5(body).hexdigest(), unpacked=4_000_000, members=9,
        url=f"https://127.0.0.1:{PORT[0]}/{number}", into="set",
    )  # fmt: skip
    provide("set", home, True, lambda: extracted(home) == number, archives=[archive])


def fetched(folder: Path) -> int | None:
    """The newest whole set; -1 where an archive has its name and is not whole."""
    for number, body in reversed(BODIES.items()):
        home = folder / f"set{number}"
        archive = home / "set.zip"
        if archive.exists() and archive.read_bytes() != body:
            return -1
        if (found := extracted(home)) is not None:
            rest = home / "set" / "rest"
            return found if not rest.exists() or rest.read_bytes() in body else -1
    return None


def write_tables(folder: Path, number: int) -> None:
    with outputs(folder / "out", False, "*.md"):
        for name in ("a.md", "b.md"):
            disk.write_atomic(folder / "out" / name, str(number).encode())


def tables(folder: Path) -> int | None:
    found = [(folder / "out" / name) for name in ("a.md", "b.md")]
    texts = {file.read_text() for file in found if file.exists()}
    return int(texts.pop()) if len(texts) == 1 and all(map(Path.exists, found)) else None


Case = tuple[Callable[..., None], Callable[[Path], int | None], bool, bool]
CASES: dict[str, Case] = {  # what saves, what tells the number, is the old one kept, by exchange
    "ticket": (save_ticket, saved_ticket, True, True),
    "ticket, by two renames": (save_ticket, saved_ticket, True, False),
    "export": (save_export, saved_export, True, True),
    "export, by two renames": (save_export, saved_export, True, False),
    "frames": (save_frames, saved_frames, False, True),
    "archive": (extract, extracted, False, True),
    "download": (fetch_and_extract, fetched, True, True),
    "tables": (write_tables, tables, False, True),
}


def kill_everywhere(bomb: Any, root: Path, case: Case, old: bool) -> dict[str, Any]:
    """Save 2, over 1 or anew, with a kill at operation 0, 1, 2 ... until one save survives."""
    save, saved, keeps, _ = case
    base, faults, fuse, survived = root / "base", list[str](), 0, False
    base.mkdir(parents=True)
    if old:
        save(base, 1)
    while not survived:
        folder = root / str(fuse)
        shutil.copytree(base, folder)
        survived = bomb.survives(lambda folder=folder: save(folder, 2), fuse, False)
        found, whole = saved(folder), {2} if survived else {1 if old else None, 2}
        if found not in whole and (found == -1 or keeps):
            faults.append(f"{fuse}: {found} after the kill")
        save(folder, 2)  # a second life, over whatever the kill has left behind
        left = [path.name for path in folder.rglob(".*") if ".old-" in path.name]
        left += [path.name for path in folder.rglob(".*") if path.is_dir() and path.name != "."]
        if saved(folder) != 2 or left:
            faults.append(f"{fuse}: {saved(folder)} in the second life, {left} left over")
        shutil.rmtree(folder)
        fuse += 1
    return {"kills": fuse - 1, "faults": faults}


def main(root: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from kills import Bomb

    torch.set_num_threads(1)
    save_export(root / "warm", 1)  # compiles the coder
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    PORT[0] = server.server_port
    published.fetch = functools.partial(published.fetch, handlers=[PlainHttps()])
    bomb, report, exchange = Bomb(), {}, bundle._exchange
    for place, (name, case) in enumerate(CASES.items()):
        bundle._exchange = exchange if case[3] else lambda one, other: False
        for old in (False, True):
            words = f"{name} over an old one" if old else name
            report[words] = kill_everywhere(bomb, root / f"{place}{old}", case, old)
    print(json.dumps(report))


@pytest.mark.fault(1)
def test_after_a_kill_at_any_operation_the_old_or_the_new_is_there(
    forks: Any, tmp_path: Path
) -> None:
    ended = forks.start(__file__, tmp_path)
    out, err = ended.communicate()
    assert ended.returncode == 0, err
    report = json.loads(out)
    assert {name: found["faults"] for name, found in report.items() if found["faults"]} == {}
    kills = {name: found["kills"] for name, found in report.items()}
    print(kills)
    assert min(kills.values()) >= 3 and sum(kills.values()) >= LEAST, kills


if __name__ == "__main__":
    main(Path(sys.argv[1]))
