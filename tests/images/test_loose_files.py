"""Sets of single files: what is asked of the disk, of the network, and of the user."""

from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images.files import LooseFiles, PublishedFile, check_size, provide

FILES = LooseFiles(
    folder="set",
    url="https://example.invalid/files/",
    train=(PublishedFile("a.bin", 3, "a" * 32, "c" * 64), PublishedFile("b.bin", 4, "b" * 32)),
    test=(PublishedFile("t.bin", 5, "d" * 32),),
)


def test_files_that_are_there_need_nothing(tmp_path):
    (tmp_path / "set").mkdir()
    for file in FILES.train + FILES.test:
        (tmp_path / "set" / file.name).touch()
    assert provide("set", FILES, tmp_path, download=False) == tmp_path / "set"


def test_missing_files_are_named_with_all_that_is_needed_to_put_them_there(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.bin").touch()
    (tmp_path / "t.bin").touch()
    with pytest.raises(DataError) as caught:
        provide("set", FILES, tmp_path, download=False)
    text = str(caught.value)
    assert "\n" not in text and "a.bin" not in text
    for file in (FILES.train[1], FILES.test[0]):
        assert f"{file.name} ({file.size} bytes, md5 {file.md5})" in text
    for needed in (str(tmp_path), FILES.url, "--data.download", "lies in the root itself"):
        assert needed in text


def test_only_what_is_missing_is_fetched_and_only_on_demand(tmp_path, monkeypatch):
    asked = []

    def pretend(url, path, *, md5, size, sha256):
        asked.append((url, path.name, md5, size, sha256))

    monkeypatch.setattr("spikeformer_lt.published.download", pretend)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.bin").touch()
    with pytest.raises(DataError):
        provide("set", FILES, tmp_path, download=False)
    assert asked == []
    provide("set", FILES, tmp_path, download=True)
    assert asked == [
        (FILES.url + "a.bin", "a.bin", "a" * 32, 3, "c" * 64),
        (FILES.url + "t.bin", "t.bin", "d" * 32, 5, ""),
    ]


def test_a_size_that_the_set_does_not_come_in_is_refused():
    assert check_size("set", None, (28, 32)) == 28
    assert check_size("set", 32, (28, 32)) == 32
    with pytest.raises(ConfigError, match="image_size=30 is not allowed.*28 or 32 pixels"):
        check_size("set", 30, (28, 32))
