"""Energy as table, JSON and CSV."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.energy import (
    HOROWITZ,
    energy_markdown,
    layer_table,
    measure_energy,
    sensitivity,
    sensitivity_table,
    write_energy,
)


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
