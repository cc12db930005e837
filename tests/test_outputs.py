"""Files that commands write: what is not theirs stays, what a kill left is swept."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from spikeformer_lt.bundle import NOTE, claim, outputs, sweep
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.published import unpack


def write(folder: Path, text: str, overwrite: bool = False) -> None:
    with outputs(folder, overwrite, "a.md", "plots/*.png"):
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        (folder / "a.md").write_text(text)
        (folder / "plots" / "x.png").write_text(text)


@pytest.mark.fault(52)
def test_what_a_command_wrote_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, "one")
    (folder / "notes.md").write_text("mine")
    write(folder, "two")
    assert (folder / "a.md").read_text() == (folder / "plots" / "x.png").read_text() == "two"
    for name in ("a.md", "plots/x.png"):
        (folder / name).write_text("changed by hand")
        with pytest.raises(ConfigError, match=rf"{name}' is there, and not as .* --overwrite"):
            write(folder, "three")
        assert (folder / name).read_text() == "changed by hand"
        write(folder, "four", overwrite=True)
        assert (folder / name).read_text() == "four"
    assert (folder / "notes.md").read_text() == "mine"


@pytest.mark.fault(52)
def test_a_file_a_folder_and_a_link_that_were_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("elsewhere")):
        make(tmp_path / "a.md")
        with pytest.raises(ConfigError, match="a.md' is (there|a link|a folder)"):
            write(tmp_path, "ours")
        if not (tmp_path / "a.md").is_file() or (tmp_path / "a.md").is_symlink():
            with pytest.raises(ConfigError, match="a.md' is a (link|folder)"):
                write(tmp_path, "ours", overwrite=True)
        os.rename(tmp_path / "a.md", tmp_path / f"was-{len(os.listdir(tmp_path))}")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / NOTE).exists()


def test_a_call_that_fails_leaves_no_trace_and_one_that_was_killed_is_gone_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), outputs(folder, False, "a.md"):
        1 / 0  # noqa: B018
    assert not folder.exists()
    with monkeypatch.context() as full:  # no room for the note itself
        full.setattr(os, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), outputs(folder, False, "a.md"):
            pass
    assert not folder.exists()
    killed = outputs(folder, False, "a.md", "plots/*.png")
    killed.__enter__()
    (folder / "a.md").write_text("half")
    note = (folder / NOTE).read_text()
    killed.__exit__(None, None, None)
    (folder / NOTE).write_text(note)
    write(folder, "whole")
    assert (folder / "a.md").read_text() == "whole"


@pytest.mark.fault(1)
def test_leftovers_of_kills_are_swept_and_what_was_set_aside_comes_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "last" / ".ckpt-1.tmp-0123456789ab").mkdir(parents=True)
    (run / "last" / ".LATEST.tmp-0123456789ab").write_text("half")
    (run / ".report.json.tmp-0123456789ab").write_text("half")
    (run / ".ticket.old-0123456789ab").mkdir()
    (run / ".ticket.old-0123456789ab" / "ticket.json").write_text("whole")
    (run / ".hidden").write_text("mine")
    sweep(run)
    left = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    assert left == {"last", "ticket", "ticket/ticket.json", ".hidden"}


@pytest.mark.fault(28)
def test_a_half_unpacked_archive_of_a_dead_process_is_swept(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("one")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    dead, living = tmp_path / "out" / ".extract-dead", tmp_path / "out" / ".extract-living"
    for stage in (dead, living):
        stage.mkdir(parents=True)
        (stage / "half").touch()
    with contextlib.ExitStack() as held:
        assert claim(living, held)
        unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=10, max_members=2)
    assert sorted(os.listdir(tmp_path / "out")) == [".extract-living", "one"]


def test_a_path_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    file = tmp_path / "a[1].pt2"
    file.write_text("mine")
    there = pytest.raises(ConfigError, match=r"a\[1\]\.pt2' is there, and not as")
    with there, outputs(tmp_path, False, file):
        file.write_text("ours")
    assert file.read_text() == "mine"
