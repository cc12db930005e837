"""report.html of a run and of a comparison; real runs are in recipes/test_report.py."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from spikeformer_lt import Ticket, create_dataset, create_model
from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.comparison import by_search, write_comparison_page
from spikeformer_lt.reports.finished import open_run
from spikeformer_lt.reports.ledger import LEDGER_IMAGES
from spikeformer_lt.reports.run_page import (
    dense_beside,
    describe,
    epochs_trained,
    fact,
    number_at,
    write_run_page,
)
from spikeformer_lt.tickets.surgery import model_from_ticket


def test_a_figure_that_was_not_measured_is_a_dash():
    report = {"sparsity": {"patch": 0.25}, "val_accuracy": None}
    assert fact(report, "sparsity.patch", 100, "{:.1f}") == "25.0"
    for path in ("val_accuracy", "sparsity.other", "nothing.at.all"):
        assert fact(report, path, 1, "{}") == "-"
    assert fact(None, "x", 1, "{}") == "-"


@pytest.mark.parametrize(
    ("known", "epochs"),
    [
        ({"phases": []}, None),
        ({"phases": [("dense", 6), ("joint", 12)]}, 18),
        ({"phases": [("early_time", 2), ("edge_popup", 8)], "trained": True}, 8),
        ({"phases": [("imp-0", 8), ("retrain", 8)], "trained": False}, 8),
        ({"phases": [("imp-0", 8), ("retrain", 6)], "trained": False, "start_step": "2ep"}, 8),
        ({"phases": [("imp-0", 8), ("retrain", 8)], "trained": False, "start_step": "5it"}, 8.5),
    ],
)
def test_epochs_are_those_that_the_tested_weights_went_through(known, epochs):
    phases = [{"phase": name, "epochs": count} for name, count in known["phases"]]
    assert epochs_trained({**known, "phases": phases}, 10) == epochs


@pytest.fixture
def two(saved, tmp_path):
    for name in ("a", "b"):
        saved(tmp_path / name)
        report = {"test_accuracy": 12.5, "accuracy_at_t": [10.0, 12.5], "confusion": [[1, 2]] * 2}
        (tmp_path / name / "report.json").write_text(json.dumps({**report, "run_id": name}))
    return [open_run(tmp_path / name, model_from_ticket) for name in ("a", "b")]


def test_a_run_has_one_page_with_its_pictures_inside(two, tmp_path):
    page = write_run_page(two[0], tmp_path / "out", images=8)
    text = page.read_text()
    assert page == tmp_path / "out" / "report.html"
    assert text.count("data:image/png") == len(list((tmp_path / "out" / "plots").glob("*.png")))
    assert "that is not trained" not in text and "12.50" in text and "embedded test bed" in text
    assert (tmp_path / "out" / "energy" / "energy.json").exists()


def test_numbers_of_a_report_or_ticket_that_are_none_are_refused(two, tmp_path):
    for path in ("test_accuracy", "ticket.prunable_sparsity"):
        with pytest.raises(DataError, match=rf"{path}='x', which is no number"):
            number_at({"test_accuracy": "x", "ticket": {"prunable_sparsity": "x"}}, path)
    for odd in ("x", [[0.5]], [[], ["a"]], [None]):
        about = {**two[0].ticket.provenance, "mask_distances": odd}
        ticket = Ticket(two[0].ticket.mask, two[0].ticket.tensors, about)
        with pytest.raises(DataError, match="mask_distances are damaged"):
            write_run_page(replace(two[0], ticket=ticket), tmp_path / "out", images=2)


def test_a_comparison_has_all_runs_side_by_side_and_says_what_is_dead(two, tmp_path):
    page = write_comparison_page(two, tmp_path / "out", "Two", images=8)
    text = page.read_text()
    assert by_search(two) == ({}, [])  # their reports say no sparsity
    assert "<h1>Two</h1>" in text and text.count(">12.50<") == 2
    # Nobody trained these: their energy is no headline.
    assert "refused" in text and (tmp_path / "out" / "plots" / "masks.csv").exists()


def test_runs_become_curves_by_search_and_what_is_removed(two, tmp_path):
    found = [("imp", 0.5, 90.0), ("imp", 0.9, 80.0), ("snip", 0.5, 70.0), ("imp", 0.5, 92.0)]
    runs = []
    for run, (search, removed, accuracy) in zip([*two, *two], found, strict=True):
        ticket = Ticket(run.ticket.mask, run.ticket.tensors,
                        {**run.ticket.provenance, "search": search})  # fmt: skip
        report = {"sparsity": {"total_weight": removed}, "test_accuracy": accuracy}
        runs.append(replace(run, ticket=ticket, report=report))
    dense = {"sparsity": {"total_weight": 0.0, "patch": 0.0}, "test_accuracy": 95.0}
    runs.append(replace(two[0], report=dense))
    curves, reference = by_search(runs)
    assert curves == {"imp": [(0.5, [90.0, 92.0]), (0.9, [80.0])], "snip": [(0.5, [70.0])]}
    assert reference == [95.0]
    # A control is no further seed of its search, nor is another network or configuration.
    known = {**two[0].ticket.provenance, "search": "imp"}
    report = {"sparsity": {"total_weight": 0.5}, "test_accuracy": 50.0}
    for about in (
        {"control": "random"}, {"config": {"weights": {"method": "random"}}},
        {"config": {"epochs": 3}}, {"model": {"name": "other"}},
        {"options": {**(known.get("options") or {}), "train.seed": 7}},
    ):  # fmt: skip
        ticket = Ticket(two[0].ticket.mask, two[0].ticket.tensors, {**known, **about})
        curves = by_search([runs[0], replace(two[0], ticket=ticket, report=report)])[0]
        if "model" in about:
            assert curves == {"imp": [(0.5, [90.0])], "imp (2)": [(0.5, [50.0])]}
        elif "random" in str(about):
            assert curves == {"imp": [(0.5, [90.0])], "imp-random": [(0.5, [50.0])]}
        else:
            wanted = [(0.5, [90.0, 50.0])] if "options" in about else [(0.5, [50.0]), (0.5, [90.0])]
            assert curves == {"imp": wanted}
    page = write_comparison_page(runs, tmp_path / "out", "Four", images=8)
    assert "Curves and masks" in page.read_text()
    assert (tmp_path / "out" / "plots" / "curves.csv").exists()


def test_a_dense_run_beside_is_of_the_same_network(tmp_path):
    """Networks of a user's own have the name of their class, whatever they were built with."""
    reports = {}
    for name, layers, removed in (
        ("dense", ("conv1", "fc"), 0.0),
        ("pruned", ("conv1", "fc"), 0.5),
        ("other", ("conv1", "conv2", "fc"), 0.5),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model": {"name": "module:ResNet"}}))
        report = {"split_sha256": "x", "layers": {key: {} for key in layers}, "run_id": name}
        report |= {"sparsity": {"total_weight": removed}, "test_accuracy": 1.0}
        (folder / "report.json").write_text(json.dumps(report))
        reports[folder] = report
    found = [dense_beside(*pair) for pair in reports.items()]
    assert found == [None, tmp_path / "dense" / "report.json", None]


def test_describe_evaluates_the_split_and_measures_its_first_images():
    data = create_dataset("digits", image_size=16, limit_train=64, limit_test=40)
    torch.manual_seed(0)
    model = create_model("spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2, T=2)
    forwards = []
    model.register_forward_hook(lambda module, x, y: forwards.append(len(x[0])))
    metrics, ledger = describe(model, data, "test", Accelerator(cpu=True))
    assert forwards == [40, 40]  # the evaluation and one counting pass
    assert metrics.count == len(data.test)
    assert ledger["ledger_samples"] == min(LEDGER_IMAGES, len(data.test))
    assert {"sparsity", "macs", "sops", "firing_rate", "purity", "params"} <= set(ledger)
