"""A comparison runs its suite, resumes, and writes one table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = (
    "--data.image-size 16 --data.limit-train 64 --data.limit-test 40 --model.name spikformer_toy "
    "--model.embed-dim 16 --model.T 2 --train.batch-size 16 --train.cpu --multisp.epochs 1"
)


def compare(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes/multisp_compare.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.recipe
def test_the_demo_suite_makes_its_table_and_resumes(tmp_path):
    options = ["--suite", "demo", "--jobs", "2", "--out", str(tmp_path), f"--options={TINY}"]
    done = compare(*options)
    assert done.returncode == 0, done.stderr[-3000:]
    table = (tmp_path / "comparison.md").read_text()
    for row in ("dense", "MultiSp", "random control"):
        assert row in table
    assert (tmp_path / "comparison.csv").exists()
    again = compare(*options)
    assert again.returncode == 0
    assert "3 runs, 3 of them finished before" in again.stderr
    assert (tmp_path / "comparison.md").read_text() == table


@pytest.mark.recipe
def test_an_unknown_suite_is_refused():
    done = compare("--suite", "everything")
    assert done.returncode == 2
    assert "ablation" in done.stderr
