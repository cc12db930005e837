"""ImageNet's recipe on a small set of its layout: checked, trained, killed and resumed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spikeformer_lt import Ticket

pytestmark = pytest.mark.recipe
SMALL = shlex.split(
    "--data.image-size 32 --model.name spikformer_toy --model.T 2 --train.batch-size 16 "
    "--train.workers 2 --train.cpu --train.mixed-precision no --train.optim.lr 0.003"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    """Pictures of eight classes: 320 of 356 to train on, 40 to test."""
    home = tmp_path_factory.mktemp("pictures") / "imagenet"
    draw = np.random.default_rng(0)
    for part, count in (("train", 45), ("val", 5)):
        for label in range(8):
            folder = home / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.kron(draw.integers(0, 256, (5, 6, 3)), np.ones((20, 20, 1)))
                pixels[:, :, label % 3] *= label / 8
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.JPEG")
    return home.parent


def test_a_dry_run_looks_at_the_set_and_the_network(recipes: Any, root: Path) -> None:
    ended = recipes.run("multisp_imagenet", "--data.root", root, *SMALL, "--dry-run", cwd=root)
    assert ended.code == 0, ended.err
    assert "on imagenet (320 train, 40 val, 40 test)" in ended.out
    assert not (root / "runs").exists()
    away = recipes.run("multisp_imagenet", "--data.root", root / "imagenet" / "val", "--dry-run")
    assert "imagenet is not in" in away.error


@pytest.mark.slow
def test_its_defaults_are_in_order(recipes: Any, root: Path) -> None:
    ended = recipes.run("multisp_imagenet", "--data.root", root, "--train.cpu", "--dry-run")
    assert ended.code == 0, ended.err
    count = 29_689_384 - 992 * 513  # the paper's 29.68 M, with 8 classes instead of 1,000
    assert f"spikformer_imagenet_8_512 of {count:,} " in ended.out and "T 4" in ended.out


@pytest.mark.slow
def test_twenty_steps_a_validation_a_kill_and_a_resume(
    recipes: Any, root: Path, tmp_path: Path
) -> None:
    options = ("--data.root", root, *SMALL, "--multisp.epochs", "1", "--train.checkpoint-steps", 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = recipes.run("multisp_imagenet", *options, "--run.out", whole)
    assert ended.code == 0, ended.err
    resumed = (*options, "--run.out", killed, "--run.resume", "auto")
    pid = recipes.start("multisp_imagenet", *resumed)
    until = time.monotonic() + 200
    while not (killed / "last" / "LATEST").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert recipes.wait().code != 0 and not (killed / "report.json").exists()
    ended = recipes.run("multisp_imagenet", *resumed)
    assert ended.code == 0 and "resumed joint at epoch 1 step" in ended.err, ended.err
    one, other = (Ticket.load(out / "ticket") for out in (whole, killed))
    assert all(bool((one.tensors[name] == other.tensors[name]).all()) for name in one.tensors)
    report = json.loads((killed / "report.json").read_text())
    assert report["test_count"] == 40
    assert (
        report["test_accuracy"] == json.loads((whole / "report.json").read_text())["test_accuracy"]
    )
    assert (whole / "summary.csv").read_text() == (killed / "summary.csv").read_text()
