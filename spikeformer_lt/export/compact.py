"""The network as it should run: BatchNorm folded, q, k, v in one product, dead channels gone."""

from __future__ import annotations

import copy
import itertools
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.compact_units import (
    CompactAttention,
    CompactConvLayer,
    CompactConvUnit,
    CompactHiddenLayer,
    CompactLinearUnit,
)
from spikeformer_lt.export.folding import can_fold
from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.cnn_units import ConvLayer, HiddenLayer
from spikeformer_lt.layers.mlp import SpikingMLP
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.units import ConvUnit, LinearUnit

__all__ = ["CompactModel", "compact"]


class CompactModel(nn.Module):
    """A network for inference alone, made by `compact`.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.

    Raises:
        ExportError: (train) it has nothing left to train.
    """

    def __init__(self, net: nn.Module, removed: dict[str, int]) -> None:
        super().__init__()
        self.net, self.removed = net, removed

    def forward(self, x: Tensor) -> Tensor:
        """Classify, without a graph for gradients."""
        with torch.no_grad():
            return cast(Tensor, self.net(x))

    def train(self, mode: bool = True) -> Self:
        """Refuse: BatchNorm and masks are folded away."""
        if mode:
            raise ExportError("a compact network cannot be trained; train the ticket it came from")
        return super().train(False)


@torch.no_grad()
def compact(model: nn.Module) -> CompactModel:
    """Copy a trained network into the form it should run in; the network itself is not changed.

    Convolution and linear units of ours are folded wherever they stand; what is not made of them
    stays as it is. ``removed`` of the result counts the channels that went, by layer: those that
    never fire because no weight reaches them, and those that nothing reads.
    """
    net = copy.deepcopy(model).eval().requires_grad_(False)
    spiking = _spike_readers(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is ConvUnit and can_fold(child.norm) and not child.conv.groups > 1:
                setattr(parent, name, CompactConvUnit(child, id(child) in spiking))
            elif type(child) is SpikingSelfAttention and _units_fold(child):
                setattr(parent, name, CompactAttention(child))
            elif type(child) is LinearUnit and can_fold(child.norm):
                setattr(parent, name, CompactLinearUnit(child))
            elif type(child) is ConvLayer and can_fold(child.norm):
                setattr(parent, name, CompactConvLayer(child))
            elif type(child) is HiddenLayer and (child.norm is None or can_fold(child.norm)):
                setattr(parent, name, CompactHiddenLayer(child))
    return CompactModel(net, _remove_dead(net)).eval()


def _units_fold(attn: SpikingSelfAttention) -> bool:
    units = (attn.q, attn.k, attn.v, attn.proj)
    return all(type(unit) is LinearUnit and can_fold(unit.norm) for unit in units)


def _spike_readers(net: nn.Module) -> set[int]:
    """Convolution units of a ConvPEP whose input is spikes: those after a {0, 1} activation."""
    stem: Any = getattr(net, "conv_pep", None)
    if stem is None:
        return set()
    units = stem.units()
    return {id(after) for before, after in itertools.pairwise(units) if _fires(before)}


def _fires(unit: Any) -> bool:
    return bool(getattr(unit.act, "spiking", False))


def _remove_dead(net: nn.Module) -> dict[str, int]:
    removed: dict[str, int] = {}
    steps = int(getattr(net, "T", 1))
    for chain in _chains(net):
        for (name, stage), (_, after) in itertools.pairwise(chain):
            read = (after.conv.weight != 0).flatten(2).any(2).any(0)
            keep = _alive(stage.conv.weight, stage.conv.bias, stage.act, steps) & read
            keep[0] |= not bool(keep.any())  # an empty map cannot be convolved
            if bool(keep.all()):
                continue
            every = torch.ones(stage.conv.weight.shape[1], dtype=torch.bool)
            stage.conv.select(keep, every)
            after.conv.select(torch.ones(len(after.conv.bias), dtype=torch.bool), keep)
            removed[name] = int((~keep).sum())
    for name, mlp in net.named_modules():
        parts: list[Any] = [mlp.fc1, mlp.fc2] if isinstance(mlp, SpikingMLP) else []
        if not parts or not all(isinstance(part, CompactLinearUnit) for part in parts):
            continue
        first, second = parts
        before, after = first.product, second.product
        keep = _alive(before.weight, before.bias, first.act, steps) & (after.weight != 0).any(0)
        keep[0] |= not bool(keep.any())
        if not bool(keep.all()):
            before.weight, before.bias = before.weight[keep], before.bias[keep]
            after.weight = after.weight[:, keep].contiguous()
            removed[f"{name}.fc1"] = int((~keep).sum())
    return removed


def _chains(net: nn.Module) -> list[list[tuple[str, Any]]]:
    """Convolutions each of which is read by the next one alone: of a ConvPEP, of a VGG."""
    found: list[list[tuple[str, Any]]] = []
    for place in ("conv_pep.stages", "layers"):
        try:
            layers = net.get_submodule(place)
        except AttributeError:
            continue
        named = [(f"{place}.{i}", layer) for i, layer in layers.named_children()]
        chain = [(n, m) for n, m in named if not isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
        if all(isinstance(m, CompactConvUnit | CompactConvLayer) for _, m in chain):
            found.append(chain)
    return found


def _alive(weight: Tensor, bias: Tensor, act: Any, T: int) -> Tensor:
    """Channels that some weight reaches, or whose constant current is not silent for T steps."""
    reached = (weight != 0).flatten(1).any(1)
    if isinstance(act, LIF):
        act.reset()
    constant: Tensor = act(bias[None], T)
    if isinstance(act, LIF):
        act.reset()
    alive: Tensor = reached | (constant != 0).any(0)
    return alive
