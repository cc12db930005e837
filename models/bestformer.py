"""BESTformer (Cao et al., IJCAI 2025, arXiv 2501.05904): weights and attention maps of one bit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.layers.attention import (
    AttentionCount,
    EncoderBlock,
    SpikingAttention,
    SpikingMLP,
)
from spikeformer_lt.layers.inputs import at_least_one
from spikeformer_lt.layers.kernels.reference import straight_through
from spikeformer_lt.layers.neuron import carried, make_activation
from spikeformer_lt.layers.subnet import EffectiveConv2d, EffectiveLinear, geometry, signs
from spikeformer_lt.models.spikformer_convert import BESTFORMER
from spikeformer_lt.models.spiking_transformer import SpikingTransformer
from spikeformer_lt.models.spikingformer import SpikingTokenizer
from spikeformer_lt.registry import register_model


def balanced_signs(weight: Tensor) -> Tensor:
    """-1 or +1 for each weight that is not 0, by its side of the mean of those of its filter.

    Gradients pass the sign unchanged, to weights standardised in each filter before it, and pass a
    weight that is 0 and stays so. Signs are their own balanced signs.

    Source: Qin et al., CVPR 2020 (arXiv 1909.10788), section 3.2 (Libra-PB), without its gain.
    """
    dims, there = tuple(range(1, weight.ndim)), weight != 0
    count = there.sum(dims, keepdim=True)
    mean = weight.sum(dims, keepdim=True) / count.clamp(min=1)
    centred = torch.where(there, weight - mean, 0.0)
    variance = centred.square().sum(dims, keepdim=True) / (count - 1).clamp(min=1)
    scaled = centred / torch.where(variance > 0, variance, 1.0).sqrt()
    found = torch.where(there, signs(centred), 0.0)
    return straight_through(found.detach(), torch.where(there, scaled, weight))


class _Balanced(nn.Module):
    """Geometry, weight and bias of another layer, run on balanced signs."""

    form = staticmethod(balanced_signs)
    weight: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__(**geometry(layer))
        self.weight, self.bias = layer.weight, layer.bias

    def effective_weight(self) -> Tensor:
        """The weight that the layer runs on, of -1, 0 and +1."""
        return balanced_signs(self.weight)


class BalancedConv2d(_Balanced, EffectiveConv2d):
    """A convolution that runs on the :func:`balanced_signs` of its weight."""


class BalancedLinear(_Balanced, EffectiveLinear):
    """A linear map that runs on the :func:`balanced_signs` of its weight."""


def balance(model: nn.Module, kept: Collection[nn.Module]) -> None:
    """Replace the convolutions and linear maps of a model but for `kept` by balanced ones."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in kept:
                made = BalancedLinear if isinstance(layer, nn.Linear) else BalancedConv2d
                setattr(parent, name, made(layer))


class BinaryMapAttention(SpikingAttention):
    """``proj(LIF((M v) * scale * g))`` with a spiking map ``M = LIF(q k^T)``.

    The map's neurons have the threshold 1 and a soft reset; g is learned for each step and head.

    Args:
        dim, num_heads, options: as of a :class:`SpikingAttention`.
        T: steps that have a g of their own; a later step takes that of the last one.
        scale: factor of the sums.

    Source: arXiv 2501.05904, section 4; thresholds, scale and the place of g from its code.
    """

    roles: ClassVar = ("q", "k", "v")
    inner: ClassVar = ("map_act",)
    rescales: ClassVar = True

    def __init__(
        self, dim: int, num_heads: int, T: int, *, scale: float = 0.125, **options: Any
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.scale = scale
        own: dict[str, Any] = {"v_threshold": 1.0, "v_reset": None}
        self.map_act = make_activation("lif", options.get("neuron"), **own)
        self.gains = nn.Parameter(torch.ones(T * num_heads))  # [T, h]; one axis, as no matrix

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Attend between the tokens of each step."""
        spikes, parts = self.spikes(tokens, T)
        q, k, v = map(self._heads, parts if spikes is None else spikes.unbind(-2))
        seen: Tensor = self.map_act(q @ k.transpose(-2, -1), T)
        rescale = 1.0 if self.rescale_to is None else self.rescale_to / tokens.shape[2]
        summed = (seen @ v) * (self._gains(T, q.shape[1]) * (self.scale * rescale))
        current = rearrange(summed, "t b h n d -> t b n (h d)")
        out: Tensor = self.proj(self.attn_act(current, T), T)
        return out

    def _gains(self, T: int, batch: int) -> Tensor:
        """Gains of the next T steps, ``[T, 1, h, 1, 1]``; a carried state counts the steps."""
        state, begun = carried(), 0
        if state is not None:
            known = state.voltages.get(self)
            begun = int(known[0]) if known is not None and len(known) == batch else 0
            state.voltages[self] = torch.full((batch,), float(begun + T), device=self.gains.device)
        table = self.gains.unflatten(0, (-1, self.num_heads))
        steps = torch.arange(begun, begun + T, device=table.device).clamp(max=len(table) - 1)
        return table[steps][:, None, :, None, None]

    def operations(self, *spikes: Tensor) -> AttentionCount:
        """Accumulates: coincidences of q and k, then of the map and v."""
        *parts, seen = (part.double() for part in spikes)
        q, k, v = map(self._heads, parts)
        met = q @ k.transpose(-2, -1)
        macs = 2 * q.numel() * q.shape[-2]
        return AttentionCount(macs, macs, float(met.sum() + (seen @ v).sum()))


class ReversibleBlock(EncoderBlock):
    """Attention and MLP, each added to the mean of two streams of currents, side by side.

    ``a' = attn(b) + (a + b) / 2`` and ``b' = mlp(a') + (b + a') / 2``, from which b and a follow
    again. A neuron fires before each branch.

    Shape: in ``[T|1, B, N, 2 D]``, of a and b -> out ``[T, B, N, 2 D]``.

    Source: arXiv 2501.05904, section 4 (coupled streams).
    """

    def forward(self, tokens: Tensor, T: int, policy: Tensor | None = None) -> Tensor:
        """Run the block."""
        first, second = tokens.chunk(2, -1)
        first = self.attn(self.fired(second, T), T) + (first + second) / 2
        act: Any = self.before_mlp_act
        second = self.mlp(act(first, T), T) + (second + first) / 2
        return torch.cat((first, second), -1)


class Bestformer(SpikingTransformer):
    """A Spikingformer of 1-bit weights but in its first convolution and its head.

    Args:
        num_classes, embed_dim, num_heads, mlp_ratio, attn_scale, attn_threshold, options: as of
            :class:`SpikingTransformer`.
        T: time steps; each has gains of its own in every attention.
        depth: blocks L.
        pools: which of the four first maps of the tokenizer are halved.
        stem_convs: of those four the last so many are there: 4, or 2 or 1 as a control.
        activation: of the tokenizer.

    The head reads both streams: its logits are the mean of the published network's two heads,
    which that network predicts by, and which it trains by labels and by a teacher. So its K biases
    are one count less than published. A weight that a search removes is 0 and stays out of the
    mean that the others are compared with.
    """

    published = BESTFORMER
    streams = 2

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        depth: int = 4,
        pools: Sequence[bool] = (False, False, True, True),
        stem_convs: int = 4,
        activation: str = "lif",
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        at_least_one(depth=depth)
        check(depth <= 1000, "depth", depth, "at most 1,000 blocks")
        own: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        own |= {"pools": pools, "convs": stem_convs}
        self.stem = SpikingTokenizer(self.in_channels, self.embed_dim, **own)
        self.build(self._reversible() for _ in range(depth))
        balance(self, (self.stem.units()[0].unit.synapse, self.head))

    def _reversible(self) -> ReversibleBlock:
        sizes = dict(self._block)
        hidden = int(self.embed_dim * sizes.pop("mlp_ratio"))
        same: dict[str, Any] = {"bias": False, "neuron": self.neuron, "current": True}
        attn = BinaryMapAttention(self.embed_dim, self.num_heads, self.T, **{**sizes, **same})
        return ReversibleBlock(attn, SpikingMLP(self.embed_dim, hidden, **same), "ms", self.neuron)


def sized(defaults: dict[str, Any], kwargs: dict[str, Any]) -> Bestformer:
    """Make a BESTformer of a preset's sizes, but for what `kwargs` say."""
    return Bestformer(**{**defaults, **kwargs})


@register_model
def bestformer_cifar(**kwargs: Any) -> Bestformer:
    """BESTformer-4-384 for 32x32 RGB images, T 4 (9.31 M parameters, 1 bit each but for 0.1 %)."""
    return sized({"embed_dim": 384, "depth": 4, "num_heads": 8}, kwargs)


@register_model
def bestformer_toy(**kwargs: Any) -> Bestformer:
    """A BESTformer under 60 k weights for 32x32 images: documentation, tests, small machines."""
    return sized({"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}, kwargs)


@register_model
def bestformer_digits(**kwargs: Any) -> Bestformer:
    """BESTformer-2-64 for 16x16 images (16 tokens): the embedded digits on small machines."""
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "image_size": 16}
    return sized(sizes, kwargs)
