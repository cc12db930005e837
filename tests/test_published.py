"""Published files: archives, downloads from a scripted server on this machine, and whole sets."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import http.server
import io
import os
import stat
import tarfile
import threading
import urllib.request
import zipfile
from dataclasses import replace
from functools import partial

import pytest

from spikeformer_lt import published
from spikeformer_lt.bundle import claim
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.published import (
    Archive,
    PublishedFile,
    check_file,
    fetch,
    provide,
    read_checked,
    unpack,
)

CAPS = {"max_bytes": 1_000_000, "max_members": 20}
BODY = bytes(range(256)) * 20_000  # 5 MB
SIZE = len(BODY)
MD5 = hashlib.md5(BODY).hexdigest()


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            if content is not None:
                info.size = len(content)
            tar.addfile(info, None if content is None else io.BytesIO(content))
    return path


def make_zip(path, members, mode=None, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, content in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.compress_type = compression
            if mode is not None:
                info.external_attr = mode << 16
            packed.writestr(info, content)
    return path


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_files_and_folders_of_a_tar_come_out_as_they_went_in(tmp_path, mode):
    big = os.urandom(300_000)
    members = [
        (member("set", tarfile.DIRTYPE), None),
        (member("set/one"), b"1"),
        (member("./set/deep/er/two"), big),
        (member("empty"), b""),
    ]
    archive = make_tar(tmp_path / "a.tar", members, mode)
    out = tmp_path / "out"
    files = unpack(archive, out, **CAPS)
    assert [str(file.relative_to(out)) for file in files] == ["set/one", "set/deep/er/two", "empty"]
    assert (out / "set/deep/er/two").read_bytes() == big
    assert everything_in(out) == [
        "empty", "set", "set/deep", "set/deep/er", "set/deep/er/two", "set/one"
    ]  # fmt: skip


def test_files_and_folders_of_a_zip_come_out_and_desktop_leavings_do_not(tmp_path):
    members = [("a/b.txt", b"one"), ("a/", b""), ("c", b""), ("__MACOSX/a/._b", b"x")]
    archive = make_zip(tmp_path / "A.ZIP", members)
    found = unpack(archive, tmp_path / "out", **CAPS)
    assert [p.relative_to(tmp_path / "out").as_posix() for p in found] == ["a/b.txt", "c"]
    assert everything_in(tmp_path / "out") == ["a", "a/b.txt", "c"]
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"one"


def test_no_other_process_can_take_the_stage_of_a_living_one(tmp_path, monkeypatch):
    looked, write = [], published._write

    def look(members, stage, *rest):
        with contextlib.ExitStack() as other:
            looked.append((stage.is_dir(), claim(stage, other)))
        return write(members, stage, *rest)

    monkeypatch.setattr(published, "_write", look)
    unpack(make_tar(tmp_path / "a.tar", [(member("one"), b"1")]), tmp_path / "out", **CAPS)
    assert looked == [(True, False)] and everything_in(tmp_path / "out") == ["one"]


def test_a_link_where_a_file_goes_is_refused_and_nothing_is_moved(tmp_path, server):
    (tmp_path / "elsewhere").write_bytes(b"mine")
    members = [(member("set/one"), b"1"), (member("set/two"), b"2")]
    archive = make_tar(tmp_path / "a.tar", members)
    for name, target in (("set/two", "../../elsewhere"), ("set", "../nowhere")):
        place = tmp_path / name.replace("/", "-") / name
        place.parent.mkdir(parents=True)
        place.symlink_to(target)
        with pytest.raises(DataError, match="is a link, which is never replaced"):
            unpack(archive, tmp_path / name.replace("/", "-"), **CAPS)
        assert place.is_symlink() and not (place.parent / "one").exists()
    for name in ("b.bin", "b.bin.part"):
        (tmp_path / name).symlink_to("elsewhere" if name == "b.bin.part" else "nowhere")
        with pytest.raises(DataError, match="is a link, which is never replaced"):
            get(server, "good", tmp_path / "b.bin")
        (tmp_path / name).unlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"mine" and server.asked == []


def test_modes_of_the_archive_are_not_applied(tmp_path):
    info = member("run.sh")
    info.mode = 0o6777
    unpack(make_tar(tmp_path / "a.tgz", [(info, b"x")]), tmp_path / "out", **CAPS)
    assert (tmp_path / "out/run.sh").stat().st_mode & 0o7111 == 0


def test_unpacking_over_a_half_unpacked_folder_completes_it(tmp_path):
    (tmp_path / "out/set").mkdir(parents=True)
    (tmp_path / "out/set/one").write_bytes(b"hal")
    members = [(member("set/one"), b"half"), (member("set/two"), b"2")]
    unpack(make_tar(tmp_path / "a.tar", members), tmp_path / "out", **CAPS)
    assert (tmp_path / "out/set/one").read_bytes() == b"half"
    assert (tmp_path / "out/set/two").read_bytes() == b"2"


NEGATIVE = member("negative")
NEGATIVE.size = -512


@pytest.mark.parametrize(
    ("bad", "content"),
    [
        (member("../evil"), b"x"),
        (member("set/../../evil"), b"x"),
        (member("/evil-of-a-test"), b"x"),
        (member("..\\evil"), b"x"),
        (member("C:evil"), b"x"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), None),
        (member("inner", tarfile.SYMTYPE, "good"), None),
        (member("hard", tarfile.LNKTYPE, "good"), None),
        (member("fifo", tarfile.FIFOTYPE), None),
        (member("null", tarfile.CHRTYPE), None),
        (member("good"), b"again"),
        (member("GOOD"), b"in another case"),
        (member("big"), b"x" * 1_000_001),
        (member("../folder", tarfile.DIRTYPE), None),
        (NEGATIVE, None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_bad_member_of_a_tar_is_named_and_nothing_is_unpacked(tmp_path, bad, content):
    archive = make_tar(tmp_path / "a.tar", [(member("good"), b"good"), (bad, content)])
    with pytest.raises(DataError) as caught:
        unpack(archive, tmp_path / "out", **CAPS)
    assert repr(bad.name) in str(caught.value)
    assert everything_in(tmp_path) == ["a.tar", "out"]


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt"),
        *("a\\b.txt", "C:evil.txt", "C:/e"),
    ],
)
@pytest.mark.fault(28)
def test_a_name_that_leaves_the_folder_is_refused_and_nothing_is_written(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", [("good.txt", b"1"), (name, b"evil")])
    with pytest.raises(DataError, match=r"a\.zip.*member") as caught:
        unpack(archive, tmp_path / "deep" / "out", **CAPS)
    assert name.replace("\\", "\\\\") in str(caught.value)
    assert everything_in(tmp_path) == ["a.zip", "deep", "deep/out"]


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_of_a_zip_are_refused(tmp_path, mode):
    archive = make_zip(tmp_path / "a.zip", [("link", b"/etc/passwd")], mode | 0o777)
    with pytest.raises(DataError, match="is a link or no plain file"):
        unpack(archive, tmp_path / "out", **CAPS)
    assert everything_in(tmp_path / "out") == []


@pytest.mark.fault(28)
def test_two_names_that_one_disk_takes_for_the_same_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("Cat/1.bin", b"1"), ("cat/1.bin", b"2")])
    with pytest.raises(DataError, match="is there twice"):
        unpack(archive, tmp_path / "out", **CAPS)
    assert everything_in(tmp_path / "out") == []


def test_too_many_members_are_refused(tmp_path):
    names = [f"f{i}" for i in range(21)]
    archives = [
        make_tar(tmp_path / "a.tar", [(member(name), b"") for name in names]),
        make_zip(tmp_path / "a.zip", [(name, b"") for name in names]),
    ]
    for archive in archives:
        with pytest.raises(DataError, match="'f20' is one more than the 20 allowed"):
            unpack(archive, tmp_path / "out", **CAPS)
        assert everything_in(tmp_path / "out") == []


@pytest.mark.fault(28)
def test_a_bomb_is_stopped_by_the_bytes_it_unpacks_to(tmp_path):
    archive = tmp_path / "bomb.tar.gz"
    with gzip.open(archive, "wb", compresslevel=9) as file:
        info = member("x" * 300)  # a long name: its header's content is read before the member
        info.size = 0
        header = info.tobuf(tarfile.GNU_FORMAT)
        pax = tarfile.TarInfo("pax")
        pax.type, pax.size = tarfile.XHDTYPE, 500_000_000
        file.write(pax.tobuf() + b"\0" * 50_000_000 + header)
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack(archive, tmp_path / "out", **CAPS)
    archive = make_zip(tmp_path / "a.zip", [("zeros", bytes(5_000_000))])
    assert archive.stat().st_size < 10_000
    with pytest.raises(DataError, match="goes past the 1000000 bytes"):
        unpack(archive, tmp_path / "out", **CAPS)
    assert everything_in(tmp_path / "out") == []


def test_every_cut_of_a_tar_is_refused_or_gives_whole_files(tmp_path):
    content = os.urandom(3000)
    whole = make_tar(tmp_path / "a.tar", [(member("one"), content), (member("two"), content)])
    data = whole.read_bytes()
    refused = 0
    for cut in range(0, len(data), 97):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        out = tmp_path / f"out{cut}"
        try:
            files = unpack(tmp_path / "cut.tar", out, **CAPS)
        except DataError:
            refused += 1
            assert everything_in(out) == []
        else:
            assert all(file.read_bytes() == content for file in files)
    assert refused > 0.9 * len(range(0, len(data), 97))


def test_an_encrypted_a_damaged_and_an_empty_zip_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a", b"content" * 50)], None, zipfile.ZIP_STORED)
    whole = archive.read_bytes()
    locked = bytearray(whole)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[whole.index(mark) + place] |= 1
    flipped = bytearray(whole)
    flipped[whole.index(b"content") + 3] ^= 1
    cases = [
        (bytes(locked), "is encrypted"),
        (bytes(flipped), "not a whole zip archive"),
        (whole[: len(whole) // 2], "not a whole zip archive"),
        (b"<html>", "not a whole zip archive"),
        (b"", "not a whole zip archive"),
        (b"PK\x05\x06" + bytes(18), "holds no file"),
    ]
    for content, words in cases:
        archive.write_bytes(content)
        with pytest.raises(DataError, match=words):
            unpack(archive, tmp_path / "out", **CAPS)
        assert everything_in(tmp_path / "out") == []


@pytest.mark.parametrize("junk", [b"", b"<html>no</html>", b"\x1f\x8bxx", os.urandom(2000)])
def test_what_is_no_archive_is_refused_by_name(tmp_path, junk):
    (tmp_path / "junk.tar").write_bytes(junk)
    with pytest.raises(DataError, match=r"junk\.tar"):
        unpack(tmp_path / "junk.tar", tmp_path / "out", **CAPS)
    with pytest.raises(DataError, match=r"cannot unpack .*none.zip"):
        unpack(tmp_path / "none.zip", tmp_path / "out", **CAPS)


class PlainHttps(urllib.request.HTTPSHandler):
    """Speaks http where https is asked for, so that a test needs no certificate."""

    def https_open(self, req):
        return self.do_open(http.client.HTTPConnection, req)


class Script(http.server.BaseHTTPRequestHandler):
    """Answers by path; remembers what was asked."""

    asked: list[tuple[str, str | None]]

    def do_GET(self):
        asked = self.headers.get("Range")
        type(self).asked.append((self.path, asked))
        getattr(self, "answer_" + self.path.strip("/").partition(".")[0])(asked)

    def send(self, status, body, headers=(), length=None):
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        if length != "none":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self, asked):
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if first >= len(BODY):
            self.send(416, b"", [("Content-Range", f"bytes */{len(BODY)}")])
        elif asked:
            span = [("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")]
            self.send(206, BODY[first:], span)
        else:
            self.send(200, BODY)

    def answer_stubborn(self, asked):
        self.send(200, BODY)

    def answer_cut(self, asked):
        self.send(200, BODY[:1_000_000], length=len(BODY))

    def answer_empty(self, asked):
        self.send(202, b"")

    def answer_zero(self, asked):
        self.send(200, b"")

    def answer_page(self, asked):
        self.send(200, b"<html>log in", [("Content-Type", "text/html; charset=utf-8")])

    def answer_hidden(self, asked):
        self.send(200, b" <!DOCTYPE html><p>", [("Content-Type", "application/octet-stream")])

    def answer_other(self, asked):
        self.send(200, BODY[::-1])

    def answer_long(self, asked):
        self.send(200, BODY + b"x" * 10)

    def answer_unknown(self, asked):
        self.send(200, b"x", [("Connection", "close")], "none")

    def answer_huge(self, asked):
        self.send(200, b"", length=10**12)

    def answer_gone(self, asked):
        self.send(404, b"no")

    def answer_moved(self, asked):
        place = f"https://127.0.0.1:{self.server.server_port}/good.bin"
        self.send(302, b"", [("Location", place)])

    def answer_downgrade(self, asked):
        place = f"http://127.0.0.1:{self.server.server_port}/good.bin"
        self.send(302, b"", [("Location", place)])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Once", (Script,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        running.asked = handler.asked
        yield running
        running.shutdown()


def get(server, name, path, size=SIZE, at_most=0, **options):
    url = f"https://127.0.0.1:{server.server_port}/{name}.bin"
    file = PublishedFile("a.bin", size, MD5, url=url, at_most=at_most)
    return fetch(file, path, handlers=[PlainHttps()], **options)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_under_its_name_and_nothing_else_is_left(server, tmp_path):
    sha256 = hashlib.sha256(BODY).hexdigest()
    assert get(server, "good", tmp_path / "new" / "a.bin", sha256=sha256) == sha256
    assert (tmp_path / "new" / "a.bin").read_bytes() == BODY
    assert left_in(tmp_path / "new") == ["a.bin"]


def test_a_file_that_is_there_is_checked_and_not_fetched(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)
    get(server, "good", tmp_path / "a.bin")
    assert server.asked == []
    (tmp_path / "a.bin").write_bytes(b"something else")
    with pytest.raises(DataError, match="as published it is"):
        get(server, "good", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"something else"


@pytest.mark.fault(27)
def test_a_cut_download_is_continued_where_it_stopped(server, tmp_path):
    with pytest.raises(DataError, match=r"run again"):
        get(server, "cut", tmp_path / "a.bin")
    assert left_in(tmp_path) == ["a.bin.part"]
    have = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < have <= 1_000_000
    get(server, "good", tmp_path / "a.bin")
    assert server.asked[-1] == ("/good.bin", f"bytes={have}-")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert left_in(tmp_path) == ["a.bin"]


def test_a_server_that_cannot_continue_makes_it_start_over(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"stale" * 1000)
    get(server, "stubborn", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_whole_part_of_a_killed_run_is_published_without_the_network(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    get(server, "good", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert server.asked == []


@pytest.mark.parametrize("have", [0, 1000, len(BODY)])
def test_a_server_tells_the_size_that_was_not_published(server, tmp_path, have):
    if have:
        (tmp_path / "a.bin.part").write_bytes(BODY[:have])
    get(server, "good", tmp_path / "a.bin", size=0, at_most=6_000_000)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert left_in(tmp_path) == ["a.bin"] and len(server.asked) == 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("empty", "answered 202"),
        ("zero", "sent nothing"),
        ("page", "HTML page"),
        ("hidden", "HTML page"),
        ("other", "has md5"),
        ("long", "more than the published"),
        ("gone", "answered 404"),
        ("downgrade", "redirects to .* which is not https: refused"),
    ],
)
@pytest.mark.fault(27)
def test_a_wrong_answer_is_refused_with_the_way_to_do_it_by_hand(server, tmp_path, name, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        get(server, name, tmp_path / "a.bin")
    text = str(caught.value)
    assert "\n" not in text
    for needed in (str(tmp_path / "a.bin"), str(len(BODY)), MD5, f"/{name}.bin"):
        assert needed in text
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("unknown", "has -1 bytes"),
        ("zero", "has 0 bytes"),
        ("huge", f"has {10**12} bytes; an archive of at most 20000 was expected"),
    ],
)
def test_another_answer_is_no_archive_of_unknown_size(server, tmp_path, name, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        get(server, name, tmp_path / "a.bin", size=0, at_most=20_000)
    assert f"/{name}.bin" in str(caught.value) and left_in(tmp_path) == []


def test_a_redirect_to_https_is_followed(server, tmp_path):
    get(server, "moved", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("url", ["http://127.0.0.1/a", "file:///etc/passwd", "ftp://x/a", "a.bin"])
@pytest.mark.fault(27)
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(ConfigError, match="https"):
        fetch(PublishedFile("a.bin", 1, MD5, url=url), tmp_path / "a.bin")
    assert left_in(tmp_path) == []


@pytest.mark.fault(27)
def test_no_connection_is_one_error_with_the_file_to_put_there(tmp_path):
    file = PublishedFile("a.bin", 5, MD5, url="https://127.0.0.1:9/a.bin")
    with pytest.raises(DataError, match=r"cannot fetch .*put the file there by hand"):
        fetch(file, tmp_path / "a.bin", timeout_s=2)


def test_two_at_once_fetch_it_once(server, tmp_path):
    faults = []

    def work():
        try:
            get(server, "good", tmp_path / "a.bin")
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(server.asked) == 1
    assert left_in(tmp_path) == ["a.bin"]


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot fetch"):
        get(server, "good", tmp_path / "file" / "a.bin")


def test_hashes_are_compared_and_both_are_named(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"hello")
    md5, sha256 = hashlib.md5(b"hello").hexdigest(), hashlib.sha256(b"hello").hexdigest()
    assert check_file(path, md5=md5.upper(), sha256=sha256) == sha256
    assert read_checked(path, md5=md5, sha256=sha256) == b"hello"
    for reader in (check_file, read_checked):
        with pytest.raises(DataError, match=f"{md5}.*{MD5}"):
            reader(path, md5=MD5)
        with pytest.raises(DataError, match="sha256"):
            reader(path, md5=md5, sha256="0" * 64)
        with pytest.raises(DataError, match="cannot read"):
            reader(tmp_path / "none", md5=md5)


def packed(name, content):
    """Bytes of an archive that holds set/1.npy."""
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        make_zip(buffer, [("set/1.npy", content)])
    else:
        info = member("set/1.npy")
        info.size = len(content)
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def archive_of(data, name):
    return Archive(
        *(name, 0, hashlib.md5(data).hexdigest()), url=f"https://example.org/{name}",
        page="https://example.org/page", at_most=10_000, unpacked=10_000, members=10, into="home",
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """Files that were asked of the network, which gives none."""
    found = []
    monkeypatch.setattr(published, "fetch", lambda file, path, **_: found.append((file, path)))
    return found


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_an_archive_in_the_root_is_checked_and_unpacked_without_network(tmp_path, name, asked):
    data = packed(name, b"content")
    (tmp_path / name).write_bytes(data)
    file = tmp_path / "home" / "set" / "1.npy"
    for download in (False, True):
        assert provide("made", tmp_path, download, file.is_file, archives=[archive_of(data, name)])
        assert file.read_bytes() == b"content"
        file.unlink()
    assert asked == []


@pytest.mark.fault(29)
def test_the_sha256_of_the_first_use_is_asked_for_at_the_next(tmp_path):
    data = packed("a.zip", b"content")
    (tmp_path / "a.zip").write_bytes(data)
    file, pin = tmp_path / "home" / "set" / "1.npy", tmp_path / "a.zip.sha256"
    again = partial(provide, "made", tmp_path, False, file.is_file)
    again(archives=[archive_of(data, "a.zip")])
    assert pin.read_text().strip() == hashlib.sha256(data).hexdigest()
    file.unlink()
    again(archives=[archive_of(data, "a.zip")])
    file.unlink()
    # Another file that has the published md5 (here: another md5 is published) is noticed.
    other = packed("a.zip", b"changed")
    (tmp_path / "a.zip").write_bytes(other)
    with pytest.raises(DataError, match=r"a\.zip.* has sha256"):
        again(archives=[archive_of(other, "a.zip")])
    pin.write_text("nonsense")
    with pytest.raises(DataError, match=r"a\.zip\.sha256.* holds no sha256"):
        again(archives=[archive_of(other, "a.zip")])


def test_what_is_there_is_left_alone(tmp_path, asked):
    archives = [archive_of(b"", "a.zip")]
    assert provide("made", tmp_path / "gone", True, lambda: "there", archives=archives) == "there"
    assert asked == []


@pytest.mark.fault(27)
def test_a_missing_set_says_what_to_put_where_and_touches_no_network(tmp_path, asked):
    archives = [archive_of(b"abc", "a.zip"), archive_of(b"", "b.zip")]
    with pytest.raises(DataError) as caught:
        provide("made", tmp_path, False, lambda: None, archives=archives)
    message = str(caught.value)
    for words in ("a.zip", "b.zip", archives[0].md5, archives[0].page, str(tmp_path)):
        assert words in message
    assert "\n" not in message and "digits or moving_digits" in message
    assert "--data.download" in message and asked == []


def test_without_an_address_download_cannot_help_and_says_so(tmp_path, asked):
    archive = replace(archive_of(b"abc", "a.zip"), url="")
    with pytest.raises(DataError, match="cannot be downloaded by a program"):
        provide("made", tmp_path, True, lambda: None, archives=[archive])
    assert asked == []


def test_a_missing_archive_is_fetched_on_demand_and_unpacked(tmp_path, monkeypatch):
    data = packed("a.tar.gz", b"content")
    archive = archive_of(data, "a.tar.gz")
    calls = []

    def give(file, path, *, sha256):
        calls.append((file, sha256))
        path.write_bytes(data)
        return "f" * 64

    monkeypatch.setattr(published, "fetch", give)
    file = tmp_path / "home" / "set" / "1.npy"
    provide("made", tmp_path, True, file.is_file, archives=[archive])
    assert calls == [(archive, "")] and file.is_file()
    assert (tmp_path / "a.tar.gz.sha256").read_text().strip() == "f" * 64


def test_a_damaged_archive_and_one_that_holds_something_else_are_refused(tmp_path):
    data = packed("a.zip", b"content")
    archive = archive_of(data, "a.zip")
    (tmp_path / "a.zip").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"a\.zip.* has md5"):
        provide("made", tmp_path, False, lambda: None, archives=[archive])
    assert not (tmp_path / "home").exists()
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip .*does not hold what it should"):
        provide("made", tmp_path, False, lambda: None, archives=[archive])


FILES = (
    PublishedFile("a.bin", 3, "a" * 32, "c" * 64, "https://example.invalid/files/a.bin"),
    PublishedFile("b.bin", 4, "b" * 32, url="https://example.invalid/files/b.bin"),
    PublishedFile("t.bin", 5, "d" * 32, url="https://example.invalid/files/t.bin"),
)


def loose(root, download):
    def find():
        return all((root / "set" / file.name).is_file() for file in FILES)

    return provide("made", root, download, find, files=FILES, folder="set")


def test_missing_single_files_are_named_with_all_that_is_needed_to_put_them_there(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.bin").touch()
    (tmp_path / "t.bin").touch()
    with pytest.raises(DataError) as caught:
        loose(tmp_path, False)
    text = str(caught.value)
    assert "\n" not in text and "a.bin" not in text
    for file in FILES[1:]:
        assert f"{file.name} ({file.size} bytes, md5 {file.md5}, from {file.url})" in text
    for needed in (str(tmp_path), "--data.download", "t.bin lies in the root itself", "folder set"):
        assert needed in text
    (tmp_path / "set" / "b.bin").touch()
    (tmp_path / "t.bin").rename(tmp_path / "set" / "t.bin")
    assert loose(tmp_path, False)


def test_only_single_files_that_are_missing_are_fetched_and_only_on_demand(tmp_path, monkeypatch):
    fetched = []

    def give(file, path):
        fetched.append((file, path))
        path.touch()

    monkeypatch.setattr(published, "fetch", give)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.bin").touch()
    with pytest.raises(DataError):
        loose(tmp_path, False)
    assert fetched == []
    loose(tmp_path, True)
    assert fetched == [(file, tmp_path / "set" / file.name) for file in (FILES[0], FILES[2])]
