"""Energy bars: what is drawn sums to the headline."""

from __future__ import annotations

import csv

import pytest
import torch

from spikeformer_lt.reports.energy import HOROWITZ, measure_energy
from spikeformer_lt.reports.plots import plot_energy


def test_groups_sum_to_the_whole(lively, probe):
    energy = measure_energy(lively, probe, lively.T)
    groups = energy.by_group(HOROWITZ)
    assert sum(v for v, _ in groups.values()) == pytest.approx(energy.headline_pj(HOROWITZ))
    assert sum(f for _, f in groups.values()) == pytest.approx(energy.formula_pj(HOROWITZ))
    assert all(counted > 0 for counted, _ in groups.values())


def test_bars_have_a_csv_beside_them_and_a_dead_network_has_no_bar(lively, probe, tmp_path):
    alive = measure_energy(lively, probe, lively.T)
    with torch.no_grad():
        lively.blocks[0].attn.q.norm.bias.fill_(-100)
    dead = measure_energy(lively, probe, lively.T)
    plot_energy(tmp_path / "new" / "energy.png", {"alive": alive, "dead": dead})
    assert (tmp_path / "new" / "energy.png").stat().st_size > 5000
    rows = list(csv.DictReader((tmp_path / "new" / "energy.csv").open()))
    assert {row["network"] for row in rows} == {"alive"}
    counted = sum(float(row["energy_uj"]) for row in rows if row["kind"] == "counted")
    assert counted == pytest.approx(alive.headline_pj(HOROWITZ) / 1e6)
