"""Comparisons put only comparable runs together and say what was not run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.comparison import read_rows, series_of, write_comparison


@dataclass(frozen=True)
class Run:
    variant: str
    report: Path


def finished(folder: Path, variant: str, accuracy: float, split: str = "s", seed: int = 0) -> Run:
    path = folder / f"{variant}-{seed}.json".replace(" ", "_")
    report = {
        "dataset": "digits", "split_sha256": split, "test_accuracy": accuracy, "val_accuracy": 1.0,
        "sparsity": {"patch": 0.3125, "conv_pep_weight": 0.5, "total_weight": 0.25},
        "conv_pep_bits_per_weight": 1.5, "macs": 2e6, "macs_nonspiking": 1e5, "sops": 1e6,
        "firing_rate": {"a": 0.1},
    }  # fmt: skip
    path.write_text(json.dumps(report))
    return Run(variant, path)


def test_rows_carry_mean_and_spread(tmp_path):
    runs = [finished(tmp_path, "dense", a, seed=i) for i, a in enumerate((90.0, 92.0))]
    (row,) = read_rows(runs)
    assert row.cell("test accuracy %") == "91.00 ± 1.41"
    assert row.cell("patches removed %") == "31.2"
    assert row.seeds == 2


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
    assert [x for x, _ in series["ConvPEP weights"]["weights"]] == [0.5, 0.9]
    assert set(series["ConvPEP weights"]) == {"weights", "random mask"}
    assert set(series["patches"]) == {"patches"}


def test_what_was_not_run_is_said(tmp_path):
    runs = [finished(tmp_path, "weights 0.5", 90.0), Run("sequential", tmp_path / "none.json")]
    text = write_comparison(tmp_path, runs, "title")
    assert "Not run: sequential." in text
    assert (tmp_path / "comparison.md").read_text() == text
    assert (tmp_path / "comparison.csv").exists()
    assert (tmp_path / "curve-ConvPEP-weights.png").exists()
