"""recipes/transfer_cifar.py, as a user runs it: tickets that move."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from spikeformer_lt import Mask, Ticket, create_model
from spikeformer_lt.tickets import PruneConfig, magnitudes

pytestmark = pytest.mark.recipe
SMALL = shlex.split(
    "--data.name digits --data.limit-train 64 --data.limit-test 40 --train.cpu "
    "--train.batch-size 16 --epochs 1"
)
ARGS = {"image_size": 16, "T": 3, "num_classes": 10, "in_channels": 3, "neuron": "relu"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a ReLU network: its ticket, and another network that was trained from it."""
    model = create_model("spiking_vgg_toy", **ARGS)
    mask = Mask.from_scores(magnitudes(PruneConfig().weights(model)), 0.8)
    known = {"model": {"name": "spiking_vgg_toy", "args": ARGS}, "dataset": "other"}
    Ticket.of(model, mask, {**known, "trained": False}).save(tmp_path / "run" / "ticket")
    later = create_model("spiking_vgg_toy", **ARGS)
    Ticket.of(later, mask, {**known, "trained": True}).save(tmp_path / "run" / "trained")
    return tmp_path / "run"


def moved(recipes: Any, run: Path, *options: str) -> tuple[Ticket, Ticket, dict]:
    out = run.parent / "moved"
    ended = recipes.run("transfer_cifar", *SMALL, "--ticket", run, "--run.out", out, *options)
    assert ended.code == 0, ended.err
    report = json.loads((out / "report.json").read_text())
    return Ticket.load(out / "ticket"), Ticket.load(out / "trained"), report


def test_a_relu_ticket_becomes_a_spiking_one_with_another_t_on_other_data(
    recipes: Any, run: Path
) -> None:
    source = Ticket.load(run / "ticket")
    options = shlex.split("--data.image-size 16 --model.neuron lif --model.T 2 --norm estimate")
    start, trained, report = moved(recipes, run, *options)
    assert start.mask == trained.mask == source.mask
    about = start.provenance
    assert about["model"]["name"] == "spiking_vgg_toy" and about["model"]["args"]["T"] == 2
    assert about["dataset"] == "digits"
    assert about["transfer"]["changed"] == {"T": 2, "neuron": "lif"}
    assert 16 <= about["transfer"]["images"] <= 64
    for name, value in source.tensors.items():
        measured = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert (start.tensors[name] == value).all() != measured or not measured, name
    moving = [n for n in source.mask if (start.tensors[n] != trained.tensors[n]).any()]
    assert moving  # it trains
    for name, kept in trained.mask.items():
        assert not trained.tensors[name][~kept].any()
    assert report["firing_rate"] and report["test_count"] == 40


def test_a_fresh_head_serves_other_classes(recipes: Any, run: Path) -> None:
    options = ("--data.image-size", "8", "--fresh", "head", "--control", "random")
    start, _, report = moved(recipes, run, *options)
    assert start.mask["layers.0.conv.weight"].shape and start.provenance["control"] == "random"
    assert report["ticket"]["control"] == "random"
    assert "head.weight" not in start.mask and start.mask.sparsity > 0.6
    assert report["firing_rate"] == {}  # still without spikes: the ticket's own neuron
    assert start.provenance["model"]["args"]["image_size"] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "--ticket is missing: a run directory or"),
        ("--ticket nowhere", "--ticket='nowhere': there is no such folder"),
        ("--ticket RUN --norm new", "norm='new' "),
        ("--ticket RUN --control new", "control='new' "),
    ],
)
def test_a_bad_option_is_one_clear_line(recipes: Any, run: Path, options, words) -> None:
    given = [str(run) if o == "RUN" else o for o in options.split()]
    out = ("--data.image-size", "16", "--run.out", run.parent / "out")
    assert words in recipes.run("transfer_cifar", *SMALL, *given, *out).error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--fresh heat", "error: --fresh='heat' is not allowed"),
        ("--model.name spiking_vgg9 --model.neuron lif", "error: the ticket is not of this model"),
    ],
)
def test_a_network_that_does_not_fit_ends_in_one_clear_line(
    recipes: Any, run: Path, options: str, words: str
) -> None:
    given = ("--ticket", run, *options.split(), "--data.image-size", "16")
    ended = recipes.run("transfer_cifar", *SMALL, *given, "--run.out", run.parent / "out")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith(words)
