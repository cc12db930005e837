"""Exact operation counts of a network on real inputs: MACs, and synaptic operations by nnz.

The sparsity ledger: each kind of sparsity apart, never blended into one number.

Spike-purity audit: every tensor that enters a multiplication and is not made of spikes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.patches import kept_count, patches_of
from spikeformer_lt.layers.subnet import Subnet
from spikeformer_lt.training.monitor import FiringWatch


@dataclass
class LayerCount:
    """Operations of one layer, summed over all samples seen."""

    macs: float = 0.0
    """Multiply-accumulates as executed: what is the same at every step is computed once."""
    macs_t_fold: float = 0.0
    """The same with every step computed anew, as the literature counts (T times per step)."""
    sops: float = 0.0
    """Synaptic operations: each input spike times the weights it meets that are not 0; integer
    inputs count by value, as repeated accumulates."""
    macs_nonspiking: float = 0.0
    """Multiply-accumulates at weights that are not 0, where the input is not integer-valued."""
    events: float = 0.0
    """Sum of the absolute input values."""
    inputs: float = 0.0
    """Input elements."""
    kind: str = "{0,1}"
    """Values that entered: {0,1}, {-1,0,1}, integers, or real."""


@dataclass
class Operations:
    """Counts of all layers that multiply, in the order in which they first ran."""

    T: int
    samples: int = 0
    batch: int = 0
    """Samples of the batch in flight."""
    layers: dict[str, LayerCount] = field(default_factory=dict)

    def per_sample(self, what: str) -> float:
        """A total over the layers, per sample and over all T steps."""
        return float(sum(getattr(layer, what) for layer in self.layers.values()) / self.samples)

    def table(self) -> dict[str, dict[str, Any]]:
        """Per layer and sample, ready for JSON."""
        names = ("macs", "macs_t_fold", "sops", "macs_nonspiking", "events")
        return {
            name: {**{k: getattr(layer, k) / self.samples for k in names}, "input": layer.kind}
            for name, layer in self.layers.items()
        }


KINDS = ("{0,1}", "{-1,0,1}", "integers", "real")


def kind_of(x: Tensor) -> str:
    """What values a tensor holds: {0,1}, {-1,0,1}, integers or real."""
    if not bool((x == x.round()).all()):
        return "real"
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        return "{0,1}"
    return "{-1,0,1}" if low >= -1 and high <= 1 else "integers"


@torch.no_grad()
def count_operations(model: nn.Module, batches: Iterable[Tensor], T: int) -> Operations:
    """Run the model in eval mode over batches and count.

    Args:
        model: its convolutions, linear maps and spiking attentions are counted.
        batches: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``.
        T: time steps of the model.

    Source: SOPs by value and by weights that are not 0 are this project's own rule; the papers'
    T x firing rate x FLOPs is its mean-field form for dense weights.
    """
    total = Operations(T)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _hooked(model, total):
            for images in batches:
                total.batch = len(images)
                model(images)
                total.samples += len(images)
    finally:
        for module, mode in training.items():
            module.training = mode
    return total


@contextmanager
def _hooked(model: nn.Module, total: Operations) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(_conv_hook(name, total)))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(_linear_hook(name, total)))
        elif isinstance(module, SpikingSelfAttention):
            seen: dict[str, Tensor] = {}
            for part in ("q", "k", "v"):
                unit = getattr(module, part)
                handles.append(unit.register_forward_hook(_keeper(seen, part)))
            handles.append(module.register_forward_hook(_attention_hook(name, total, seen)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeper(seen: dict[str, Tensor], part: str) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[part] = output

    return keep


def _layer(total: Operations, name: str, x: Tensor) -> LayerCount:
    layer = total.layers.setdefault(name, LayerCount())
    kind = kind_of(x)
    layer.kind = max(layer.kind, kind, key=KINDS.index)
    layer.events += float(x.abs().double().sum())
    layer.inputs += x.numel()
    return layer


def _add(layer: LayerCount, macs: float, operations: float, folds: float, real: bool) -> None:
    layer.macs += macs
    layer.macs_t_fold += macs * folds
    if real:
        layer.macs_nonspiking += operations
    else:
        layer.sops += operations


def _conv_hook(name: str, total: Operations) -> Any:
    def hook(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        layer = _layer(total, name, x)
        weight = module.effective_weight() if isinstance(module, Subnet) else module.weight
        groups = module.groups
        fan_out = (weight != 0).unflatten(0, (groups, -1)).sum(1).double()
        real = layer.kind == "real"
        values = torch.ones_like(x[:1]) if real else x.abs()
        met = F.conv2d(
            values.double(), fan_out, None, module.stride, module.padding, module.dilation, groups
        )
        operations = float(met.sum()) * (len(x) if real else 1)
        macs = output.numel() * weight[0].numel()
        _add(layer, macs, operations, total.T * total.batch / len(x), real)

    return hook


def _linear_hook(name: str, total: Operations) -> Any:
    def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        layer = _layer(total, name, x)
        fan_out = (module.weight != 0).sum(0).double()
        real = layer.kind == "real"
        values = torch.ones_like(x) if real else x.abs()
        operations = float((values.double().flatten(0, -2).sum(0) * fan_out).sum())
        # Time comes first, except in a score that reads one mean over time, [B, N, D].
        timed = x.shape[0] in (1, total.T) and x.shape[1] == total.batch
        folds = total.T / x.shape[0] if timed else 1.0
        _add(layer, output.numel() * x.shape[-1], operations, folds, real)

    return hook


def _attention_hook(name: str, total: Operations, seen: dict[str, Tensor]) -> Any:
    def hook(module: SpikingSelfAttention, inputs: Any, output: Tensor) -> None:
        q, k, v = (
            rearrange(seen[p].double(), "t b n (h d) -> t b h n d", h=module.num_heads)
            for p in ("q", "k", "v")
        )
        tokens, width = q.shape[-2:]
        if tokens >= width:
            first = k.transpose(-2, -1) @ v  # [d, d] coincidences of k and v
            second = (q.sum(-2) * (first != 0).sum(-1)).sum()
        else:
            first = q @ k.transpose(-2, -1)  # [N, N] coincidences of q and k
            second = ((first != 0).sum(-2) * v.sum(-1)).sum()
        layer = _layer(total, f"{name}.attention", q)
        macs = 2 * q.numel() * min(tokens, width)
        _add(layer, macs, float(first.sum() + second), 1.0, False)

    return hook


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
    stem = [] if pep is None else [unit.conv for _, unit in pep.units()]
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
    patch = patches_of(model)
    if patch is None:
        return 0.0
    return float(1 - kept_count(model.num_tokens, patch.sparsity) / model.num_tokens)


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


def audit(model: Any, images: Tensor) -> dict[str, Any]:
    """List the inputs of convolutions, linear maps and attentions that are not {0,1}.

    Args:
        model: with ``T``; run in eval mode on the images.
        images: probe batch ``[B, C, H, W]`` or ``[B, T, C, H, W]``.

    Returns:
        ``impure``: {layer: kind of values}; ``pure_after_first``: whether only the first
        convolution, which reads the image, and the head, which reads a mean, are listed.
    """
    counted = count_operations(model, [images], model.T)
    impure = {n: layer.kind for n, layer in counted.layers.items() if layer.kind != "{0,1}"}
    first = next(iter(counted.layers))
    return {"impure": impure, "pure_after_first": set(impure) <= {first, "head"}}
