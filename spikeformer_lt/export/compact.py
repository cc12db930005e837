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
from spikeformer_lt.export.removal import remove_dead
from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.cnn_units import ConvLayer, HiddenLayer
from spikeformer_lt.layers.mlp import SpikingMLP
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
                setattr(parent, name, CompactAttention(child, id(child) in spiking))
            elif type(child) is LinearUnit and can_fold(child.norm):
                setattr(parent, name, CompactLinearUnit(child, whole=id(child) in spiking))
            elif type(child) is ConvLayer and can_fold(child.norm):
                setattr(parent, name, CompactConvLayer(child, id(child) in spiking))
            elif type(child) is HiddenLayer and (child.norm is None or can_fold(child.norm)):
                setattr(parent, name, CompactHiddenLayer(child))
    return CompactModel(net, remove_dead(net)).eval()


def _units_fold(attn: SpikingSelfAttention) -> bool:
    units = (attn.q, attn.k, attn.v, attn.proj)
    return all(type(unit) is LinearUnit and can_fold(unit.norm) for unit in units)


def _spike_readers(net: nn.Module) -> set[int]:
    """Layers whose input is spikes, or whole numbers from 0 to 255 that are sums of spikes.

    Convolutions after a {0, 1} activation, max-pools between; of an encoder whose tokens come from
    such a ConvPEP all that read the residual stream; the second half of every MLP.
    """
    stem: Any = getattr(net, "conv_pep", None)
    units = list(getattr(net, "layers", [])) if stem is None else stem.units()
    units = [unit for unit in units if not isinstance(unit, nn.MaxPool2d)]
    pairs = list(itertools.pairwise(units))
    before: Any = getattr(net, "stem", None)
    for block in getattr(net, "blocks", []) if before is not None else []:
        inside = [getattr(block, name, None) for name in ("conv1", "conv2", "shortcut")]
        pairs += [(before, inside[0]), (inside[0], inside[1]), (before, inside[2])]
        before = block
    readers = [after for before, after in pairs if _fires(before)]
    blocks: Any = getattr(net, "blocks", []) if stem is not None else []
    if stem is not None and all(_fires(unit) for unit in units) and 2 + 2 * len(blocks) < 256:
        readers += [part for block in blocks for part in (block.attn, block.mlp.fc1)]
    readers += [part.fc2 for part in net.modules() if isinstance(part, SpikingMLP)]
    return {id(reader) for reader in readers}


def _fires(unit: Any) -> bool:
    return bool(getattr(getattr(unit, "act", None), "spiking", False))
