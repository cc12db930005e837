"""Dead channels of a compact network, physically gone: those that never fire, those nobody reads.

A pair is a layer and the only layer that reads it. A channel of the first goes where no weight
reaches it and its constant current is silent for all steps, or where no weight of the second reads
it. What goes may be all that another channel had, so pairs are looked at until nothing goes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.export.compact_units import (
    CompactConvLayer,
    CompactConvUnit,
    CompactHiddenLayer,
    CompactLinearUnit,
)
from spikeformer_lt.export.folding import FoldedConv
from spikeformer_lt.export.product import Product
from spikeformer_lt.layers.mlp import SpikingMLP
from spikeformer_lt.layers.neuron import LIF

__all__ = ["remove_dead"]

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
        act.reset()
    constant: Tensor = act(bias[None], T)
    if isinstance(act, LIF):
        act.reset()
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
