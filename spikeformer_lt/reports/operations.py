"""Exact operation counts of a network on real inputs: MACs, and synaptic operations by nnz."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.subnet import Subnet


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
