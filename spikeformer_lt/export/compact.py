"""The network as it should run: BatchNorm folded, q, k, v in one product, dead channels gone."""

from __future__ import annotations

import copy
import itertools
from typing import Any, Self, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.firing import fire
from spikeformer_lt.export.folding import FoldedConv, Product, can_fold, fold_linear
from spikeformer_lt.layers.attention import SpikingSelfAttention, spiking_attention
from spikeformer_lt.layers.mlp import SpikingMLP
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.units import ConvUnit, LinearUnit, map_rows

__all__ = ["CompactModel", "compact"]


class CompactConvUnit(nn.Module):
    """A `ConvUnit` whose BatchNorm is in its convolution; same shapes, same calls."""

    def __init__(self, unit: ConvUnit, spikes_in: bool) -> None:
        super().__init__()
        self.conv = FoldedConv(unit.conv, unit.norm, spikes_in)
        self.act, self.pool, self.pool_before_act = unit.act, unit.pool, unit.pool_before_act

    def forward(self, rows: Tensor, T: int, need_current: bool = False) -> tuple[Tensor, Tensor]:
        """Return (activations, input current of the activation)."""
        current = map_rows(rows, self.conv)
        if self.pool is not None and self.pool_before_act:
            current = map_rows(current, self.pool)
            return self.act(current, T), current
        out = self.act(current, T)
        return (out if self.pool is None else map_rows(out, self.pool)), current


class CompactLinearUnit(nn.Module):
    """One or several `LinearUnit` on the same input, as one product and one LIF."""

    def __init__(self, *units: LinearUnit) -> None:
        super().__init__()
        folded = [fold_linear(unit.linear, unit.norm) for unit in units]
        weights, biases = zip(*folded, strict=True)
        self.product = Product(torch.cat(weights), torch.cat(biases))
        self.act = units[0].act

    def forward(self, tokens: Tensor, T: int, rows: int | None = None) -> Tensor:
        """Spikes ``[T, B, N, rows]`` of ``[T|1, B, N, D]``; all rows by default."""
        return fire(self.act, self.product(tokens, rows), T)


class CompactAttention(SpikingSelfAttention):
    """Spiking self attention with one product for q, k and v."""

    def __init__(self, attn: SpikingSelfAttention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.scale, self.key_gain = attn.num_heads, attn.scale, attn.key_gain
        self.qkv = CompactLinearUnit(attn.q, attn.k, attn.v)
        self.attn_act = attn.attn_act
        self.out = CompactLinearUnit(attn.proj)

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Attend between the tokens of each step."""
        q, k, v = (self._heads(part) for part in self.qkv(tokens, T).chunk(3, -1))
        summed = spiking_attention(q, k, v) * (self.scale * self.key_gain)
        mixed = fire(self.attn_act, rearrange(summed, "t b h n d -> t b n (h d)"), T)
        return self.out(mixed, T)  # type: ignore[no-any-return]

    def received(self, tokens: Tensor, T: int) -> Tensor:
        """Attention that each token receives, ``[B, N]``; v is not computed."""
        two = self.qkv(tokens, T, 2 * len(self.qkv.product.bias) // 3)
        q, k = (self._heads(part) for part in two.chunk(2, -1))
        return (k @ q.sum(-2).unsqueeze(-1)).squeeze(-1).mean((0, 2))


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
    stem: Any = getattr(net, "conv_pep", None)
    stages = [*getattr(stem, "stages", [])]
    if all(isinstance(stage, CompactConvUnit) for stage in stages):
        for i, (stage, after) in enumerate(itertools.pairwise(stages)):
            read = (after.conv.weight != 0).flatten(2).any(2).any(0)
            keep = _alive(stage.conv.weight, stage.conv.bias, stage.act, steps) & read
            keep[0] |= not bool(keep.any())  # an empty map cannot be convolved
            if bool(keep.all()):
                continue
            every = torch.ones(stage.conv.weight.shape[1], dtype=torch.bool)
            stage.conv.select(keep, every)
            after.conv.select(torch.ones(len(after.conv.bias), dtype=torch.bool), keep)
            removed[f"conv_pep.stages.{i}"] = int((~keep).sum())
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
