from __future__ import annotations

import stat
import zipfile

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.published import extract_zip

LIMITS = {"max_bytes": 10_000, "max_members": 20}


def make(path, members, mode=None, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, content in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.compress_type = compression
            if mode is not None:
                info.external_attr = mode << 16
            packed.writestr(info, content)
    return path


def everything(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_files_and_folders_are_unpacked_and_desktop_leavings_are_not(tmp_path):
    archive = make(
        tmp_path / "a.zip", [("a/b.txt", b"one"), ("a/", b""), ("c", b""), ("__MACOSX/a/._b", b"x")]
    )
    found = extract_zip(archive, tmp_path / "out", **LIMITS)
    assert [p.relative_to(tmp_path / "out").as_posix() for p in found] == ["a/b.txt", "c"]
    assert everything(tmp_path / "out") == ["a", "a/b.txt", "c"]
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"one"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        "a/../../evil.txt",
        "/evil.txt",
        "..\\evil.txt",
        "a\\b.txt",
        "C:evil.txt",
        "C:/e",
    ],
)
def test_a_name_that_leaves_the_folder_is_refused_and_nothing_is_written(tmp_path, name):
    archive = make(tmp_path / "a.zip", [("good.txt", b"1"), (name, b"evil")])
    with pytest.raises(DataError, match=r"a\.zip.*member") as caught:
        extract_zip(archive, tmp_path / "deep" / "out", **LIMITS)
    assert name.replace("\\", "\\\\") in str(caught.value)
    assert everything(tmp_path) == ["a.zip", "deep", "deep/out"]


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(tmp_path, mode):
    archive = make(tmp_path / "a.zip", [("link", b"/etc/passwd")], mode | 0o777)
    with pytest.raises(DataError, match="is a link or no plain file"):
        extract_zip(archive, tmp_path / "out", **LIMITS)
    assert everything(tmp_path / "out") == []


def test_two_names_that_one_disk_takes_for_the_same_are_refused(tmp_path):
    archive = make(tmp_path / "a.zip", [("Cat/1.bin", b"1"), ("cat/1.bin", b"2")])
    with pytest.raises(DataError, match="is there twice"):
        extract_zip(archive, tmp_path / "out", **LIMITS)
    assert everything(tmp_path / "out") == []


def test_a_bomb_stops_at_the_limit_whatever_it_says_of_its_size(tmp_path):
    archive = make(tmp_path / "a.zip", [("zeros", bytes(5_000_000))])
    assert archive.stat().st_size < 10_000
    with pytest.raises(DataError, match="goes past the 10000 bytes"):
        extract_zip(archive, tmp_path / "out", **LIMITS)
    many = make(tmp_path / "many.zip", [(f"{i}", b"") for i in range(21)])
    with pytest.raises(DataError, match="has 21 members; allowed are 20"):
        extract_zip(many, tmp_path / "out", **LIMITS)
    assert everything(tmp_path / "out") == []


def test_an_encrypted_a_damaged_and_an_empty_archive_are_refused(tmp_path):
    archive = make(tmp_path / "a.zip", [("a", b"content" * 50)], compression=zipfile.ZIP_STORED)
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
            extract_zip(archive, tmp_path / "out", **LIMITS)
        assert everything(tmp_path / "out") == []
    with pytest.raises(DataError, match="cannot unpack"):
        extract_zip(tmp_path / "gone.zip", tmp_path / "out", **LIMITS)
