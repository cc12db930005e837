"""The compact form of a network: normalisation folded, q, k and v in one product, no dead channels.

Units are found by type and channels by the chains that a model declares. A channel is removed if it
never fires, because no weight reaches it and its constant current is silent, or if nothing reads
it. Removals repeat to a fixed point, because one may leave another channel unread.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self, TypeGuard, cast

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, ExportError
from spikeformer_lt.export.inference import (
    FoldedAttention,
    FoldedConvUnit,
    FoldedLinearUnit,
    FoldedUnit,
    select_channels,
)
from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.units import (
    ConvLayer,
    ConvUnit,
    HiddenLayer,
    LinearUnit,
    Unit,
    chains_of,
)

__all__ = ["CompactModel", "compact", "remove_dead"]

OUR_UNITS = (ConvUnit, LinearUnit, ConvLayer, HiddenLayer)


class CompactModel(nn.Module):
    """A network for inference alone, made by `compact`.

    ``removed`` counts the removed channels by the name of their layer; it is None if the model
    declares no chains, so that no channel could be examined.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.

    Raises:
        ExportError: (train) it has nothing left to train.
    """

    def __init__(self, net: nn.Module, removed: dict[str, int] | None) -> None:
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

    Every unit (a `layers.units.Unit`) and every `SpikingSelfAttention` of such units is replaced by
    its folded form, whatever its name; other modules stay as they are.
    """
    net = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_children(net)
    return CompactModel(net, remove_dead(net)).eval()


def _fold_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        folded = _folded_form(child)
        if folded is None:
            _fold_children(child)
        else:
            setattr(parent, name, folded)


def _folded_form(module: nn.Module) -> nn.Module | None:
    """The folded form of a unit or an attention; None of other modules and of odd subclasses."""
    try:
        if type(module) is SpikingSelfAttention:
            parts = (module.q, module.k, module.v, module.proj)
            return FoldedAttention(module) if all(map(_declares_form, parts)) else None
        if not isinstance(module, Unit) or not _declares_form(module):
            return None
        if isinstance(module.synapse, nn.Conv2d):
            return FoldedConvUnit(module)
        return FoldedLinearUnit(module)
    except ConfigError:  # a normalisation without running statistics stays as it is
        return None


def _declares_form(unit: nn.Module) -> bool:
    """Whether ``folded()`` describes the unit's forward: a subclass may change forward alone."""
    for kind in type(unit).__mro__:
        if "folded" in vars(kind) or kind in OUR_UNITS:
            return True
        if "forward" in vars(kind):
            return False
    return False


@dataclass(frozen=True)
class Pair:
    """A folded unit and the only reader of its channels.

    ``repeats`` is the number of the reader's columns per channel, channels innermost: more than 1
    where a map of several places is flattened.
    """

    name: str
    unit: FoldedUnit
    reader: nn.Conv2d | nn.Linear
    repeats: int = 1


@torch.no_grad()
def remove_dead(net: nn.Module) -> dict[str, int] | None:
    """Remove dead channels of a network of folded units, in place; its function is unchanged.

    Returns:
        Number of removed channels by the name of their unit; None if the network has no chains.
    """
    if not chains_of(net):
        return None
    pairs, removed, changed = find_pairs(net), Counter[str](), True
    while changed:
        changed = False
        for pair in pairs:
            columns = (pair.reader.weight != 0).transpose(0, 1).flatten(1).any(1)
            read = columns.view(pair.repeats, -1).any(0)
            folded = pair.unit.synapse
            keep = alive(folded.weight, folded.bias, pair.unit.neuron) & read
            keep[0] |= not bool(keep.any())  # an empty map cannot be convolved
            if bool(keep.all()):
                continue
            select_channels(folded, keep, 0)
            select_channels(pair.reader, keep.repeat(pair.repeats), 1)
            removed[pair.name] += int((~keep).sum())
            changed = True
    return dict(removed)


def find_pairs(net: nn.Module) -> list[Pair]:
    """Every folded unit that one other unit, or the head, alone reads: the links of all chains."""
    found = []
    for chain in chains_of(net):
        for name, after in itertools.pairwise(chain.names):
            unit, reader = net.get_submodule(name), net.get_submodule(after)
            synapse = reader.synapse if isinstance(reader, FoldedUnit) else reader
            repeats = chain.repeats if after == chain.names[-1] else 1
            if not isinstance(unit, FoldedUnit) or unit.neuron is None:
                continue
            if _is_dense(unit.synapse) and _is_dense(synapse):
                found.append(Pair(name, unit, synapse, repeats))
    return found


def _is_dense(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether each output of a layer may read every input."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def alive(weight: Tensor, bias: Tensor, act: Any) -> Tensor:
    """Channels that some weight reaches, or whose constant current is not silent.

    From rest, the voltage of a LIF under a constant current approaches its end monotonically, so a
    channel fires in some stream if rest or end reach the threshold. One just below is kept, because
    rounding may lift it.
    """
    reached = (weight != 0).flatten(1).any(1)
    if not isinstance(act, LIF):
        constant: Tensor = act(bias[None], 1)
        return reached | (constant[0] != 0)
    rest: float = act.v_reset or 0.0
    end = rest + bias.double() * (1.0 if act.decay_input else act.tau)
    highest: Tensor = end.clamp(min=rest)
    silent: Tensor = highest < act.v_threshold - 1e-4 * max(1.0, abs(act.v_threshold))
    return reached | ~silent
