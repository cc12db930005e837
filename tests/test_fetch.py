"""Downloads against a scripted server on this machine, and hashes of files."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import threading
import urllib.request
from pathlib import Path

import pytest

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.published import check_file, download, read_checked

BODY = bytes(range(256)) * 20_000  # 5 MB
MD5 = hashlib.md5(BODY).hexdigest()


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
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self, asked):
        if asked:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
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


def fetch(server, name, path, **options):
    options = {"md5": MD5, "size": len(BODY), "handlers": [PlainHttps()]} | options
    return download(f"https://127.0.0.1:{server.server_port}/{name}.bin", path, **options)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_under_its_name_and_nothing_else_is_left(server, tmp_path):
    got = fetch(server, "good", tmp_path / "new" / "a.bin", sha256=hashlib.sha256(BODY).hexdigest())
    assert got.read_bytes() == BODY
    assert left_in(tmp_path / "new") == ["a.bin"]


def test_a_file_that_is_there_is_checked_and_not_fetched(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)
    fetch(server, "good", tmp_path / "a.bin")
    assert server.asked == []
    (tmp_path / "a.bin").write_bytes(b"something else")
    with pytest.raises(DataError, match="as published it is"):
        fetch(server, "good", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"something else"


def test_a_cut_download_is_continued_where_it_stopped(server, tmp_path):
    with pytest.raises(DataError, match=r"run again"):
        fetch(server, "cut", tmp_path / "a.bin")
    assert left_in(tmp_path) == ["a.bin.part"]
    have = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < have <= 1_000_000
    fetch(server, "good", tmp_path / "a.bin")
    assert server.asked[-1] == ("/good.bin", f"bytes={have}-")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert left_in(tmp_path) == ["a.bin"]


def test_a_server_that_cannot_continue_makes_it_start_over(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"stale" * 1000)
    assert fetch(server, "stubborn", tmp_path / "a.bin").read_bytes() == BODY


def test_a_whole_part_of_a_killed_run_is_published_without_the_network(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    assert fetch(server, "good", tmp_path / "a.bin").read_bytes() == BODY
    assert server.asked == []


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
        ("downgrade", "not https"),
    ],
)
def test_a_wrong_answer_is_refused_with_the_way_to_do_it_by_hand(server, tmp_path, name, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        fetch(server, name, tmp_path / "a.bin")
    text = str(caught.value)
    assert "\n" not in text
    for needed in (str(tmp_path / "a.bin"), str(len(BODY)), MD5, f"/{name}.bin"):
        assert needed in text
    assert left_in(tmp_path) == []


def test_a_redirect_to_https_is_followed(server, tmp_path):
    assert fetch(server, "moved", tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("url", ["http://127.0.0.1/a", "file:///etc/passwd", "ftp://x/a", "a.bin"])
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(ConfigError, match="https"):
        download(url, tmp_path / "a.bin", md5=MD5, size=1)
    assert left_in(tmp_path) == []


def test_no_connection_is_one_error_with_the_file_to_put_there(tmp_path):
    with pytest.raises(DataError, match=r"cannot fetch .*put the file there by hand"):
        download("https://127.0.0.1:9/a.bin", tmp_path / "a.bin", md5=MD5, size=5, timeout_s=2)


def test_two_at_once_fetch_it_once(server, tmp_path):
    faults = []

    def work():
        try:
            fetch(server, "good", tmp_path / "a.bin")
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
        fetch(server, "good", tmp_path / "file" / "a.bin")


def test_hashes_are_compared_and_both_are_named(tmp_path):
    path: Path = tmp_path / "a"
    path.write_bytes(b"hello")
    md5, sha256 = hashlib.md5(b"hello").hexdigest(), hashlib.sha256(b"hello").hexdigest()
    check_file(path, md5=md5.upper(), sha256=sha256)
    assert read_checked(path, md5=md5, sha256=sha256) == b"hello"
    for reader in (check_file, read_checked):
        with pytest.raises(DataError, match=f"{md5}.*{MD5}"):
            reader(path, md5=MD5)
        with pytest.raises(DataError, match="sha256"):
            reader(path, md5=md5, sha256="0" * 64)
        with pytest.raises(DataError, match="cannot read"):
            reader(tmp_path / "none", md5=md5)
