from __future__ import annotations

import builtins
import errno
import logging
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest
import torch

from spikeformer_lt.errors import CheckpointError, ConfigError, NonFiniteError
from spikeformer_lt.training import checkpoint
from spikeformer_lt.training.checkpoint import CheckpointStore, read_checkpoint

OPEN = open
LOG = "spikeformer_lt.training.checkpoint"


def content(number: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(number)
    return {
        "model": {"w": torch.randn(5, 3, generator=generator), "n": torch.tensor(number)},
        "optimizer": {"state.0.exp_avg": torch.randn(5, 3, generator=generator)},
    }


def fill(folder: Path, *numbers: int, keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(folder, keep=keep)
    for number in numbers:
        store.save(number, content(number), {"epoch": number})
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_holds(found, number: int) -> None:
    assert found is not None
    assert found.number == number == found.state["epoch"]
    expected = content(number)
    assert found.tensors.keys() == expected.keys()
    for group, members in expected.items():
        assert found.tensors[group].keys() == members.keys()
        for name, value in members.items():
            assert found.tensors[group][name].dtype == value.dtype
            assert torch.equal(found.tensors[group][name], value)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    store = CheckpointStore(tmp_path / "new" / "folder")
    odd = {
        "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "strided": torch.arange(12.0).reshape(3, 4).t(),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        "a/b c\n": torch.ones(1),
    }
    state = {"rng": [1, 2**70], "best": None, "nested": {"lr": 0.1, "name": "é\n"}, "t": (1, 2)}
    path = store.save(3, {"model": odd, "ema": {}}, state)
    found = CheckpointStore(store.folder).load()
    assert path == found.path
    assert path.name == "ckpt-00000003"
    assert found.state == {**state, "t": [1, 2]}
    assert found.tensors["ema"] == {}
    for name, value in odd.items():
        back = found.tensors["model"][name]
        assert back.dtype == value.dtype
        assert back.shape == value.shape
        assert torch.equal(back, value)
    assert torch.signbit(found.tensors["model"]["half"][1])


def test_nothing_saved_is_none_and_no_folder_is_made(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    assert store.load() is None
    assert store.next_number() == 0
    assert not store.folder.exists()


def test_only_keep_checkpoints_stay_and_the_newest_is_loaded(tmp_path):
    store = fill(tmp_path, 1, 5, 9)
    assert names(tmp_path) == ["LATEST", "ckpt-00000005", "ckpt-00000009"]
    assert (tmp_path / "LATEST").read_text() == "ckpt-00000009\n"
    assert store.next_number() == 10
    assert_holds(store.load(), 9)
    assert_holds(read_checkpoint(tmp_path / "ckpt-00000005", 5), 5)
    fill(tmp_path / "one", 1, 2, keep=1)
    assert names(tmp_path / "one") == ["LATEST", "ckpt-00000002"]


@pytest.mark.fault(1)
def test_a_stage_left_by_a_kill_is_ignored_and_swept_by_the_next_save(tmp_path):
    store = fill(tmp_path, 1)
    stage = tmp_path / "ckpt-00000002.tmp-4711"
    shutil.copytree(tmp_path / "ckpt-00000001", stage)
    trash = tmp_path / "ckpt-00000000.tmp-4711"
    trash.mkdir()
    shutil.copytree(tmp_path / "ckpt-00000001", tmp_path / ".ckpt-00000003.tmp-0123456789ab")
    torn = tmp_path / ".LATEST.tmp-0123456789ab"
    torn.write_text("ckpt-00")
    kept = tmp_path / "notes.tmp"
    kept.write_text("mine")
    assert_holds(store.load(), 1)
    assert stage.exists()
    store.save(2, content(2), {"epoch": 2})
    assert names(tmp_path) == ["LATEST", "ckpt-00000001", "ckpt-00000002", "notes.tmp"]


def test_a_kill_between_publishing_and_latest_goes_on_from_what_was_published(tmp_path):
    store = fill(tmp_path, 1, 2)
    (tmp_path / "LATEST").write_text("ckpt-00000001\n")
    assert_holds(store.load(), 2)
    store.save(3, content(3), {"epoch": 3})
    assert names(tmp_path) == ["LATEST", "ckpt-00000002", "ckpt-00000003"]


def test_latest_that_is_missing_or_odd_costs_nothing(tmp_path, caplog):
    store = fill(tmp_path, 1, 2)
    (tmp_path / "LATEST").write_bytes(b"\xff../../etc/passwd")
    with caplog.at_level(logging.WARNING, LOG):
        assert_holds(store.load(), 2)
    assert "LATEST names" in caplog.text
    (tmp_path / "LATEST").unlink()
    assert_holds(store.load(), 2)


def test_latest_without_any_checkpoint_is_an_error_and_no_silent_fresh_start(tmp_path):
    store = fill(tmp_path, 1)
    shutil.rmtree(tmp_path / "ckpt-00000001")
    with pytest.raises(CheckpointError, match="LATEST names 'ckpt-00000001', which is not there"):
        store.load()


def test_what_is_begun_is_written_beside_the_training(tmp_path, monkeypatch):
    store, goes_on, write = (
        CheckpointStore(tmp_path),
        threading.Event(),
        checkpoint.write_checkpoint,
    )
    monkeypatch.setattr(
        checkpoint, "write_checkpoint", lambda *given: goes_on.wait(60) and write(*given)
    )
    weight, state = torch.ones(3), {"rows": [1]}
    store.begin({"model": {"w": weight}}, state)
    weight.add_(1)  # the training goes on while nothing is published yet
    state["rows"].append(2)
    assert not store._published()
    goes_on.set()
    found = store.load()
    assert found is not None and found.state["rows"] == [1]
    assert found.tensors["model"]["w"].tolist() == [1, 1, 1]
    store.begin({"model": {"w": weight}}, state)
    store.begin({"model": {"w": weight * torch.nan}}, state)  # after the one before
    assert [number for number, _, _ in store._published()] == [0, 1]
    with pytest.raises(NonFiniteError, match="not saved: model tensor"):
        store.wait()
    store.wait()
    assert store.load().number == 1


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


FAULTS = {
    "truncated": (damage_truncate, r"model\.safetensors.*truncated: \d+ bytes expected, \d+ bytes"),
    "one flipped bit": (damage_bit, r"tensor '[nw]' has sha256"),
    "no bytes": (lambda p: p.write_bytes(b""), "not a safetensors file but an empty file"),
    "a web page": (lambda p: p.write_bytes(b"<!doctype html><p>404"), "an HTML or XML page"),
    "a huge header": (lambda p: p.write_bytes(b"\xff" * 8 + b"{}"), "not a safetensors file"),
    "gone": (lambda p: p.unlink(), "cannot read .*No such file"),
    "of another checkpoint": (
        lambda p: shutil.copy(p.parents[1] / "ckpt-00000001" / p.name, p),
        "changed since the checkpoint was saved",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault(8)
def test_a_damaged_latest_falls_back_with_a_warning_that_says_why(tmp_path, caplog, fault):
    store = fill(tmp_path, 1, 2)
    damage, message = FAULTS[fault]
    damage(tmp_path / "ckpt-00000002" / "model.safetensors")
    with caplog.at_level(logging.WARNING, LOG):
        assert_holds(store.load(), 1)
    (record,) = caplog.records
    assert "skipped" in record.getMessage()
    assert "ckpt-00000002" in record.getMessage()
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "ckpt-00000002", 2)
    damage_truncate(tmp_path / "ckpt-00000001" / "state.json")
    with pytest.raises(CheckpointError, match=r"none of 2 checkpoints.*(?s:.)*state\.json"):
        store.load()


@pytest.mark.fault(11)
def test_a_pickle_in_a_checkpoint_is_named_and_never_run(tmp_path):
    store = fill(tmp_path, 1)
    witness = tmp_path / "ran"
    code = f"cos\nmkdir\n(V{witness}\ntR.".encode()
    for payload, kind in ((b"\x80\x04" + code, "a pickle"), (b"PK\x03\x04" + code, "zip archive")):
        (tmp_path / "ckpt-00000001" / "model.safetensors").write_bytes(payload)
        with pytest.raises(CheckpointError, match=f"{kind}.*recipes/convert.py"):
            store.load()
    assert not witness.exists()


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
@pytest.mark.fault(8)
def test_every_prefix_of_every_file_is_refused(tmp_path, caplog, name):
    store = CheckpointStore(tmp_path)
    for number in (1, 2):
        store.save(number, {"model": {"n": torch.tensor(number)}}, {"epoch": number})
    path = tmp_path / "ckpt-00000002" / name
    whole = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert store.load().number == 1, length
    path.write_bytes(whole)
    assert store.load().number == 2


def test_every_flipped_bit_of_the_manifest_is_noticed(tmp_path, caplog):
    store = fill(tmp_path, 1, 2)
    path = tmp_path / "ckpt-00000002" / "manifest.json"
    whole = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(bytes(data))
        found = store.load()
        # White space between the tokens may change into other white space.
        assert found.number == 1 or whole[place : place + 1].isspace(), place


@pytest.mark.fault(16)
def test_nan_is_not_published_and_the_last_good_one_stays(tmp_path):
    store = fill(tmp_path, 1)
    before = names(tmp_path)
    bad = content(2)
    bad["optimizer"]["state.0.exp_avg"][3, 1] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"optimizer tensor 'state.0.exp_avg' has 1 non-finite"
    ):
        store.save(2, bad, {"epoch": 2})
    assert names(tmp_path) == before
    assert_holds(store.load(), 1)


class FullDisk:
    """Stands in for `open`: the write number `allowed`, and all after it, find no room."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __call__(self, path, mode="r", *rest, **more):
        file = OPEN(path, mode, *rest, **more)
        if "r" in mode:
            return file
        write = file.write

        def limited(data: bytes) -> int:
            self.allowed -= 1
            if self.allowed < 0:
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(data)

        wrapper = type("File", (), {"write": staticmethod(limited), "flush": file.flush})
        wrapper.fileno = file.fileno
        wrapper.__enter__ = lambda self: self
        wrapper.__exit__ = lambda self, *error: file.close()
        return wrapper()


@pytest.mark.fault(3)
def test_a_disk_that_is_full_at_any_write_leaves_the_old_one_intact(tmp_path, monkeypatch):
    for allowed in range(20):
        folder = tmp_path / str(allowed)
        store = fill(folder, 1)
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", FullDisk(allowed))
            try:
                store.save(2, content(2), {"epoch": 2})
            except CheckpointError as fault:
                message = str(fault)
            else:
                break
        assert str(folder) in message
        assert "No space left on device; 128 bytes needed" in message
        assert f"{shutil.disk_usage(folder).free // 10**10}" in message.split("needed, ")[1]
        assert not [name for name in names(folder) if ".tmp" in name]
        assert_holds(store.load(), 1 if allowed < 4 else 2)  # LATEST is written last
        store.save(3, content(3), {"epoch": 3})
        assert_holds(store.load(), 3)
    assert allowed == 5, "model, optimizer, state, manifest and LATEST are five writes"


@pytest.mark.fault(3)
def test_a_limit_of_the_system_on_file_sizes_is_reported_like_a_full_disk(tmp_path):
    store = fill(tmp_path, 1)
    big = {"model": {"w": torch.zeros(100_000)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large; 400000 bytes needed, \d+ free"):
            store.save(2, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["LATEST", "ckpt-00000001"]
    assert_holds(store.load(), 1)


def test_a_file_in_the_place_of_the_folder_is_an_error_with_its_path(tmp_path):
    (tmp_path / "last").write_text("mine")
    store = CheckpointStore(tmp_path / "last")
    with pytest.raises(CheckpointError, match="last.*File exists"):
        store.save(1, content(1), {})
    with pytest.raises(CheckpointError, match="cannot read .*last"):
        store.load()
    assert (tmp_path / "last").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_an_error_with_its_path(tmp_path, monkeypatch):
    store = fill(tmp_path, 1)

    def refuse(self: Path, *rest: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(CheckpointError, match=f"{tmp_path}.*Permission denied"):
            store.save(2, content(2), {})
    assert_holds(store.load(), 1)


@pytest.mark.fault(2)
def test_an_old_one_that_cannot_be_deleted_is_a_warning_only(tmp_path, monkeypatch, caplog):
    store = fill(tmp_path, 1, keep=1)
    replace = os.replace

    def stubborn(source, target):
        if Path(source).name == "ckpt-00000001":
            raise OSError(errno.EBUSY, "busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", stubborn)
    store.save(2, content(2), {"epoch": 2})
    assert "cannot delete the old checkpoint" in caplog.text
    assert_holds(store.load(), 2)


@pytest.mark.parametrize(
    ("tensors", "state", "message"),
    [
        ({"a/b": {}}, {}, "group 'a/b' cannot be a file name"),
        ({"Model": {}}, {}, "lower-case"),
        ({}, {"lr": float("inf")}, r"state\.lr is inf"),
        ({}, {"rng": {1: 2}}, "keys must be text"),
        ({}, {"x": [0, object()]}, r"state\.x\[1\] is <object"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_no_trace(tmp_path, tensors, state, message):
    store = fill(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        store.save(2, tensors, state)
    assert names(tmp_path) == ["LATEST", "ckpt-00000001"]


def test_odd_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep=0"):
        CheckpointStore(tmp_path, keep=0)
    for number in (-1, 3):
        with pytest.raises(ConfigError, match=f"number={number} .*from"):
            fill(tmp_path / str(number), 3).save(number, {}, {})
