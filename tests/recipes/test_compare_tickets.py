"""recipes/compare_tickets.py, as a user runs it."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.recipe

SMALL = (
    "--data.limit-train 64 --data.limit-test 40 --data.image-size 16 --model.name spikformer_toy "
    "--model.embed-dim 16 --model.T 2 --train.cpu"
)
OWN = ["dense=--epochs 1", "random=--epochs 1", "edge-popup=--edge-popup.epochs 1"]
OWN += ["imp+et=--imp.epochs 1 --imp.rewind 1it --imp.rounds 1 --epochs 1 --early-time.epochs 1"]


@pytest.mark.timeout(600)  # six processes that import everything
def test_searches_become_one_table_and_go_on_where_they_stopped(
    recipes: Any, tmp_path: Path
) -> None:
    line = shlex.split("--searches random edge-popup imp+et --sparsities 0.5 --seeds 0 --jobs 2")
    line += [f"--options={SMALL}", "--search-options", *OWN, "--out", str(tmp_path)]
    ended = recipes.run("compare_tickets", *line)
    assert ended.code == 0, ended.err
    assert "4 runs, 0 of them finished before" in ended.err
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["dense", "random 0.5", "edge-popup 0.5", "imp+et 0.5"]
    removed = [float(row["prunable weights removed %"]) for row in rows.values()]
    assert removed == pytest.approx([0, 50, 50, 50], abs=0.1)
    assert float(rows["imp+et 0.5"]["T in search"]) == 2
    assert (tmp_path / "curve-prunable-weights.png").stat().st_size > 1000

    report = tmp_path / "runs" / "random-0.5-seed0" / "report.json"
    before = json.loads(report.read_text())
    report.unlink()
    again = recipes.run("compare_tickets", *line)
    assert "4 runs, 3 of them finished before" in again.err
    assert json.loads(report.read_text()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--searches magic", "searches='magic' "),
        ("--sparsities 1.0", "sparsities=1.0 "),
        ("--search-options magic=--x", "search_options"),
        ("--jobs 0", "jobs=0 is not allowed"),
    ],
)
def test_bad_options_are_one_clear_line(recipes: Any, options: str, words: str) -> None:
    assert words in recipes.run("compare_tickets", *options.split()).error
