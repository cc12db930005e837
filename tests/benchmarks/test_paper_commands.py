"""The command of every published row, at every scale, is one that its recipe takes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from papers.commands import BINARY, NO_ANN, SCALES, command_of
from papers.finished import expected_config
from papers.tables import TABLES, Cell

from spikeformer_lt.config import differences
from spikeformer_lt.registry import create_model, list_datasets
from spikeformer_lt.tickets import EarlyBird, Imp
from spikeformer_lt.tickets.imp import schedule

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# The comparison of ticket searches on 5,000 CIFAR-10 images, whose runs stand for reduced rows.
COMPARED = (
    "--data.name cifar10 --data.limit-train 5000 --data.augment none --data.mixup 0 "
    "--data.smoothing 0.1 --model.name spiking_vgg_toy --model.T 5 --train.batch-size 50 "
    "--train.optim.lr 3e-3 --train.optim.weight-decay 0.02 --train.optim.min-lr 1e-5 "
    "--train.optim.warmup-epochs 1"
)
IMP = "--epochs 8 --imp.epochs 8 --imp.fraction 0.5 --imp.rewind 1ep"


def cell_of(name: str) -> Cell:
    return next(c for t in TABLES.values() for c in t.cells if c.name == name)


@cache
def parsed(command: tuple[str, ...]):
    return expected_config(RECIPES / command[0], command[1:])


def config(cell: Cell, scale: str):
    return parsed(command_of(cell, scale))


@pytest.mark.parametrize(
    "scale",
    [
        scale if scale != "cifar10-subset" else pytest.param(scale, marks=pytest.mark.slow)
        for scale in SCALES
    ],
)
@pytest.mark.parametrize("table", TABLES)
def test_every_command_is_a_valid_configuration(table: str, scale: str) -> None:
    sizes = {"digits": {"digits", "moving_digits"}, "cifar10-subset": {"cifar10"}}
    reasons = set()
    for cell in TABLES[table].cells:
        if isinstance(command_of(cell, scale), str):
            reasons.add(command_of(cell, scale))
            continue
        made = config(cell, scale)
        assert made.data.name in sizes.get(scale, {cell.data}) & set(list_datasets())
        if cell.axis == "T" and cell.level is not None:
            assert cell.level == made.model.T
        if cell.axis == "decay" and cell.level is not None:
            assert 1 - 1 / made.model.tau == pytest.approx(cell.level, abs=1e-6)
            assert made.model.decay_input is False
    allowed = {"2311-tab1": {BINARY}, "2311-tab2": {NO_ANN}}.get(table, set())
    assert {reason for reason in reasons if "CIFAR-10 subset" not in reason} == allowed
    assert (scale == "cifar10-subset") or not [r for r in reasons if "subset" in r]


def test_models_of_all_rows_are_registered() -> None:
    import torch

    names = {
        config(cell, scale).model
        for table in ("eccv22-tab1", "2311-tab1", "2311-tab2")
        for scale in SCALES
        for cell in TABLES[table].cells
        if not isinstance(command_of(cell, scale), str) and cell.level in (None, 0.6830)
    }
    with torch.device("meta"):
        for model in names:
            create_model(model.name, **model.args())


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("dense", "sparse_training_cifar.py --method random --sparsity 0 --epochs 8"),
        (
            "random control sparsity 0.8991",
            "sparse_training_cifar.py --method random --sparsity 0.9 --epochs 8",
        ),
        ("IMP sparsity 0.683", f"imp_cifar.py --imp.sparsity 0.68 {IMP}"),
        (
            "IMP+ET sparsity 0.9569",
            f"early_time_cifar.py --search imp --imp.sparsity 0.96 {IMP}",
        ),
        (
            "EB sparsity 0.8991",
            "early_bird_cifar.py --early-bird.sparsity 0.9 --epochs 8 --early-bird.epochs 8",
        ),
    ],
)
def test_subset_rows_are_the_runs_of_the_comparison_of_searches(row: str, line: str) -> None:
    recipe, *options = f"{line} {COMPARED}".split()
    compared = expected_config(RECIPES / recipe, options)
    ours = config(cell_of(f"eccv22-tab1 cifar10 VGG16 {row}"), "cifar10-subset")
    assert type(ours) is type(compared) and differences(ours, compared) == []


def test_published_levels_are_reached_at_full_scale() -> None:
    for cell in TABLES["eccv22-tab1"].cells:
        if cell.method == "IMP" and cell.level is not None:
            made = config(cell, "full")
            removed = schedule(made.imp)[-1]
            assert removed * 14_715_584 / 14_728_266 == pytest.approx(cell.level, abs=2e-4)
            assert Imp(made.imp).config.epochs == 300 and made.train.optim.lr == 0.3
            bird = EarlyBird(config(replace(cell, method="EB"), "full").early_bird).config
            assert bird.sparsity == pytest.approx(removed, abs=1e-4)


def test_rows_that_differ_in_print_differ_in_their_run() -> None:
    for table in TABLES.values():
        for scale in SCALES:
            seen: dict[object, str] = {}
            for cell in table.cells:
                if cell.data != "cifar10" or cell.network not in ("VGG16", "VGG-9", "TINY"):
                    continue
                command = command_of(cell, scale)
                if isinstance(command, str) or cell.level in (4, 0.99, 0.5):
                    continue  # the middle of a sweep is the same network in each of its curves
                assert command not in seen, (cell.name, seen[command])
                seen[command] = cell.name
