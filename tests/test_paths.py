"""Names that stay inside their folder and files that appear all at once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spikeformer_lt import disk
from spikeformer_lt.disk import free_bytes, safe_name, sha256_of, write_atomic
from spikeformer_lt.errors import CheckpointError, ConfigError

HOSTILE = [
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/../../b",
    "x\n\x00y",
    "日本",
    "n" * 300,
    "-rf",
    "=cmd()",
]


@given(st.text())
@example("CON")
@example("nul.txt")
def test_any_text_becomes_one_portable_file_name(text: str) -> None:
    name = safe_name(text)
    assert name.isascii()
    assert name.isprintable()
    assert 0 < len(name) <= 100
    assert not set(name) & set('/\\:*?"<>|~ $&;`')
    assert name[0] not in ".-=+"
    assert name.upper() not in {"CON", "NUL"}
    assert safe_name(name) == name


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_stays_inside_the_folder(text: str, tmp_path: Path) -> None:
    path = tmp_path / safe_name(text)
    assert path.parent == tmp_path
    path.mkdir()
    assert path.resolve().parent == tmp_path.resolve()


def test_hostile_names_do_not_fall_together() -> None:
    assert (
        len({safe_name(text) for text in [*HOSTILE, "a b", "a_b", "a/b", "日本語"]})
        == len(HOSTILE) + 4
    )


@pytest.mark.parametrize("text", ["multisp_cifar", "a-b.c", "run=3", "x" * 100])
def test_a_good_name_is_left_alone(text: str) -> None:
    assert safe_name(text) == text


def test_a_file_is_written_whole_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]
    assert sha256_of(path) == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_fault_at_any_point_leaves_the_old_file(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "write":

        class Full:
            def __init__(self, name: Path, _: str) -> None:
                self.file = open(name, "wb")  # noqa: SIM115

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

            write = full

        monkeypatch.setattr(disk, "open", Full, raising=False)
    else:
        monkeypatch.setattr(os, broken, full)
    with pytest.raises(ConfigError, match=r"No space left.*7 bytes needed, \d+ free") as caught:
        write_atomic(path, b"content", ConfigError)
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_an_interruption_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"data")
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot write '.*file/x'"):
        write_atomic(tmp_path / "file" / "x", b"data")


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    contents = [bytes([i]) * 50_000 for i in range(8)]
    writers = [threading.Thread(target=write_atomic, args=(tmp_path / "x", c)) for c in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "x").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_free_bytes_are_those_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "yet")
    assert isinstance(free, int)
    assert free > 0
