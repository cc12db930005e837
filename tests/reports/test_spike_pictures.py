"""Rasters, rates and traces: the CSV beside each holds what was drawn."""

from __future__ import annotations

import csv

import pytest
import torch

from spikeformer_lt.reports.plots import (
    plot_epoch_rates,
    plot_layer_epochs,
    plot_layer_rates,
    plot_membrane,
    plot_raster,
)


def rows_of(path):
    return list(csv.DictReader(path.with_suffix(".csv").open()))


def test_a_raster_lists_each_spike_of_first_and_last_layer(tmp_path):
    spikes = {f"layer{i}": (torch.rand(4, 30) < 0.3).float() for i in range(9)}
    plot_raster(tmp_path / "a.png", spikes, layers=4)
    rows = rows_of(tmp_path / "a.png")
    shown = {row["layer"] for row in rows}
    assert len(shown) == 4 and {"layer0", "layer8"} <= shown
    for name in shown:
        own = {(int(r["t"]) - 1, int(r["neuron"])) for r in rows if r["layer"] == name}
        assert own == {tuple(at) for at in spikes[name].nonzero().tolist()}


def test_a_layer_without_a_spike_is_drawn_as_dead(tmp_path):
    plot_layer_rates(tmp_path / "a.png", {"first": 0.2, "second": 0.0})
    assert [float(r["firing_rate"]) for r in rows_of(tmp_path / "a.png")] == [0.2, 0.0]


def test_rates_over_epochs_come_from_the_summary(tmp_path):
    summary = tmp_path / "summary.csv"
    summary.write_text("phase,epoch,firing_rate,patch_sparsity\na,1,0.1,0.25\na,2,0.2,\n")
    assert plot_epoch_rates(tmp_path / "a.png", summary)
    found = [(r["quantity"], int(r["epoch"]), float(r["value"])) for r in rows_of(tmp_path / "a")]
    assert found == [
        ("firing_rate", 1, 0.1), ("firing_rate", 2, 0.2), ("patch_sparsity", 1, 0.25),
    ]  # fmt: skip
    summary.write_text("phase,epoch,firing_rate\n")
    assert not plot_epoch_rates(tmp_path / "b.png", summary)
    assert not (tmp_path / "b.png").exists()


def test_every_layers_rate_in_every_epoch_is_drawn_and_written(tmp_path):
    firing = tmp_path / "firing.csv"
    firing.write_text("phase,epoch,a.act,b.act\ndense,1,0.5,\njoint,1,0.25,0.0\n,,,\n")
    assert plot_layer_epochs(tmp_path / "a.png", firing)
    found = [tuple(row.values()) for row in rows_of(tmp_path / "a.png")]
    assert found == [
        ("a.act", "dense", "1", "0.5"), ("a.act", "joint", "1", "0.25"),
        ("b.act", "dense", "1", ""), ("b.act", "joint", "1", "0.0"),
    ]  # fmt: skip
    firing.write_text("phase,epoch\n")
    assert not plot_layer_epochs(tmp_path / "b.png", firing)
    firing.write_text("")
    assert not plot_layer_epochs(tmp_path / "b.png", firing) and not (tmp_path / "b.png").exists()


def test_a_membrane_trace_keeps_every_step_and_spike(tmp_path):
    trace, spikes = torch.rand(4, 3), torch.eye(4, 3)
    plot_membrane(tmp_path / "a.png", trace, spikes, 1.0, "layer", [7, 40, 2])
    rows = rows_of(tmp_path / "a.png")
    assert len(rows) == 12 and sum(int(r["spike"]) for r in rows) == 3
    assert float(rows[5]["membrane"]) == pytest.approx(float(trace[1, 1]))
    assert [row["neuron"] for row in rows[::4]] == ["7", "40", "2"]
