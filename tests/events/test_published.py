from __future__ import annotations

import hashlib
import http.client
import http.server
import io
import tarfile
import threading
import urllib.request
import zipfile
from dataclasses import replace

import pytest

from spikeformer_lt import published
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.published import Archive, ask_size, provide, unpack

SIZE = 12_345


class PlainHttps(urllib.request.HTTPSHandler):
    """Speaks http where https is asked for, so that a test needs no certificate."""

    def https_open(self, req):
        return self.do_open(http.client.HTTPConnection, req)


class Server(http.server.BaseHTTPRequestHandler):
    """Answers a question for the first byte as servers of data sets do, well and badly."""

    answers = {  # noqa: RUF012
        "/range": (206, {"Content-Range": f"bytes 0-0/{SIZE}", "Content-Length": "1"}),
        "/whole": (200, {"Content-Length": str(SIZE)}),
        "/page": (200, {"Content-Length": "99", "Content-Type": "text/html; charset=utf-8"}),
        "/empty": (202, {"Content-Length": "0"}),
        "/unknown": (200, {"Connection": "close"}),
        "/strange": (206, {"Content-Range": "bytes 0-0/*"}),
        "/large": (206, {"Content-Range": f"bytes 0-0/{10**12}"}),
        "/gone": (404, {"Content-Length": "0"}),
        "/downgrade": (302, {"Location": "http://127.0.0.1:9/x"}),
    }

    def do_GET(self):
        assert self.headers["Range"] == "bytes=0-0"
        status, headers = self.answers[self.path]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/range", "/whole"])
def test_a_server_tells_the_size_by_the_first_byte(address, path):
    assert ask_size(address + path, 20_000, [PlainHttps()]) == SIZE


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "answered 200 with 'text/html'"),
        ("/empty", "answered 202"),
        ("/unknown", "of -1 bytes"),
        ("/strange", "of -1 bytes"),
        ("/large", f"of {10**12} bytes; an archive of at most 20000"),
        ("/gone", "Not Found"),
        ("/downgrade", "redirects to .* which is not https: refused"),
    ],
)
def test_another_answer_is_no_archive(address, path, words):
    with pytest.raises(DataError, match=words) as caught:
        ask_size(address + path, 20_000, [PlainHttps()])
    assert path in str(caught.value)


def test_only_https_is_asked_and_no_connection_is_an_error():
    with pytest.raises(ConfigError, match="only https"):
        ask_size("http://127.0.0.1/a", 10)
    with pytest.raises(DataError, match="cannot fetch https://127.0.0.1:9/a"):
        ask_size("https://127.0.0.1:9/a", 10, [PlainHttps()])


def tar_of(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("set/1.npy")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("set/1.npy", content)
    return buffer.getvalue()


def archive_of(data, name):
    return Archive(
        name=name, url=f"https://example.org/{name}", md5=hashlib.md5(data).hexdigest(),
        page="https://example.org", at_most=10_000, unpacked=10_000, members=10, into="home",
    )  # fmt: skip


@pytest.fixture
def no_network(monkeypatch):
    asked = []
    monkeypatch.setattr(published, "ask_size", lambda url, most: asked.append(url))
    monkeypatch.setattr(published, "download", lambda url, *a, **k: asked.append(url))
    return asked


@pytest.mark.parametrize(("name", "make"), [("a.tar.gz", tar_of), ("a.zip", zip_of)])
def test_an_archive_in_the_root_is_checked_and_unpacked_without_network(
    tmp_path, name, make, no_network
):
    data = make(b"content")
    (tmp_path / name).write_bytes(data)
    file = tmp_path / "home" / "set" / "1.npy"
    for download in (False, True):
        provide("made", [archive_of(data, name)], tmp_path, download, file.is_file)
        assert file.read_bytes() == b"content"
        file.unlink()
    assert no_network == []


def test_the_sha256_of_the_first_use_is_asked_for_at_the_next(tmp_path, no_network):
    data = zip_of(b"content")
    (tmp_path / "a.zip").write_bytes(data)
    file, pin = tmp_path / "home" / "set" / "1.npy", tmp_path / "a.zip.sha256"
    archive = archive_of(data, "a.zip")
    provide("made", [archive], tmp_path, False, file.is_file)
    assert pin.read_text().strip() == hashlib.sha256(data).hexdigest()
    file.unlink()
    provide("made", [archive], tmp_path, False, file.is_file)
    file.unlink()
    # Another file that has the published md5 (here: another md5 is published) is noticed.
    other = zip_of(b"changed")
    (tmp_path / "a.zip").write_bytes(other)
    with pytest.raises(DataError, match=r"a\.zip.* has sha256"):
        provide("made", [archive_of(other, "a.zip")], tmp_path, False, file.is_file)
    pin.write_text("nonsense")
    with pytest.raises(DataError, match=r"a\.zip\.sha256.* holds no sha256"):
        provide("made", [archive_of(other, "a.zip")], tmp_path, False, file.is_file)


def test_what_is_there_is_left_alone(tmp_path, no_network):
    provide("made", [archive_of(b"", "a.zip")], tmp_path / "gone", True, lambda: True)
    assert no_network == []


def test_a_missing_set_says_what_to_put_where_and_touches_no_network(tmp_path, no_network):
    archive = archive_of(b"abc", "a.zip")
    with pytest.raises(DataError) as caught:
        provide("made", [archive, archive_of(b"", "b.zip")], tmp_path, False, lambda: False)
    message = str(caught.value)
    for words in ("a.zip", "b.zip", archive.md5, archive.page, str(tmp_path), "moving_digits"):
        assert words in message
    assert "--data.download" in message and no_network == []


def test_without_an_address_download_cannot_help_and_says_so(tmp_path, no_network):
    archive = replace(archive_of(b"abc", "a.zip"), url="")
    with pytest.raises(DataError, match="cannot be downloaded by a program"):
        provide("made", [archive], tmp_path, True, lambda: False)
    assert no_network == []


def test_a_download_asks_for_the_size_checks_the_hash_and_unpacks(tmp_path, monkeypatch):
    data = tar_of(b"content")
    archive = archive_of(data, "a.tar.gz")
    monkeypatch.setattr(published, "ask_size", lambda url, most: len(data))
    calls = []

    def download(url, path, *, md5, size, sha256):
        calls.append((url, md5, size))
        path.write_bytes(data)

    monkeypatch.setattr(published, "download", download)
    file = tmp_path / "home" / "set" / "1.npy"
    provide("made", [archive], tmp_path, True, file.is_file)
    assert calls == [(archive.url, archive.md5, len(data))] and file.is_file()


def test_a_damaged_archive_and_one_that_holds_something_else_are_refused(tmp_path, no_network):
    data = zip_of(b"content")
    archive = archive_of(data, "a.zip")
    (tmp_path / "a.zip").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"a\.zip.* has md5"):
        provide("made", [archive], tmp_path, False, lambda: False)
    assert not (tmp_path / "home").exists()
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match="do not hold what they should"):
        provide("made", [archive], tmp_path, False, lambda: False)


def test_the_ending_says_how_to_unpack(tmp_path):
    (tmp_path / "A.ZIP").write_bytes(zip_of(b"1"))
    assert [p.name for p in unpack(tmp_path / "A.ZIP", tmp_path / "z", 100, 5)] == ["1.npy"]
    (tmp_path / "a.tgz").write_bytes(tar_of(b"1"))
    assert [p.name for p in unpack(tmp_path / "a.tgz", tmp_path / "t", 100, 5)] == ["1.npy"]
