"""Energy as constants, table, JSON, CSV and bars."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.reports.energy import (
    COSTS,
    HOROWITZ,
    SOP_77FJ,
    Costs,
    energy_markdown,
    layer_table,
    measure_energy,
    sensitivity,
    sensitivity_costs,
    sensitivity_table,
    write_energy,
)
from spikeformer_lt.reports.plots import plot_energy


@pytest.fixture
def pair(lively, probe):
    dense = measure_energy(lively, probe, lively.T)
    with torch.no_grad():
        for _, unit in lively.conv_pep.units():
            unit.conv.weight[::2] = 0
    return {"dense": dense, "ticket": measure_energy(lively, probe, lively.T)}


def test_json_and_csv_hold_the_same_layers_that_sum_to_the_whole(pair, tmp_path):
    found = write_energy(tmp_path / "new", pair)
    assert json.loads((tmp_path / "new/energy.json").read_text()) == found
    rows = list(csv.DictReader((tmp_path / "new/energy.csv").open()))
    for name, energy in pair.items():
        own = [row for row in rows if row["network"] == name]
        assert sum(float(row["sops"]) for row in own) == pytest.approx(energy.total("sops"))
        assert len(own) == len(energy.layers)
    assert "# Energy" in (tmp_path / "new/energy.md").read_text()


def test_the_table_names_every_layer_and_their_sum(pair):
    header, rows = layer_table(pair["dense"])
    assert [row[0] for row in rows] == [*(row.name for row in pair["dense"].layers), "all"]
    assert rows[-1][header.index("of them SOPs")] == f"{pair['dense'].total('sops'):,.0f}"
    attention = next(row for row in rows if row[0].endswith(".attention"))
    assert attention[2:4] == ["-", "-"]  # it has no weights


def test_sensitivity_is_each_energy_at_each_set(pair):
    found = dict((costs.name, pj) for costs, pj in sensitivity(pair))
    assert found["45nm"]["ticket"] == pair["ticket"].headline_pj(HOROWITZ)
    line = next(row for row in sensitivity_table(pair)[1] if row[0] == "45nm")
    ratio = pair["ticket"].headline_pj(HOROWITZ) / pair["dense"].headline_pj(HOROWITZ)
    assert f"{ratio:.3f}" in line


def test_a_dead_network_has_no_figure_in_any_table(pair, lively, probe):
    with torch.no_grad():
        lively.blocks[0].attn.q.norm.bias.fill_(-100)
    dead = measure_energy(lively, probe, lively.T)
    text = energy_markdown({"dense": pair["dense"], "silent": dead})
    head = next(x for x in text.splitlines() if x.startswith("| silent"))
    assert head.count("refused (dead)") == 4
    assert "- silent: refused: " in text


def test_no_network_is_refused(tmp_path):
    with pytest.raises(DataError, match="no network"):
        write_energy(tmp_path, {})


def test_the_two_sets_are_the_ones_in_use():
    assert (HOROWITZ.mac_pj, HOROWITZ.ac_pj) == (4.6, 0.9)
    assert SOP_77FJ.ac_pj == 0.077
    assert list(COSTS) == ["45nm", "77fJ"]


def test_77_fj_gives_spikformers_published_power():
    published = {6.82: 0.525, 8.69: 0.669, 11.09: 0.854, 13.67: 1.053, 22.09: 1.701}  # G -> mJ
    for gsops, mj in published.items():
        assert SOP_77FJ.energy_pj(0, gsops * 1e9) / 1e9 == pytest.approx(mj, abs=1e-3)


def test_sensitivity_halves_and_doubles_each_figure_once():
    found = sensitivity_costs()
    pairs = [(c.mac_pj, c.ac_pj) for c in found]
    assert len(set(pairs)) == len(pairs) == 11
    assert {(2.3, 0.9), (9.2, 0.9), (4.6, 0.45), (4.6, 1.8)} <= set(pairs)


def test_a_negative_or_endless_cost_is_refused():
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="mac_pj"):
            Costs("x", bad, 1.0, "")


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
