"""Runs of published rows, finished without training; folders that tests import from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from spikeformer_lt.config import run_id, save_config
from spikeformer_lt.training.jobs import Job

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from papers.finished import OWN, expected_config

IMAGES = 400


def finish(job: Job, right: int, folder: Path | None = None, **changed: Any) -> Path:
    """Write the files of a run that classified `right` of 400 test images rightly."""
    path, *options = job.command
    cfg = expected_config(Path(path), options)
    folder = folder or job.folder
    folder.mkdir(parents=True)
    save_config(cfg, folder / "config.json")
    accuracy = 100 * right / IMAGES
    own = [name for name in OWN if hasattr(cfg, name)]
    report = {
        "run_id": run_id(cfg, f"{cfg.model.name}-{cfg.data.name}", own),
        "seed": job.seed,
        "dataset": cfg.data.name,
        "test_accuracy": accuracy,
        "test_count": IMAGES,
        "accuracy_at_t": [1.0, accuracy],
        "confusion": [[right, IMAGES - right], [0, 0]],
        "seconds": 2.0,
        **changed,
    }
    (folder / "report.json").write_text(json.dumps(report))
    env = {"command": f"{path} --x 1", "git_commit": "0123456789abcdef", "git_clean": True}
    env |= {"cpu": "a processor", "threads": 1, "gpus": []}
    (folder / "env.json").write_text(json.dumps(env))
    (folder / "summary.csv").write_text("phase,epoch\na,1\na,2\n")
    return folder


@pytest.fixture
def finish_row():
    """Writes a finished run of a published row, without training it."""
    return finish
