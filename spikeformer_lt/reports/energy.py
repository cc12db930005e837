"""What one operation costs: the two sets of constants in use, and how results lean on them.

Energy per layer, counted at the spikes and weights there are, beside the papers' formula.

Energy ledgers as table, JSON and CSV: one network, or several side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.disk import write_atomic
from spikeformer_lt.errors import DataError
from spikeformer_lt.layers.subnet import SubnetConv2d
from spikeformer_lt.reports.ledger import (
    LayerCount,
    Operations,
    bits_per_weight,
    count_operations,
    is_binary,
)
from spikeformer_lt.reports.page import markdown_table, write_csv
from spikeformer_lt.training.monitor import FiringWatch


@dataclass(frozen=True)
class Costs:
    """Energy of one operation, pJ; every figure made from them is an estimate.

    Attributes:
        name: how reports call the set.
        mac_pj: of a multiply-accumulate.
        ac_pj: of an accumulate, that is of a synaptic operation.
        source: where the figures come from.
    """

    name: str
    mac_pj: float
    ac_pj: float
    source: str

    def __post_init__(self) -> None:
        for field in ("mac_pj", "ac_pj"):
            value = getattr(self, field)
            check(0 <= value < 1e6, f"{self.name}.{field}", value, "picojoules, finite and >= 0")

    def energy_pj(self, macs: float, acs: float) -> float:
        """Energy of so many operations, pJ."""
        return self.mac_pj * macs + self.ac_pj * acs


HOROWITZ = Costs("45nm", 4.6, 0.9, "32-bit floating point at 45 nm, Horowitz, ISSCC 2014")
SOP_77FJ = Costs(
    "77fJ",
    4.6,
    0.077,
    "77 fJ a SOP as in Spikformer, ICLR 2023 (it counts SOPs only); a MAC as in the 45nm set",
)
INT8 = Costs("int8", 0.23, 0.03, "8-bit integers at 45 nm, Horowitz, ISSCC 2014")
COSTS = {costs.name: costs for costs in (HOROWITZ, SOP_77FJ)}
"""The two sets in use in the field."""

MEMORY_PJ_PER_BYTE = {"SRAM 8 KB": 10 / 8, "SRAM 1 MB": 100 / 8, "DRAM": 1300 / 8}
"""Energy of reading one byte, pJ: 64-bit reads at 45 nm, Horowitz, ISSCC 2014 (DRAM: the lower)."""


def sensitivity_costs() -> list[Costs]:
    """Both sets, 8-bit integers, and the 45 nm set with each figure halved and doubled."""
    varied = [
        Costs(
            f"45nm, MAC x{m:g}, AC x{a:g}", HOROWITZ.mac_pj * m, HOROWITZ.ac_pj * a, "varied 45nm"
        )
        for m in (0.5, 1.0, 2.0)
        for a in (0.5, 1.0, 2.0)
        if (m, a) != (1.0, 1.0)
    ]
    return [HOROWITZ, SOP_77FJ, INT8, *varied]


INPUT_BITS = {"{0,1}": 1, "{-1,0,1}": 2, "integers": 8, "real": 32}
"""Bits that one input value needs, by the kind of values that entered."""


@dataclass(frozen=True)
class LayerEnergy:
    """One layer, per sample over all T steps; operations are counts, not energy."""

    name: str
    operation: str
    """convolution, linear or attention."""
    input: str
    """Values that entered: {0,1}, {-1,0,1}, integers or real."""
    binary: bool
    """Whether the weights that are not 0 share one magnitude."""
    weight_sparsity: float
    """Fraction of the weights that is 0."""
    macs_dense: float
    """Multiply-accumulates of the layer with all its weights, every step computed anew."""
    macs: float
    """Multiply-accumulates that are there: real inputs at real weights that are not 0."""
    sops: float
    """Accumulates caused by spikes: each, by its value, at each weight it meets that is not 0."""
    acs: float
    """All accumulates: SOPs, and real inputs at binary weights."""
    bias_acs: float
    """One accumulate an output for the folded BatchNorm or bias; kept out of the sums of energy."""
    rate: float
    """Mean absolute input: the firing rate, where spikes enter."""
    formula_macs: float
    """MACs of the papers' formula: the first layer, dense, one step of a static image."""
    formula_acs: float
    """ACs of the papers' formula: T x rate x FLOPs, dense weights, no borders."""
    weight_bits: float
    """Storage of the weights: mask entropy, 1 or 32 bits a kept weight, gains."""
    input_bits: float
    """Input values, at the bits that their kind needs."""


COUNTS = tuple(f.name for f in fields(LayerEnergy) if f.type == "float")
SUMMED = tuple(n for n in COUNTS if n not in ("weight_sparsity", "rate"))


@dataclass(frozen=True)
class Energy:
    """A network's energy ledger: layers that sum to the whole, and why it may be refused."""

    layers: tuple[LayerEnergy, ...]
    samples: int
    T: int
    dead: tuple[str, ...]
    """Spiking layers that never fired: their network has no headline."""

    def total(self, what: str) -> float:
        """Sum of one of the counts over the layers."""
        return float(sum(getattr(layer, what) for layer in self.layers))

    def headline_pj(self, costs: Costs) -> float | None:
        """Energy of the operations of one sample, pJ; None where a layer is dead."""
        if self.dead:
            return None
        return costs.energy_pj(self.total("macs"), self.total("acs"))

    def formula_pj(self, costs: Costs) -> float:
        """The papers' estimate for the same network, pJ."""
        return costs.energy_pj(self.total("formula_macs"), self.total("formula_acs"))

    def refusal(self) -> str:
        """Why there is no headline; empty where there is one."""
        if not self.dead:
            return ""
        return (
            f"refused: {len(self.dead)} spiking layers never fired ({', '.join(self.dead[:3])}); "
            "a silent network looks cheap and does nothing"
        )

    def memory_pj(self) -> dict[str, float]:
        """Energy, pJ, of reading every weight and input once a sample, by where they lie."""
        read = (self.total("weight_bits") + self.total("input_bits")) / 8
        return {place: read * cost for place, cost in MEMORY_PJ_PER_BYTE.items()}

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON; ``totals`` are the sums of ``layers``."""
        return {
            "per": f"sample, over all T = {self.T} steps, mean of {self.samples} samples",
            "estimate": True,
            "layers": [
                {f.name: getattr(layer, f.name) for f in fields(layer)} for layer in self.layers
            ],
            "totals": {name: self.total(name) for name in SUMMED},
            "energy_pj": {name: self.headline_pj(costs) for name, costs in COSTS.items()},
            "formula_pj": {name: self.formula_pj(costs) for name, costs in COSTS.items()},
            "memory_pj": self.memory_pj(),
            "costs": {n: {"mac_pj": c.mac_pj, "ac_pj": c.ac_pj, "source": c.source}
                      for n, c in COSTS.items()},
            "dead_layers": list(self.dead),
            "refused": self.refusal(),
        }  # fmt: skip


@torch.no_grad()
def measure_energy(model: nn.Module, batches: Sequence[Tensor], T: int) -> Energy:
    """Count a network's operations on real inputs, layer by layer.

    BatchNorm is folded: into real weights, or, where weights are binary, into each channel's
    threshold and bias; either way one accumulate an output is left, ``bias_acs``. The leak and the
    threshold of the neurons are not counted, as in the papers.

    Args:
        model: its convolutions, linear maps and spiking attentions are counted, in eval mode.
        batches: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``, on the model's device.
        T: time steps of the model.

    Raises:
        DataError: no input, or a model without a layer that multiplies.

    Source: the count by weights and spikes that are there is this project's; the formula is
    Spikformer's (ICLR 2023, section 4), which arXiv 2311.12060 follows.
    """
    if not batches:
        raise DataError("no input to measure energy on; give at least one batch")
    with FiringWatch(model, always=True) as watch:
        counted = count_operations(model, batches, T)
        rates = watch.rates()
    if not counted.layers:
        raise DataError(f"{type(model).__name__} has no convolution or linear map to count")
    modules = dict(model.named_modules())
    static = batches[0].ndim == 4
    last = len(counted.layers) - 1
    rows = [
        _layer(name, layer, modules.get(name), counted, first=i == 0, last=i == last, static=static)
        for i, (name, layer) in enumerate(counted.layers.items())
    ]
    dead = tuple(name for name, rate in rates.items() if rate == 0)
    return Energy(tuple(rows), counted.samples, T, dead)


def _layer(
    name: str,
    count: LayerCount,
    module: nn.Module | None,
    counted: Operations,
    *,
    first: bool,
    last: bool,
    static: bool,
) -> LayerEnergy:
    n = counted.samples
    weighed = module if isinstance(module, (nn.Conv2d, nn.Linear)) else None
    weight = None if weighed is None else effective_weight(weighed)
    binary = weight is not None and is_binary(weight)
    real = count.macs_nonspiking / n
    rate = count.events / count.inputs
    dense = count.macs_t_fold / n
    multiplied = first or (count.kind == "real" and not last)
    return LayerEnergy(
        name=name,
        operation="attention" if weighed is None
        else "convolution" if isinstance(weighed, nn.Conv2d) else "linear",
        input=count.kind,
        binary=binary,
        weight_sparsity=0.0 if weight is None else 1 - float((weight != 0).double().mean()),
        macs_dense=dense,
        macs=0.0 if binary else real,
        sops=count.sops / n,
        acs=count.sops / n + (real if binary else 0.0),
        bias_acs=0.0 if weight is None else count.macs / n / weight[0].numel(),
        rate=rate,
        formula_macs=dense / (counted.T if first and static else 1) if multiplied else 0.0,
        formula_acs=0.0 if multiplied else rate * dense,
        weight_bits=0.0 if weighed is None or weight is None
        else bits_per_weight([weighed]) * weight.numel(),
        input_bits=count.inputs / n * INPUT_BITS[count.kind],
    )  # fmt: skip


def effective_weight(module: nn.Conv2d | nn.Linear) -> Tensor:
    """The weight as it enters the multiplication: masked and, where it is so, binary."""
    weight = module.effective_weight() if isinstance(module, SubnetConv2d) else module.weight
    return weight.detach()


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
