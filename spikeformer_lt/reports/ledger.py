"""The sparsity ledger: each kind of sparsity apart, never blended into one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.layers.subnet import Subnet
from spikeformer_lt.reports.operations import count_operations
from spikeformer_lt.training.watch import FiringWatch

MAC_PJ, AC_PJ = 4.6, 0.9
"""Energy of a 32-bit multiply-accumulate and accumulate at 45 nm, pJ (Horowitz, ISSCC 2014)."""


@torch.no_grad()
def build_ledger(model: Any, batches: Sequence[Tensor]) -> dict[str, Any]:
    """Count what is left of a model, and measure its firing and operations on real images.

    Args:
        model: with ``T``; a ConvPEP and patches are looked at where there are any.
        batches: images or frames, on the model's device.

    Returns:
        JSON-ready values. ``sparsity``: patch, conv_pep_weight, total_weight (over all convolution
        and linear weights). ``conv_pep_bits_per_weight`` and ``bits_per_weight`` (of the same
        layers as total_weight): see `bits_per_weight`. Both ConvPEP values are None where there
        is none. ``macs`` and ``sops`` are per sample over all T steps. ``energy_pj`` is a
        theoretical estimate, and None with a reason when a layer is dead: a silent network would
        look brilliant.
    """
    pep = getattr(model, "conv_pep", None)
    stem = [] if pep is None else [unit.conv for unit in pep.units()]
    every = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with FiringWatch(model, always=True) as watch:
        counted = count_operations(model, batches, model.T)
        rates = watch.rates()
    dead = [name for name, rate in rates.items() if rate == 0]
    macs = counted.per_sample("macs_nonspiking")
    sops = counted.per_sample("sops")
    return {
        "sparsity": {
            "patch": _patch_sparsity(model),
            "conv_pep_weight": _removed(stem) if stem else None,
            "total_weight": _removed(every),
        },
        "conv_pep_bits_per_weight": bits_per_weight(stem) if stem else None,
        "bits_per_weight": bits_per_weight(every),
        "binary_layers": [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d) and is_binary(_weight(module))
        ],
        "params": sum(p.numel() for p in model.parameters()),
        "nonzero_params": sum(int((_value(m, p) != 0).sum()) for m, p in _parameters(model)),
        "firing_rate": rates,
        "dead_layers": dead,
        "saturated_layers": [name for name, rate in rates.items() if rate == 1],
        "macs": counted.per_sample("macs"),
        "macs_t_fold": counted.per_sample("macs_t_fold"),
        "sops": sops,
        "macs_nonspiking": macs,
        "layers": counted.table(),
        "ledger_samples": counted.samples,
        "energy_pj": None if dead else MAC_PJ * macs + AC_PJ * sops,
        "energy_note": (
            f"refused: {len(dead)} spiking layers never fired ({', '.join(dead[:3])})"
            if dead
            else f"estimate at 45 nm: {MAC_PJ} pJ a MAC, {AC_PJ} pJ a SOP; memory not counted"
        ),
    }


def is_binary(weight: Tensor) -> bool:
    """Whether the weights that are not 0 share one magnitude, in the layer or in each filter.

    A lone weight shares its magnitude with none, so that it takes a filter with two to tell.
    """
    flat = weight.flatten(1).abs()
    kept = flat[flat > 0]
    if kept.numel() > 1 and bool((kept == kept[0]).all()):
        return True
    if int((flat > 0).sum(1).max()) < 2:
        return False
    top = flat.max(1, keepdim=True).values
    return bool(((flat == top) | (flat == 0)).all())


def bits_per_weight(layers: Sequence[nn.Module]) -> float:
    """Bits that the weights of convolutions and linear maps need, over their number.

    A layer costs the entropy of its mask, n H(kept/n), plus for each kept weight 1 bit where it is
    binary and 32 otherwise, plus 32 bits for each gain.
    """
    bits, count = 0.0, 0
    for layer in layers:
        weight = _weight(layer)
        n, kept = weight.numel(), int((weight != 0).sum())
        p = kept / n
        entropy = 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
        binary = is_binary(weight)
        magnitudes = weight.flatten(1).abs().max(1).values
        gains = len(magnitudes[magnitudes > 0].unique()) if binary else 0
        bits += n * entropy + kept * (1 if binary else 32) + 32 * gains
        count += n
    return bits / count


def _patch_sparsity(model: Any) -> float:
    patch = getattr(model, "patch", None)
    if patch is None or patch.index is None:
        return 0.0
    return float(1 - patch.index.shape[1] / model.num_tokens)


def _weight(module: nn.Module) -> Tensor:
    weight = module.effective_weight() if isinstance(module, Subnet) else module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _removed(layers: Sequence[nn.Module]) -> float:
    weights = [_weight(layer) for layer in layers]
    total = sum(w.numel() for w in weights)
    return 1 - sum(int((w != 0).sum()) for w in weights) / total


def _parameters(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, name) for m in model.modules() for name, _ in m.named_parameters(recurse=False)]


def _value(module: nn.Module, name: str) -> Tensor:
    if name == "weight":
        return _weight(module)
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value.detach()
