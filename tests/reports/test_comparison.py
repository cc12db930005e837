"""Comparisons put only comparable runs together and say what was not run."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.comparison import (
    Row,
    _is_control,
    differences,
    early_time_table,
    outcome_of,
    read_rows,
    search_steps,
    series_of,
    side_by_side,
    steps_of_run,
    write_comparison,
    write_confusions,
)
from spikeformer_lt.reports.statistics import Outcome
from spikeformer_lt.tickets.presets import MULTISP_SUITES
from spikeformer_lt.training.evaluate import PREDICTIONS, Predictions


@dataclass(frozen=True)
class Run:
    variant: str
    report: Path


def finished(
    folder: Path, variant: str, accuracy: float, split: str = "s", seed: int = 0, patch: float = 0.3
) -> Run:
    folder.mkdir(exist_ok=True)
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


def test_a_control_is_of_the_same_rate_and_of_its_search() -> None:
    own = ("imp-random 0.9", "imp-shuffle 0.9", "imp-fresh 0.9", "random 0.9")
    of, controls = {"imp 0.9": own, "eb 0.9": own[-1:]}, (*own, "random 0.5", "imp-random 0.5")
    for variant, expected in of.items():
        assert tuple(name for name in controls if _is_control(name, variant)) == expected
    assert _is_control("random control", "MultiSp") and not _is_control("random control", "dense")
    assert not _is_control("random 0.9", "imp-random 0.9")
    late = "MultiSp, time shuffled"
    assert _is_control(late, "MultiSp") and not _is_control(f"x{late}", "MultiSp")
    assert not _is_control("random control", late)


def test_each_random_variant_of_the_suites_is_the_control_of_one_other():
    """Of the searches and of MultiSp, and of nothing else beside it."""
    curves, ablation = MULTISP_SUITES["curves"], MULTISP_SUITES["ablation"]
    of = {
        **{f"random mask {s}": f"weights {s}" for s in (0.5, 0.9, 0.95)},
        **{f"random patches {s}": f"patches {s}" for s in (0.314, 0.65, 0.8)},
        **{f"all levels, random {what}": "all levels (default)" for what in ("mask", "patches")},
    }
    for suite in (curves, ablation):
        for control in (name for name in suite if "random" in name):
            assert [name for name in suite if _is_control(control, name)] == [of.pop(control)]
    assert not of


def test_a_difference_of_nothing_has_no_sign():
    pairs = [(Outcome(90.0, 50_000), Outcome(90.002, 50_000))]
    (row,) = differences({("a", "b"): pairs})[1]
    assert row[3] == "+0.00"


def test_reports_without_an_accuracy_are_not_compared(tmp_path):
    with pytest.raises(DataError, match="no report has a test accuracy"):
        side_by_side({"a": {}}, {"a": tmp_path})


@pytest.mark.fault(86)
def test_rows_of_another_budget_are_named_and_predictions_of_other_weights_not_taken(tmp_path):
    rows = (("dense", 75.0), ("imp 0.9", 50.0))
    runs = [finished(tmp_path / name, name, accuracy) for name, accuracy in rows]
    for run, epochs, right in zip(runs, (12.0, 9.0), (3, 2), strict=True):
        report = json.loads(run.report.read_text())
        run.report.write_text(json.dumps({**report, "epochs_trained": epochs, "test_count": 4}))
        answers = torch.tensor([0] * right + [1] * (4 - right))
        zeros = torch.zeros(4, dtype=torch.int64)
        saved = Predictions(torch.arange(4), zeros, torch.zeros(4, 2), answers)
        saved.save(run.report.parent / PREDICTIONS, {"weights_sha256": "w"})
    text = write_comparison(tmp_path, runs, "title")
    assert "Epochs trained differ, so that accuracies compare budgets, too: dense 12.0, imp" in text
    (row,) = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert (row["variant"], row["against"], row["test"]) == ("imp 0.9", "dense", "McNemar")
    assert (row["points"], row["verdict"]) == ("-25.0", "not told apart")
    report = json.loads(runs[0].report.read_text())
    other = outcome_of({**report, "test_accuracy": 25.0}, runs[0].report.parent)
    assert other is not None and other.predicted is None


def test_what_was_not_run_is_said(tmp_path):
    missing = [Run("sequential", tmp_path / "none.json"), Run("weights 0.5", tmp_path / "no.json")]
    runs = [finished(tmp_path, "weights 0.5", 90.0), *missing]
    text = write_comparison(tmp_path, runs, "title")
    assert "asked: weights 0.5 (1 of 2), sequential (0 of 1)." in text
    assert (tmp_path / "comparison.md").read_text() == text
    assert (tmp_path / "comparison.csv").exists()
    assert not list(tmp_path.glob("curve-*"))  # one point is no curve


def test_seeds_add_up_and_runs_without_a_matrix_are_left_out(tmp_path):
    counts = ([[3, 1], [0, 6]], [[4, 0], [2, 4]])
    write_confusions(tmp_path, [Row("a b", [{}, *({"confusion": each} for each in counts)])])
    text = (tmp_path / "confusion.md").read_text()
    assert "2 seeds, 17 of 20 right (85.00 %; always the largest class: 60.00 %)" in text
    rows = (tmp_path / "confusion-a_b.csv").read_text().splitlines()[1:]
    assert rows == ["0,7,1", "1,2,10"]


MODEL = {"name": "spiking_vgg_toy", "args": {"T": 5}}
IMP = [{"phase": "imp-0", "epochs": 8}, {"phase": "imp-1", "epochs": 6}]


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
    assert [cell.strip() for cell in row.split("|")][9:11] == ["150.0 ± 70.7", "70"]


def test_without_a_pair_there_is_no_table(tmp_path):
    assert early_time_table([]) == ""
    assert "Early-Time" not in write_comparison(
        tmp_path, [run_of(tmp_path, "imp 0.9", 0, 60.0, 1.0, 5)], "title"
    )
