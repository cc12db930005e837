"""Energy ledgers as table, JSON and CSV: one network, or several side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from spikeformer_lt.errors import DataError
from spikeformer_lt.paths import write_atomic
from spikeformer_lt.reports.energy import Energy, LayerEnergy
from spikeformer_lt.reports.energy_costs import COSTS, Costs, sensitivity_costs
from spikeformer_lt.reports.tables import markdown_table, write_csv

ESTIMATE = (
    "Theoretical estimates from operation counts on real inputs: no device was measured. The leak "
    "and threshold of neurons, biases and data movement are not in the energies; biases and memory "
    "stand apart below."
)


Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def layer_table(energy: Energy) -> Table:
    """One line a layer, and the sum, which is the whole."""
    header = ["layer", "input", "weights", "removed %", "MACs", "ACs", "of them SOPs",
              "formula MACs", "formula ACs", "ACs / formula"]  # fmt: skip
    rows = [
        [
            row.name,
            row.input,
            *_weights(row),
            *_counts(row.macs, row.acs, row.sops, row.formula_macs, row.formula_acs),
        ]
        for row in energy.layers
    ]
    names = ("macs", "acs", "sops", "formula_macs", "formula_acs")
    rows.append(["all", "", "", "", *_counts(*(energy.total(name) for name in names))])
    return header, rows


def _weights(row: LayerEnergy) -> list[str]:
    if row.operation == "attention":
        return ["-", "-"]
    return ["binary" if row.binary else "real", f"{100 * row.weight_sparsity:.1f}"]


def _counts(macs: float, acs: float, sops: float, f_macs: float, f_acs: float) -> list[str]:
    ratio = f"{acs / f_acs:.3f}" if f_acs else "-"
    return [f"{value:,.0f}" for value in (macs, acs, sops, f_macs, f_acs)] + [ratio]


def headline_table(networks: Mapping[str, Energy]) -> Table:
    """Each network's energy by both sets of constants, counted and by the formula."""
    header = ["network", *(f"{kind}, {n} (uJ)" for n in COSTS for kind in ("counted", "formula"))]
    rows = []
    for name, energy in networks.items():
        row = [name]
        for costs in COSTS.values():
            headline = energy.headline_pj(costs)
            row += [
                "refused (dead)" if headline is None else f"{headline / 1e6:.4f}",
                "refused (dead)" if energy.dead else f"{energy.formula_pj(costs) / 1e6:.4f}",
            ]
        rows.append(row)
    return header, rows


def sensitivity(networks: Mapping[str, Energy]) -> list[tuple[Costs, dict[str, float | None]]]:
    """Energy of each network, pJ, for each set of constants."""
    return [
        (costs, {name: energy.headline_pj(costs) for name, energy in networks.items()})
        for costs in sensitivity_costs()
    ]


def sensitivity_table(networks: Mapping[str, Energy]) -> Table:
    """Energies by constants and, for each network after the first, its part of it."""
    first, *others = networks
    header = ["constants", "MAC pJ", "AC pJ", *(f"{n} (uJ)" for n in networks)]
    header += [f"{n} / {first}" for n in others]
    rows = []
    for costs, found in sensitivity(networks):
        row = [costs.name, f"{costs.mac_pj:g}", f"{costs.ac_pj:g}"]
        row += ["refused" if v is None else f"{v / 1e6:.4f}" for v in found.values()]
        base = found[first]
        for name in others:
            value = found[name]
            row.append("-" if value is None or not base else f"{value / base:.3f}")
        rows.append(row)
    return header, rows


def memory_table(networks: Mapping[str, Energy]) -> Table:
    """Bytes of weights and inputs, each read once a sample, and what that costs."""
    places = list(next(iter(networks.values())).memory_pj())
    header = ["network", "weights (B)", "inputs (B)", "bias ACs", *(f"{p} (uJ)" for p in places)]
    rows = [
        [
            name,
            f"{energy.total('weight_bits') / 8:,.0f}",
            f"{energy.total('input_bits') / 8:,.0f}",
            f"{energy.total('bias_acs'):,.0f}",
            *(f"{pj / 1e6:.4f}" for pj in energy.memory_pj().values()),
        ]
        for name, energy in networks.items()
    ]
    return header, rows


def energy_markdown(networks: Mapping[str, Energy]) -> str:
    """The whole report in Markdown."""
    parts = ["# Energy, per sample", ESTIMATE, "## Operations"]
    parts.append(markdown_table(*headline_table(networks)))
    parts += [f"- {name}: {e.refusal()}" for name, e in networks.items() if e.dead]
    parts += [f"`{costs.name}`: {costs.source}." for costs in COSTS.values()]
    parts += ["## Sensitivity to the constants", markdown_table(*sensitivity_table(networks))]
    parts += ["## Memory, apart", markdown_table(*memory_table(networks))]
    for name, energy in networks.items():
        parts += [f"## Layers of {name}", markdown_table(*layer_table(energy))]
    return "\n\n".join(parts) + "\n"


def write_energy(folder: Path, networks: Mapping[str, Energy]) -> dict[str, Any]:
    """Write ``energy.json``, ``energy.csv`` and ``energy.md`` into `folder`.

    Args:
        folder: made if it is missing.
        networks: name -> ledger; the first is what the others are divided by.

    Returns:
        What energy.json holds.

    Raises:
        DataError: no network was given.
    """
    if not networks:
        raise DataError("no network to report the energy of")
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "networks": {name: energy.as_json() for name, energy in networks.items()},
        "sensitivity_pj": {costs.name: pj for costs, pj in sensitivity(networks)},
    }
    write_atomic(folder / "energy.json", (json.dumps(found, indent=2) + "\n").encode(), DataError)
    columns = [f.name for f in fields(LayerEnergy)]
    write_csv(
        folder / "energy.csv",
        ["network", *columns],
        [
            [name, *(getattr(row, column) for column in columns)]
            for name, energy in networks.items()
            for row in energy.layers
        ],
    )
    write_atomic(folder / "energy.md", energy_markdown(networks).encode(), DataError)
    return found
