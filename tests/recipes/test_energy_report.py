"""recipes/energy_report.py, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.recipe


def test_a_digits_tickets_energy_sums_to_its_ledger(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    out = tmp_path / "energy"
    ended = recipes.run("energy_report", "--runs", finished.path, "--out", out)
    assert (ended.code, ended.err) == (0, ""), ended.err
    network = json.loads((out / "energy.json").read_text())["networks"]["run"]
    report = finished.report
    n = report["ledger_samples"]
    spikes = [layer["sops"] * n for layer in network["layers"]]
    assert all(abs(count - round(count)) < 1e-6 for count in spikes)  # whole operations
    assert sum(round(count) for count in spikes) == round(report["sops"] * n)
    assert round(network["totals"]["sops"] * n) == round(report["sops"] * n)
    assert network["dead_layers"] == report["dead_layers"]
    assert sorted(p.suffix for p in out.iterdir()) == [".csv", ".csv", ".json", ".md", ".png"]
    assert (out / "energy.md").read_text().strip() == ended.out.strip()
    first = network["layers"][0]
    assert first["input"] == "real" and (first["macs"] == 0) == first["binary"]


def test_what_is_missing_is_one_line(recipes: Any) -> None:
    assert "--runs DIR" in recipes.run("energy_report").error
    assert "split" in recipes.run("energy_report", "--split", "all").error
