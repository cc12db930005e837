"""What a search cost: epochs times steps, and Early-Time's share of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from spikeformer_lt.reports.comparison import (
    early_time_table,
    search_steps,
    steps_of_run,
    write_comparison,
)

MODEL = {"name": "spiking_vgg_toy", "args": {"T": 5}}
IMP = [{"phase": "imp-0", "epochs": 8}, {"phase": "imp-1", "epochs": 6}]


@dataclass(frozen=True)
class Run:
    variant: str
    report: Path


def run_of(folder: Path, variant: str, seed: int, accuracy: float, seconds: float, T: int) -> Run:
    """A finished run with its ticket, as a recipe leaves them."""
    here = folder / f"{variant.replace(' ', '-')}-seed{seed}"
    (here / "ticket").mkdir(parents=True)
    about: dict = {"model": MODEL, "phases": IMP, "search_seconds": seconds}
    report = {
        "dataset": "digits", "split_sha256": "s", "test_accuracy": accuracy, "val_accuracy": 1.0,
        "sparsity": {"patch": 0, "conv_pep_weight": None, "total_weight": 0.9}, "seed": seed,
        "firing_rate": {"a": 0.1}, "ticket": {"search_seconds": seconds, "prunable_sparsity": 0.9},
    }  # fmt: skip
    if T < 5:
        about["early_time"] = {"T": 5, "T_early": T}
        about["phases"] = [{"phase": "early_time", "epochs": 2}, *IMP]
        report["ticket"]["T_search"] = T
    (here / "ticket" / "ticket.json").write_text(json.dumps({"provenance": about}))
    (here / "report.json").write_text(json.dumps(report))
    return Run(variant, here / "report.json")


def test_epochs_count_with_the_steps_that_they_ran_with():
    assert search_steps({"model": MODEL, "phases": IMP}) == 14 * 5
    probed = [{"phase": "early_time", "epochs": 2}, *IMP]
    found = {"model": MODEL, "phases": probed, "early_time": {"T_early": 3}}
    assert search_steps(found) == 2 * 5 + 14 * 3
    assert search_steps({"model": MODEL, "phases": []}) == 0  # one-shot: nothing was trained
    assert search_steps({"phases": IMP}) is None and search_steps({"model": MODEL}) is None


def test_a_run_without_a_search_of_weights_has_no_cost(tmp_path):
    assert steps_of_run(tmp_path / "report.json") is None
    (tmp_path / "ticket").mkdir()
    for about, cost in (({}, None), ({"search_seconds": 1.0}, 70.0)):
        known = {"provenance": {"model": MODEL, "phases": IMP, **about}}
        (tmp_path / "ticket" / "ticket.json").write_text(json.dumps(known))
        assert steps_of_run(tmp_path / "report.json") == cost


def test_the_saving_is_a_ratio_of_the_same_seeds(tmp_path):
    runs = [
        run_of(tmp_path, "imp 0.9", 0, 60.0, 100.0, 5),
        run_of(tmp_path, "imp 0.9", 1, 62.0, 200.0, 5),
        run_of(tmp_path, "imp+et 0.9", 1, 61.0, 130.0, 3),
        run_of(tmp_path, "imp+et 0.96", 0, 50.0, 10.0, 3),  # nothing to compare with
    ]
    text = write_comparison(tmp_path, runs, "title", level="prunable weights")
    (line,) = [row for row in text.splitlines() if "with / without" not in row and "0.650" in row]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    steps = (2 * 5 + 14 * 3) / (14 * 5)
    assert cells == ["imp+et 0.9", "1", "3.0", "0.650", "35.0", f"{steps:.3f}",
                     f"{100 * (1 - steps):.1f}", "-1.00"]  # fmt: skip
    (row,) = [row for row in text.splitlines() if row.startswith("| imp 0.9 ")]
    assert [cell.strip() for cell in row.split("|")][8:10] == ["150.0 ± 70.7", "70"]


def test_without_a_pair_there_is_no_table(tmp_path):
    assert early_time_table([]) == ""
    assert "Early-Time" not in write_comparison(
        tmp_path, [run_of(tmp_path, "imp 0.9", 0, 60.0, 1.0, 5)], "title"
    )


@pytest.mark.parametrize("T", [2, 4])
def test_fewer_steps_cost_less_than_the_probe_adds(T):
    """With rounds enough: what the paper reports as up to 38 %."""
    rounds = [{"phase": f"imp-{i}", "epochs": 20} for i in range(8)]
    whole = search_steps({"model": MODEL, "phases": rounds})
    probe = {"phase": "early_time", "epochs": 2}
    early = {"model": MODEL, "phases": [probe, *rounds], "early_time": {"T_early": T}}
    assert search_steps(early) / whole == pytest.approx(T / 5 + 2 / 160)
