"""The main recipe, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spikeformer_lt import Ticket

ROOT = Path(__file__).parents[2]
TINY = [
    "--data.name",
    "digits",
    "--data.image-size",
    "16",
    "--data.limit-train",
    "64",
    "--data.limit-test",
    "40",
    "--model.name",
    "spikformer_toy",
    "--model.embed-dim",
    "16",
    "--model.T",
    "2",
    "--train.batch-size",
    "16",
    "--train.cpu",
    "--multisp.epochs",
    "1",
    "--multisp.stem-epochs",
    "1",
]
LAUNCH = [
    "-P",
    "-m",
    "accelerate.commands.launch",
    "--num_processes",
    "1",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


def run(recipe: str, *options: str, launch: bool = False) -> subprocess.CompletedProcess[str]:
    how = LAUNCH if launch else []
    command = [sys.executable, *how, str(ROOT / "recipes" / recipe), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("recipe") / "run"
    done = run("multisp_cifar.py", *TINY, "--run.out", str(out), launch=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.recipe
def test_a_launched_run_leaves_everything_that_was_promised(finished):
    report = json.loads((finished / "report.json").read_text())
    promised = [
        "test_accuracy",
        "val_accuracy",
        "test_count",
        "seed",
        "dataset",
        "split_sha256",
        "sparsity",
        "conv_pep_bits_per_weight",
        "firing_rate",
        "macs",
        "sops",
        "params",
        "run_id",
        "versions",
    ]
    assert not [name for name in promised if name not in report]
    assert set(report["sparsity"]) == {"patch", "conv_pep_weight", "total_weight"}
    assert report["sparsity"]["conv_pep_weight"] == 0.5
    assert report["test_count"] == 40
    for name in ("config.json", "env.json", "log.txt", "summary.csv", "plots/training.png"):
        assert (finished / name).exists(), name
    mask = Ticket.load(finished / "ticket").mask
    assert mask.sha256 == report["mask_sha256"]
    assert not list(finished.rglob("*.pkl")) + list(finished.rglob("*.pt"))


@pytest.mark.recipe
def test_evaluate_repeats_the_reports_accuracy(finished, tmp_path):
    out = tmp_path / "again.json"
    done = run("evaluate.py", "--run", str(finished), "--cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((finished / "report.json").read_text())
    again = json.loads(out.read_text())
    assert again["accuracy"] == report["test_accuracy"]
    assert again["sparsity"] == report["sparsity"]


@pytest.mark.recipe
def test_a_second_run_into_the_same_place_and_a_bad_value_are_one_line_errors(finished):
    for options, word in (
        (["--run.out", str(finished)], "resume"),
        (["--multisp.weights.sparsity", "1.5"], "weights.sparsity"),
        (["--multisp.wieghts.sparsity", "0.5"], "did you mean"),
    ):
        done = run("multisp_cifar.py", *TINY, *options)
        assert done.returncode == 2, (options, done.stderr)
        assert word in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.recipe
def test_missing_cifar_says_what_to_put_where():
    done = run("multisp_cifar.py", "--data.name", "cifar10", "--data.root", "/nonexistent")
    assert done.returncode == 2
    assert "c58f30108f718f92721af3b95e74349a" in done.stderr
    assert "--data.name digits" in done.stderr


@pytest.mark.recipe
def test_a_finished_run_resumes_into_the_same_report(finished):
    before = json.loads((finished / "report.json").read_text())
    done = run("multisp_cifar.py", *TINY, "--run.out", str(finished), "--run.resume", "auto")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((finished / "report.json").read_text()) == before


@pytest.mark.recipe
@pytest.mark.parametrize("recipe", ["multisp_cifar.py", "multisp_compare.py", "evaluate.py"])
def test_help_names_every_option(recipe):
    done = run(recipe, "--help")
    assert done.returncode == 0
    assert "default" in done.stdout
    assert len(done.stdout) > 500
