"""Dead channels of a compact network, physically gone: those that never fire, those nobody reads.

A pair is a layer and the only layer that reads it. A channel of the first goes where no weight
reaches it and its constant current is silent for all steps, or where no weight of the second reads
it. What goes may be all that another channel had, so pairs are looked at until nothing goes.

The network as it should run: BatchNorm folded, q, k, v in one product, dead channels gone.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.inference import (
    CompactAttention,
    CompactConvLayer,
    CompactConvUnit,
    CompactHiddenLayer,
    CompactLinearUnit,
    FoldedConv,
    Product,
    can_fold,
)
from spikeformer_lt.layers.attention import SpikingMLP, SpikingSelfAttention
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.units import ConvLayer, ConvUnit, HiddenLayer, LinearUnit

__all__ = ["CompactModel", "compact", "remove_dead"]

CONVOLUTIONS = CompactConvUnit | CompactConvLayer


@dataclass(frozen=True)
class Pair:
    """A layer, its activation, and what alone reads it.

    ``repeats`` is how many columns of the reader stand for one channel, channels innermost, as
    where a map of several places is flattened.
    """

    name: str
    synapses: Any
    act: Any
    reader: Any
    repeats: int = 1


@torch.no_grad()
def remove_dead(net: nn.Module) -> dict[str, int]:
    """Cut dead channels out of a compact network, in place; the function it computes stays.

    Args:
        net: the network inside of a `CompactModel`.

    Returns:
        Number of channels that went, by the name of the layer that made them.
    """
    pairs, removed = find_pairs(net), Counter[str]()
    steps, going = int(getattr(net, "T", 1)), True
    while going:
        going = False
        for pair in pairs:
            weight = pair.synapses.weight
            reader = pair.reader.weight.flatten(2) if pair.reader.weight.ndim > 2 else None
            columns = pair.reader.weight if reader is None else (reader != 0).any(2)
            read = (columns != 0).any(0).view(pair.repeats, -1).any(0)
            keep = alive(weight, pair.synapses.bias, pair.act, steps) & read
            keep[0] |= not bool(keep.any())  # an empty map cannot be convolved
            if bool(keep.all()):
                continue
            _select(pair.synapses, keep, 0)
            _select(pair.reader, keep.repeat(pair.repeats), 1)
            removed[pair.name] += int((~keep).sum())
            going = True
    return dict(removed)


def find_pairs(net: nn.Module) -> list[Pair]:
    """Every layer that a single other one reads: of a ConvPEP, CNN, residual block or MLP."""
    found = []
    chains = _chains(net)
    for chain in chains:
        for (name, made), (_, after) in itertools.pairwise(chain):
            found.append(Pair(name, made.conv, made.act, after.conv))
    for name, part in net.named_modules():
        if isinstance(part, SpikingMLP):
            units: list[Any] = [part.fc1, part.fc2]
            if all(isinstance(unit, CompactLinearUnit) for unit in units):
                found.append(Pair(f"{name}.fc1", units[0].product, units[0].act, units[1].product))
            continue
        block: list[Any] = [getattr(part, place, None) for place in ("conv1", "conv2")]
        if all(isinstance(layer, CompactConvLayer) for layer in block):
            first, second = block
            found.append(Pair(f"{name}.conv1", first.conv, first.act, second.conv))
    return found + _classifier(net, [chain for chain in chains if hasattr(net, "pooled")])


def _classifier(net: Any, chains: list[list[tuple[str, Any]]]) -> list[Pair]:
    """The last convolution of a VGG, averaged and flattened, and its hidden layer."""
    hidden: Any = getattr(net, "hidden", None)
    head: Any = getattr(net, "head", None)
    if not isinstance(head, nn.Linear):
        return []
    found = []
    if isinstance(hidden, CompactHiddenLayer):
        found.append(Pair("hidden", hidden.product, hidden.act, head))
    reader = hidden.product if found else head if hidden is None else None
    for chain in chains if reader is not None else []:
        name, last = chain[-1]
        if isinstance(last, CompactConvLayer) and last.act is not None:
            found.append(Pair(name, last.conv, last.act, reader, net.pooled**2))
    return found


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
        if chain and all(isinstance(m, CONVOLUTIONS) for _, m in chain):
            found.append(chain)
    return found


def alive(weight: Tensor, bias: Tensor, act: Any, T: int) -> Tensor:
    """Channels that some weight reaches, or whose constant current is not silent.

    A stream may run for more than T steps, so the voltage that a current leads to in the end counts
    as well; one just below the threshold is kept, since rounding may lift it.
    """
    reached = (weight != 0).flatten(1).any(1)
    lively = reached
    if isinstance(act, LIF):
        end = (act.v_reset or 0.0) + bias.double() * (1.0 if act.decay_input else act.tau)
        lively = lively | ~(end < act.v_threshold - 1e-4 * max(1.0, abs(act.v_threshold)))
    constant: Tensor = act(bias[None], T)
    return lively | (constant != 0).any(0)


def _select(layer: Any, keep: Tensor, dim: int) -> None:
    """Keep these outputs (dim 0) or inputs (dim 1) of a layer."""
    if isinstance(layer, FoldedConv):
        every = [torch.ones(size, dtype=torch.bool) for size in layer.weight.shape[:2]]
        every[dim] = keep
        layer.select(*every)
        return
    if isinstance(layer, Product):
        layer.select(keep, dim)
        return
    assert isinstance(layer, nn.Linear)
    assert dim == 1
    weight = layer.weight[:, keep].contiguous()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.in_features = weight.shape[1]


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
    units = list(getattr(net, "layers", [])) if stem is None else [u for _, u in stem.units()]
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
