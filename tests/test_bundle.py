"""Bundles: published whole, verified when read, recovered after a kill."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt import bundle
from spikeformer_lt.bundle import BundleKind, Stage, open_bundle, recover, staged
from spikeformer_lt.errors import CheckpointError, TicketError

KIND = BundleKind("parcel", "test.parcel", 2, "parcel.json", TicketError, files=("a.txt", "b.txt"))
LEFTOVER = "0123456789ab"


def save(folder: Path, text: str = "new", overwrite: bool = False) -> Path:
    with staged(folder, KIND, overwrite) as stage:
        stage.write("a.txt", text.encode())
        stage.seal({"note": text})
    return folder


def content(folder: Path) -> str:
    found = open_bundle(folder, KIND)
    assert found.about["note"] == found.read("a.txt").decode()
    return str(found.about["note"])


def leave(folder: Path, kind: str, text: str) -> Path:
    """Leave beside `folder` what a killed process would."""
    other = save(folder.with_name("other"), text)
    return other.rename(folder.with_name(f".{folder.name}.{kind}-{LEFTOVER}"))


def test_what_was_staged_appears_whole_with_its_hashes(tmp_path: Path) -> None:
    folder = save(tmp_path / "x" / "y", "one")
    assert content(folder) == "one"
    assert os.listdir(folder.parent) == ["y"]
    manifest = json.loads((folder / "parcel.json").read_text())
    assert manifest.keys() == {"format", "format_version", "note", "sha256", "seal"}
    with pytest.raises(TicketError, match=r"already holds 'a.txt'.*or overwrite=True"):
        save(folder)
    assert content(save(folder, "two", overwrite=True)) == "two"
    assert os.listdir(folder.parent) == ["y"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert content(save(Path("~/Mein Ä"))) == "new" and os.listdir(tmp_path) == ["Mein Ä"]


def test_nothing_appears_where_the_making_fails(tmp_path: Path) -> None:
    for fault in (ValueError("mine"), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises((ValueError, TicketError), match=r"mine|cannot write .*No space"):  # noqa: PT012, SIM117
            with staged(tmp_path / "p", KIND) as stage:
                stage.write("a.txt", b"half")
                raise fault
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replacement_that_fails_leaves_the_old_one(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "p", "old")
    replace, moves = os.replace, []

    def refuse(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    def broken(one: Path, other: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "_exchange", broken if exchange else lambda one, other: False)
        patch.setattr(os, "replace", refuse)
        with pytest.raises(TicketError, match="Input/output error"):
            save(folder, "new", overwrite=True)
    assert len(moves) == (0 if exchange else 3)  # aside, refused, put back
    assert content(folder) == "old"
    assert os.listdir(tmp_path) == ["p"]


def test_an_old_one_that_cannot_be_put_back_is_named_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "p", "old")
    replace, moves = os.replace, []

    def refuse(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) > 1:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "_exchange", lambda one, other: False)
        patch.setattr(os, "replace", refuse)
        with pytest.raises(TicketError, match=r"Input/output error; the old one is .*\.p\.old-"):
            save(folder, "new", overwrite=True)
    assert content(folder) == "old"


def test_a_system_without_exchange_replaces_by_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    save(tmp_path / "p", "old")
    assert content(save(tmp_path / "p", "new", overwrite=True)) == "new"
    assert os.listdir(tmp_path) == ["p"]


def test_this_system_exchanges_two_folders(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one", "1"), save(tmp_path / "other", "2")
    if not bundle._exchange(one, other):
        pytest.skip("no such call here")
    assert (content(one), content(other)) == ("2", "1")


@pytest.mark.parametrize(
    "files",
    [
        {"parcel.json": "{}", "a.txt": "theirs"},
        {"parcel.json": '{"format": "theirs"}'},
        {"a.txt": "theirs"},
        {"notes.txt": "theirs"},
    ],
)
def test_what_is_not_ours_is_never_replaced(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TicketError, match=r"already holds .*by a parcel only"):
        save(tmp_path, overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_file_that_comes_while_the_stage_is_filled_is_not_replaced(tmp_path: Path) -> None:
    folder = save(tmp_path / "p", "old")
    with pytest.raises(TicketError, match="already holds 'notes.txt'"):  # noqa: PT012, SIM117
        with staged(folder, KIND, overwrite=True) as stage:
            stage.seal({})
            (folder / "notes.txt").write_text("mine")
    assert content(folder) == "old"
    assert sorted(os.listdir(folder)) == ["a.txt", "notes.txt", "parcel.json"]


@pytest.mark.fault(52)
@pytest.mark.parametrize("target", ["p", "empty", "nowhere"])
def test_a_link_as_target_is_refused(tmp_path: Path, target: str) -> None:
    save(tmp_path / "p", "old")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TicketError, match="link' is a link, which is never replaced"):
        save(tmp_path / "link", "new", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before and content(tmp_path / "p") == "old"


def test_a_link_that_comes_while_the_stage_is_filled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TicketError, match="is a link"):  # noqa: PT012, SIM117
        with staged(tmp_path / "p", KIND) as stage:
            stage.seal({})
            (tmp_path / "p").symlink_to("nowhere")
    assert os.listdir(tmp_path) == ["p"] and (tmp_path / "p").is_symlink()


def test_a_link_above_the_target_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    save(tmp_path / "runs" / "p", "new")
    assert content(tmp_path / "disk" / "p") == "new"


def test_leftovers_of_a_kill_are_swept_by_the_next_save(tmp_path: Path) -> None:
    folder = save(tmp_path / "p", "old")
    leave(folder, "tmp", "half")
    leave(folder, "old", "older")
    mine = tmp_path / ".p.tmp-mine"
    mine.mkdir()
    others = leave(tmp_path / "q", "tmp", "of another bundle")
    save(folder, "new", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted([others.name, ".p.tmp-mine", "p"])


def test_a_bundle_that_a_kill_left_aside_comes_back(tmp_path: Path) -> None:
    leave(tmp_path / "p", "old", "old")
    assert content(tmp_path / "p") == "old"
    assert os.listdir(tmp_path) == ["p"]


def test_a_stage_of_a_living_process_is_left_alone(forks: Any, tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.append(sys.argv[2])\n"
        "from pathlib import Path; from tests_kind import KIND\n"
        "from spikeformer_lt.bundle import staged\n"
        "with staged(Path(sys.argv[1]), KIND) as stage:\n"
        "    print(stage.path.name, flush=True); time.sleep(60)\n"
    )
    (tmp_path / "tests_kind.py").write_text(
        "from spikeformer_lt.bundle import BundleKind\n"
        "from spikeformer_lt.errors import TicketError\n"
        "KIND = BundleKind('parcel', 'test.parcel', 2, 'parcel.json', TicketError)\n"
    )
    folder = tmp_path / "home" / "p"
    child = forks.start("-c", code, folder, tmp_path)
    name = child.readline().strip()
    recover(folder)
    assert os.listdir(folder.parent) == [name]
    child.kill()
    child.communicate()
    recover(folder)
    assert os.listdir(folder.parent) == []


def test_a_changed_file_is_refused_by_name_with_what_it_is_now(tmp_path: Path) -> None:
    with staged(tmp_path / "p", KIND) as stage:
        stage.write_tensors("t.safetensors", {"w": torch.ones(3)}, {})
        stage.seal({})
    found = open_bundle(tmp_path / "p", KIND)
    assert found.tensors("t.safetensors")[0]["w"].tolist() == [1, 1, 1]
    file = tmp_path / "p" / "t.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TicketError, match=r"t.safetensors changed since the parcel .*truncated"):
        found.read("t.safetensors")
    with pytest.raises(TicketError, match="cannot read b.txt: No such file"):
        found.read("b.txt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"note": "other"}, "was edited: its checksum differs"),
        ({"format_version": 3}, "found parcel format v3, supports <= v2"),
        ({"format_version": "2"}, "damaged"),
        ({"format": "other"}, "not of a parcel"),
    ],
)
def test_an_edited_manifest_is_refused(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    file = save(tmp_path / "p") / "parcel.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(TicketError, match=words):
        open_bundle(tmp_path / "p", KIND)


def test_one_that_is_replaced_while_it_is_read_is_not_called_damaged(tmp_path: Path) -> None:
    found = open_bundle(save(tmp_path / "p", "old"), KIND)
    save(tmp_path / "p", "new", overwrite=True)
    with pytest.raises(TicketError, match="p': another one took its place while it was read"):
        found.read("a.txt")


def test_a_value_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TicketError, match="the parcel's note cannot be stored"):  # noqa: SIM117
        with staged(tmp_path / "p", KIND) as stage:
            stage.seal({"note": object()})
    assert os.listdir(tmp_path) == []


def test_a_tensor_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    stage = Stage(tmp_path, KIND)
    with pytest.raises(CheckpointError, match="'w' is no dense tensor"):
        stage.write_tensors("t.safetensors", {"w": torch.eye(2).to_sparse()}, {})


def test_a_small_file_is_read_without_numpy(tmp_path: Path) -> None:
    """The console reads records before it knows whether anything needs arrays."""
    (tmp_path / "a.json").write_text("{}")
    line = "import sys; from spikeformer_lt.disk import read_regular; "
    line += "print(read_regular(sys.argv[1], 10), 'numpy' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-P", "-c", line, str(tmp_path / "a.json")], capture_output=True, text=True
    )
    assert said.stdout.split() == ["b'{}'", "False"], said.stderr
