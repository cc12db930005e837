"""Rows of epochs count operations and bytes as the report does, and change nothing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch

import spikeformer_lt as lt
from spikeformer_lt.reports.ledger import build_ledger, epoch_ledger, ledger_batches
from spikeformer_lt.training import experiment

SMALL = {"data.limit-train": 64, "data.limit-test": 40, "data.image-size": 16, "train.cpu": True,
         "model.embed-dim": 16, "model.depth": 1, "model.num-heads": 2}  # fmt: skip


def rows_of(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("search", ["multisp", "random"])
def test_the_last_epoch_costs_what_the_report_says(search, tmp_path, monkeypatch):
    load = experiment.load_splits

    def one_split(*how):  # validation is the test set, so that both count the same samples
        splits = load(*how)
        return replace(splits, val=splits.test)

    monkeypatch.setattr(experiment, "load_splits", one_split)
    own = {"sparsity": 0.3} if search == "random" else {}
    enough = {"data.limit-train": 400, "model.embed-dim": 32, "train.optim.lr": 1e-3}  # it fires
    lt.train(search, "spikformer_toy", "digits", T=2, epochs=2, out=tmp_path,
             options=SMALL | enough, **own)  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    *_, row = rows = rows_of(tmp_path)
    best = max(rows, key=lambda each: (float(each["val_accuracy"]), int(each["epoch"])))
    if search == "random":
        assert len({each["weight_bytes"] for each in rows}) == 1  # the mask stays
    else:
        assert report["binary_layers"] and float(row["weight_bytes"]) < 4 * report["params"]
    assert float(best["sops"]) == report["sops"] > 0
    assert float(best["weight_bytes"]) == report["weight_bytes"]


def test_counting_leaves_the_training_as_it_was(tmp_path, monkeypatch):
    found = []
    for folder in (tmp_path / "with", tmp_path / "without"):
        lt.train("random", "spikformer_toy", "digits", T=2, epochs=2, sparsity=0.5, out=folder,
                 options=SMALL)  # fmt: skip
        found.append((rows_of(folder), lt.Run(folder).ticket.tensors))
        # From here on, whatever ledger a recipe asks for, none is taken.
        none = property(lambda _: lambda *_: {}, lambda *_: None)
        monkeypatch.setattr(experiment.Experiment, "ledger", none, raising=False)
    (rows, tensors), (others, same) = found
    assert all(row.pop("sops") and row.pop("weight_bytes") for row in rows)
    assert rows == others and tensors.keys() == same.keys()
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)


def test_an_epoch_is_counted_as_a_report_is(lively):
    data = lt.create_dataset("digits", image_size=16, limit_test=30)
    before = {name: value.clone() for name, value in lively.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    lively.train()
    found = epoch_ledger(lively, data.test, torch.device("cpu"))
    assert lively.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], value) for n, value in lively.state_dict().items())
    ledger = build_ledger(lively, ledger_batches(data.test, torch.device("cpu")))
    assert found == {name: ledger[name] for name in ("sops", "weight_bytes")}
