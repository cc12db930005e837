"""The recipes that find a ticket, as a user runs them; one of them killed amid its rounds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from spikeformer_lt.reports.energy import measure_energy
from spikeformer_lt.reports.finished import open_run
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.surgery import model_from_ticket

pytestmark = pytest.mark.recipe

SMALL = shlex.split(
    "--data.name digits --data.limit-train 64 --data.limit-test 40 --data.image-size 16 "
    "--model.name spikformer_toy --model.embed-dim 16 --model.T 3 --train.cpu "
    "--train.batch-size 16 --run.resume auto"
)
RUNS = {
    "imp_cifar": "--imp.epochs 2 --imp.rounds 3 --epochs 1 --imp.rewind 3it",
    "early_bird_cifar": "--early-bird.epochs 2 --early-bird.sparsity 0.8 --epochs 1",
    "early_time_cifar": "--search early_bird --early-bird.epochs 1 --early-time.epochs 1 "
    "--early-bird.sparsity 0.8 --epochs 1",
    "edge_popup_cifar": "--edge-popup.epochs 1 --edge-popup.sparsity 0.8",
    "biprop_cifar": "--biprop.epochs 1 --biprop.sparsity 0.8 --biprop.scope global",
    "sparse_training_cifar": "--method granet --sparsity 0.8 --epochs 2 --every 2",
}


@pytest.mark.parametrize("recipe", RUNS)
def test_a_recipe_leaves_a_ticket_and_a_report(recipes: Any, tmp_path: Path, recipe: str) -> None:
    ended = recipes.run(recipe, *SMALL, *shlex.split(RUNS[recipe]), "--run.out", tmp_path / "run")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    ticket = Ticket.load(tmp_path / "run" / "ticket")
    assert report["mask_sha256"] == ticket.mask.sha256
    told = recipes.run("evaluate", "--run", tmp_path / "run", "--cpu")
    assert f"test: {report['test_accuracy']:.2f} % of 40" in told.out, told.err
    assert "NOTICE" not in told.out
    if not ticket.provenance["trained"]:
        told = recipes.run("evaluate", "--run", tmp_path / "run" / "ticket", "--cpu")
        assert "NOTICE: this ticket holds its start weights" in told.out, told.err
    assert report["ticket"]["prunable_sparsity"] == ticket.mask.sparsity
    target = 1 - 0.75**3 if recipe == "imp_cifar" else 0.8
    assert abs(ticket.mask.sparsity - target) < 1e-3
    assert abs(report["sparsity"]["total_weight"] - target) < 0.02  # what was trained is sparse
    assert report["test_count"] == 40 and report["ticket"]["search_seconds"] > 0
    # A page of the run measures the network that the report is of, not its start weights.
    opened = open_run(tmp_path / "run", model_from_ticket)
    assert not opened.untrained
    energy = measure_energy(opened.model, opened.batches("test", 40), opened.model.T)
    assert energy.total("sops") == report["sops"]


def test_patches_and_encoder_weights_go_together_into_one_ledger(
    recipes: Any, tmp_path: Path
) -> None:
    options = "--patches.sparsity 0.5 --imp.epochs 1 --imp.rounds 2 --imp.rewind 1it --epochs 1"
    out = tmp_path / "run"
    ended = recipes.run("imp_cifar", *SMALL, *shlex.split(options), "--run.out", out)
    assert ended.code == 0, ended.err
    report, ticket = json.loads((out / "report.json").read_text()), Ticket.load(out / "ticket")
    assert ticket.provenance["search"] == "joint"
    assert all(name.startswith("blocks.") for name in ticket.mask)
    ledger = report["ticket"]["ledger"]
    assert ledger["weight"] == ticket.mask.sparsity
    assert abs(ticket.mask.sparsity - (1 - 0.75**2)) < 1e-3
    assert report["sparsity"]["patch"] == ledger["patch"] == 0.5
    assert 0.1 < ledger["total_weight"] < report["ticket"]["prunable_sparsity"]
    told = recipes.run("evaluate", "--run", out, "--cpu")
    assert f"test: {report['test_accuracy']:.2f} % of 40" in told.out, told.err
    assert "50.0 % of patches" in told.out


@pytest.mark.parametrize(
    "name", [pytest.param("spiking_vgg_toy", marks=pytest.mark.slow), "spikformer_dvs_toy"]
)
def test_event_frames_are_pruned_by_the_same_recipe(
    recipes: Any, tmp_path: Path, name: str
) -> None:
    options = shlex.split(
        "--data.name moving_digits --data.limit-train 40 --data.limit-test 20 --data.image-size 16 "
        f"--model.name {name} --model.T 2 --train.cpu --train.batch-size 16 --epochs 1 "
        "--imp.epochs 1 --imp.rounds 2 --imp.rewind 1it"
    )
    ended = recipes.run("imp_cifar", *options, "--run.out", tmp_path / "run")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["dataset"] == "moving_digits" and report["test_count"] == 20
    assert abs(report["ticket"]["prunable_sparsity"] - (1 - 0.75**2)) < 1e-3
    told = recipes.run("evaluate", "--run", tmp_path / "run", "--cpu")
    assert f"test: {report['test_accuracy']:.2f} % of 20" in told.out, told.err


def test_weights_of_a_relu_cnn_start_a_spiking_one(recipes: Any, tmp_path: Path) -> None:
    options = shlex.split(
        "--data.name digits --data.limit-train 64 --data.limit-test 40 --data.image-size 8 "
        "--model.name spiking_vgg_toy --model.T 2 --train.cpu --train.batch-size 16 --epochs 1 "
        "--imp.epochs 1 --imp.rounds 2 --imp.rewind 1it"
    )
    plain, spiking = tmp_path / "relu", tmp_path / "lif"
    ended = recipes.run("imp_cifar", *options, "--model.neuron", "relu", "--run.out", plain)
    assert ended.code == 0, ended.err
    ended = recipes.run("imp_cifar", *options, "--model.init-from", plain, "--run.out", spiking)
    assert ended.code == 0, ended.err
    reports = [json.loads((run / "report.json").read_text()) for run in (plain, spiking)]
    assert reports[0]["firing_rate"] == {} and len(reports[1]["firing_rate"]) == 4
    assert reports[0]["sops"] == 0 < reports[1]["sops"]
    for report in reports:
        assert report["sparsity"]["conv_pep_weight"] is None
        assert abs(report["ticket"]["prunable_sparsity"] - (1 - 0.75**2)) < 1e-3


def test_two_of_every_four_weights_stay(recipes: Any, tmp_path: Path) -> None:
    options = ["--method", "nm", "--sparsity", "0.5", "--epochs", "1"]
    ended = recipes.run("sparse_training_cifar", *SMALL, *options, "--run.out", tmp_path / "run")
    assert ended.code == 0, ended.err
    ticket = Ticket.load(tmp_path / "run" / "trained")
    for kept in ticket.mask.values():
        assert bool((kept.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all())


BEFORE_TRAINING = ("random", "magnitude", "grasp", "synflow")


@pytest.mark.parametrize(
    "method",
    [
        *("erk", "snip"),
        # The contract of searches runs the others without a command line.
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("random", "magnitude", "grasp", "synflow")
        ),
    ],
)
def test_masks_from_before_training_are_kept_through_it(
    recipes: Any, tmp_path: Path, method: str
) -> None:
    options = f"--method {method} --sparsity 0.7 --epochs 1"
    out = tmp_path / "run"
    ended = recipes.run("sparse_training_cifar", *SMALL, *options.split(), "--run.out", out)
    assert ended.code == 0, ended.err
    report = json.loads((out / "report.json").read_text())
    assert report["sparsity"]["total_weight"] == pytest.approx(0.7, abs=1e-3)


@pytest.mark.slow
def test_imp_killed_at_any_moment_ends_with_the_same_mask(recipes: Any, tmp_path: Path) -> None:
    line = shlex.split(RUNS["imp_cifar"])
    line += ["--train.checkpoint-steps", "1", "--train.optim.opt", "momentum"]
    hashes, kills = [], 0
    begun = time.monotonic()
    ended = recipes.run("imp_cifar", *SMALL, *line, "--run.out", tmp_path / "whole")
    length = time.monotonic() - begun
    assert ended.code == 0, ended.err
    out = tmp_path / "killed"
    for share in (0.3, 0.45, 0.6, 0.75):
        pid = recipes.start("imp_cifar", *SMALL, *line, "--run.out", out)
        time.sleep(share * length)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        kills += recipes.wait().code == -signal.SIGKILL
    ended = recipes.run("imp_cifar", *SMALL, *line, "--run.out", out)
    assert ended.code == 0, ended.err
    for folder in (tmp_path / "whole", out):
        hashes.append(Ticket.load(folder / "ticket").mask.sha256)
        hashes.append(json.loads((folder / "report.json").read_text())["test_accuracy"])
    assert kills >= 1
    assert hashes[:2] == hashes[2:]


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("sparse_training_cifar", "--method prune", "method='prune' .*set, rigl, granet"),
        ("sparse_training_cifar", "--method nm --sparsity 0.6", "sparsity=0.6 .*0.25, 0.5"),
        ("early_time_cifar", "--search snip", "search='snip' .*imp, early_bird"),
        ("imp_cifar", "--preset iclr21", "preset='iclr21' .*eccv22"),
        ("biprop_cifar", "--preset eccv22", "preset='eccv22' .*iclr21, iclr21-global"),
        ("imp_cifar", "--imp.rewind late", "--imp.rewind='late' is not allowed: write epochs"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    recipes: Any, tmp_path: Path, recipe: str, options: str, words: str
) -> None:
    ended = recipes.run(recipe, *SMALL, *options.split(), "--run.out", tmp_path / "run")
    assert re.search(words, ended.error)
