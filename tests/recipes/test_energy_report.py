"""recipes/energy_report.py, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt.reports.energy import measure_energy
from spikeformer_lt.reports.finished import open_run
from spikeformer_lt.tickets.surgery import model_from_ticket

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
    assert sorted(p.suffix for p in out.glob("[!.]*")) == [".csv", ".csv", ".json", ".md", ".png"]
    assert (out / "energy.md").read_text().strip() == ended.out.strip()
    first = network["layers"][0]
    assert first["input"] == "real" and (first["multiplies"] == 0) == first["binary"]
    (out / "energy.md").write_text("mine")
    ended = recipes.run("energy_report", "--runs", finished.path, "--out", out)
    assert ended.code == 2 and "energy.md' is there, and not as" in ended.error
    assert (out / "energy.md").read_text() == "mine"


def test_halving_the_mask_of_a_digits_ticket_halves_its_sops_exactly(finished: Any) -> None:
    """Layer by layer; first the mask is made even at every input and tap, so that it has a half."""
    run = open_run(finished.path, model_from_ticket)
    batches = run.batches("test", 24)
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    halved = 0
    for name in run.ticket.mask:
        conv = run.model.get_submodule(name.removesuffix(".weight"))
        rank = run.ticket.mask[name].long().cumsum(0) * run.ticket.mask[name]  # 1, 2, ... of kept
        even = (rank > 0) & (rank <= rank.amax(0) // 2 * 2)
        found = []
        for kept in (even, even & (rank % 2 == 0), even & (rank % 2 == 1)):
            with torch.no_grad():
                conv.weight.copy_(state[name] * kept)
            energy = measure_energy(run.model, batches, run.model.T)
            row = next(row for row in energy.layers if f"{row.name}.weight" == name)
            found.append((row.sops, row.multiplies + row.acs))
            assert energy.total("sops") == sum(layer.sops for layer in energy.layers)
        run.model.load_state_dict(state)
        assert found[1][0] == found[2][0] == found[0][0] / 2
        assert found[1][1] == found[0][1] / 2 > 0
        halved += found[0][0] > 0
    assert halved == len(run.ticket.mask) - 1 == 4  # all but the first, which multiplies


def test_what_is_missing_is_one_line(recipes: Any) -> None:
    assert "--runs DIR" in recipes.run("energy_report").error
    assert "split" in recipes.run("energy_report", "--split", "all").error
