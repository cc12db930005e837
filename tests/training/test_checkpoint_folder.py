from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from spikeformer_lt.errors import CheckpointError, NonFiniteError
from spikeformer_lt.training.checkpoint import read_checkpoint, write_checkpoint


def made(folder: Path, number: int = 4) -> Path:
    write_checkpoint(folder, number, {"model": {"w": torch.arange(3.0)}}, {"epoch": 1})
    return folder


def rewrite(folder: Path, **changes: object) -> None:
    """Change the manifest as a program would that knows how to seal it."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text()) | changes
    body.pop("seal")
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**body, "seal": seal}))


def test_the_manifest_has_size_and_sha256_of_every_other_file(tmp_path):
    folder = made(tmp_path / "c")
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert manifest["files"].keys() == files == {"model.safetensors", "state.json"}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert manifest["format_version"] == 1
    assert manifest["number"] == 4


def test_a_newer_format_is_refused_with_both_versions(tmp_path):
    folder = made(tmp_path / "c")
    rewrite(folder, format_version=3)
    with pytest.raises(CheckpointError, match="format v3, supports <= v1; install a newer"):
        read_checkpoint(folder, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "theirs"}, "is not of a checkpoint"),
        ({"format_version": "1"}, "damaged"),
        ({"number": 5}, "of checkpoint 5, not 4"),
        ({"files": []}, "lists no files"),
        ({"files": {"state.json": 3}}, "odd entry 'state.json'"),
        ({"files": {"state.json": {"size": 1, "sha256": "0"}}}, "14 bytes there, 1 were written"),
        (
            {"files": {"state.json": {"size": 14, "sha256": "0"}}},
            "state.json changed since the checkpoint was saved",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, changes, message):
    folder = made(tmp_path / "c")
    (folder / "state.json").write_text('{"epoch": 123}'[:14])
    rewrite(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder, 4)


def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path):
    folder = made(tmp_path / "c")
    entry = {"size": 1, "sha256": "0"}
    for name in ("../x.safetensors", "/etc/passwd", ".."):
        rewrite(folder, files={"state.json": entry, name: entry})
        with pytest.raises(CheckpointError, match="odd entry"):
            read_checkpoint(folder, 4)


def test_files_that_the_system_drops_into_the_folder_do_no_harm(tmp_path):
    folder = made(tmp_path / "c")
    (folder / ".DS_Store").write_bytes(b"x")
    assert read_checkpoint(folder, 4).state == {"epoch": 1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_named_before_anything_is_written(tmp_path, bad):
    value = torch.zeros(4, 4, dtype=torch.bfloat16)
    value[1, :2] = bad
    with pytest.raises(NonFiniteError, match=r"ema tensor 'bn\.var' has 2 non-finite values of 16"):
        write_checkpoint(tmp_path / "c", 1, {"ema": {"bn.var": value}}, {})
    assert not (tmp_path / "c").exists()
