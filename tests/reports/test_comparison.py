"""Comparisons put only comparable runs together and say what was not run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.comparison import (
    Row,
    read_rows,
    series_of,
    write_comparison,
    write_confusions,
)


@dataclass(frozen=True)
class Run:
    variant: str
    report: Path


def finished(
    folder: Path, variant: str, accuracy: float, split: str = "s", seed: int = 0, patch: float = 0.3
) -> Run:
    path = folder / f"{variant}-{seed}.json".replace(" ", "_")
    report = {
        "dataset": "digits", "split_sha256": split, "test_accuracy": accuracy, "val_accuracy": 1.0,
        "sparsity": {"patch": patch, "conv_pep_weight": 0.5, "total_weight": 0.25}, "seed": seed,
        "conv_pep_bits_per_weight": 1.5, "macs": 2e6, "macs_nonspiking": 1e5, "sops": 1e6,
        "firing_rate": {"a": 0.1},
    }  # fmt: skip
    path.write_text(json.dumps(report))
    return Run(variant, path)


def test_rows_carry_mean_and_spread(tmp_path):
    runs = [finished(tmp_path, "dense", a, seed=i) for i, a in enumerate((90.0, 92.0))]
    (row,) = read_rows(runs)
    assert row.cell("test accuracy %") == "91.00 ± 1.41"
    assert row.cell("patches removed %") == "30.0"
    assert row.values("val %") == {0: 1.0, 1: 1.0}


def test_runs_of_other_splits_are_not_compared(tmp_path):
    runs = [finished(tmp_path, "a", 1.0), finished(tmp_path, "b", 1.0, split="other")]
    with pytest.raises(DataError, match="not comparable"):
        read_rows(runs)


def test_rows_with_numbers_become_curves(tmp_path):
    runs = [
        finished(tmp_path, name, 90.0)
        for name in ("weights 0.9", "weights 0.5", "random mask 0.5", "patches 0.3", "dense")
    ]
    series = series_of(read_rows(runs))
    assert len(series["ConvPEP weights"]["weights"]) == 2
    assert set(series["ConvPEP weights"]) == {"weights", "random mask"}
    assert set(series["patches"]) == {"patches"}


def test_a_curve_stands_where_it_was_measured(tmp_path):
    runs = [
        finished(tmp_path, "patches 0.65", 90.0, patch=0.625),
        finished(tmp_path, "patches 0.314", 91.0, patch=0.3125),
    ]
    (points,) = series_of(read_rows(runs))["patches"].values()
    assert points == [(0.3125, [91.0]), (0.625, [90.0])]


def test_a_name_that_ends_in_a_number_is_no_curve(tmp_path):
    assert series_of(read_rows([finished(tmp_path, "literal Algorithm 1", 86.0)])) == {}


def test_runs_are_listed_by_their_seeds(tmp_path):
    write_comparison(tmp_path, [finished(tmp_path, "a", v, seed=v) for v in (7, 3)], "title")
    table = (tmp_path / "runs.csv").read_text().splitlines()
    assert table == ["variant,seed,test accuracy %", "a,7,7.0000", "a,3,3.0000"]


def test_networks_with_silent_layers_are_pointed_out(tmp_path):
    runs = [finished(tmp_path, "a", 90.0), finished(tmp_path, "b", 90.0, seed=1)]
    assert "never fired" not in write_comparison(tmp_path, runs, "title")
    report = json.loads(runs[1].report.read_text()) | {"dead_layers": ["conv_pep.stages.0.act"]}
    runs[1].report.write_text(json.dumps(report))
    text = write_comparison(tmp_path, runs, "title")
    assert "never fired, whose few operations are no saving: b (1 of 1)." in text


def test_what_was_not_run_is_said(tmp_path):
    missing = [Run("sequential", tmp_path / "none.json"), Run("weights 0.5", tmp_path / "no.json")]
    runs = [finished(tmp_path, "weights 0.5", 90.0), *missing]
    text = write_comparison(tmp_path, runs, "title")
    assert "asked: weights 0.5 (1 of 2), sequential (0 of 1)." in text
    assert (tmp_path / "comparison.md").read_text() == text
    assert (tmp_path / "comparison.csv").exists()
    assert (tmp_path / "curve-ConvPEP-weights.png").exists()


def test_seeds_add_up_and_runs_without_a_matrix_are_left_out(tmp_path):
    counts = ([[3, 1], [0, 6]], [[4, 0], [2, 4]])
    write_confusions(tmp_path, [Row("a b", [{}, *({"confusion": each} for each in counts)])])
    text = (tmp_path / "confusion.md").read_text()
    assert "2 seeds, 17 of 20 right (85.00 %; always the largest class: 60.00 %)" in text
    rows = (tmp_path / "confusion-a_b.csv").read_text().splitlines()[1:]
    assert rows == ["0,7,1", "1,2,10"]
