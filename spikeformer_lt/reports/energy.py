"""Energy per layer, counted at the spikes and weights there are, beside the papers' formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import DataError
from spikeformer_lt.layers.subnet import SubnetConv2d
from spikeformer_lt.reports.energy_costs import COSTS, MEMORY_PJ_PER_BYTE, Costs
from spikeformer_lt.reports.ledger import bits_per_weight, is_binary
from spikeformer_lt.reports.operations import LayerCount, Operations, count_operations
from spikeformer_lt.training.watch import FiringWatch

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
