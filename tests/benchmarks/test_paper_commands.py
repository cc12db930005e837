"""The command of every published row, at every scale, is one that its recipe takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from papers.commands import BINARY, NO_ANN, SCALES, command_of
from papers.finished import expected_config
from papers.tables import TABLES, Cell

from spikeformer_lt.registry import create_model, list_datasets, list_models
from spikeformer_lt.tickets import EarlyBird, Imp
from spikeformer_lt.tickets.imp import schedule

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def config(cell: Cell, scale: str):
    recipe, *options = command_of(cell, scale)
    return expected_config(RECIPES / recipe, options)


def ends(cells: Sequence[Cell]) -> list[Cell]:
    """First and last row of each curve: those in between differ from them in one number."""
    curves: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        curves.setdefault((*cell.series, cell.against), []).append(cell)
    return [cell for curve in curves.values() for cell in dict.fromkeys((curve[0], curve[-1]))]


@pytest.mark.parametrize(
    ("scale", "chosen"),
    [
        *(("digits", ends), ("full", ends)),
        *(pytest.param(scale, list, marks=pytest.mark.slow) for scale in SCALES),
    ],
)
@pytest.mark.parametrize("table", TABLES)
def test_every_command_is_a_valid_configuration(table: str, scale: str, chosen: Any) -> None:
    sizes = {"digits": {"digits", "moving_digits"}, "cifar10-subset": {"cifar10"}}
    reasons = set()
    for cell in chosen(TABLES[table].cells):
        if isinstance(command_of(cell, scale), str):
            reasons.add(command_of(cell, scale))
            continue
        made = config(cell, scale)
        assert made.model.name in list_models()
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
        for scale in ("digits", "full")
        for cell in ends(TABLES[table].cells)
        if not isinstance(command_of(cell, scale), str)
    }
    with torch.device("meta"):
        for model in names:
            create_model(model.name, **model.args())


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
