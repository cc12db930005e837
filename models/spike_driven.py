"""Spike-Driven Transformer (Yao et al., NeurIPS 2023, arXiv 2307.01694): masks and sums alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spikeformer_lt.layers.inputs import at_least_one
from spikeformer_lt.layers.neuron import make_activation
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.stems import StemUnit
from spikeformer_lt.layers.units import ConvLayer, Reads, emitted, map_rows
from spikeformer_lt.models.spikformer_convert import SPIKE_DRIVEN
from spikeformer_lt.models.spiking_transformer import CurrentStem, SpikingTransformer, draw_normal
from spikeformer_lt.registry import register_model

log = logging.getLogger(__name__)


class MembraneStem(CurrentStem):
    """Four convolutions whose last current, pooled, goes on beside that of a position encoding.

    Args:
        in_channels, dim: channels of the input; width D of maps of D/8, D/4, D/2, D channels.
        pools: for each of the four, whether its spikes, of the last its current, are max-pooled.
        convs, activation, neuron: as of a :class:`ConvPEP`.

    Source: Yao et al., NeurIPS 2023, arXiv 2307.01694, eq. 2-4 (Spiking Patch Splitting).
    """

    fired = 3

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        pools: Sequence[bool] = (False, False, True, True),
        **options: Any,
    ) -> None:
        super().__init__(in_channels, dim, pools=pools, **options)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pools[3] else None
        self.act = make_activation(self.activation, self.neuron)
        self.rpe = ConvLayer(dim, dim)
        self.set_reads()

    def units(self) -> list[StemUnit]:
        """The four units in the order of the data, then the position encoding."""
        return [*super().units(), StemUnit("shortcut", self.rpe)]

    def firing(self) -> list[Any]:
        """The units with an activation, and the stem, whose own is before the encoding."""
        return [*super().firing(), self]

    def emit(self) -> Reads:
        """Tell the units what they read; the tokens are real."""
        super().emit()
        self.rpe.reads = emitted(self.act)
        return "real"

    def forward(self, images: Tensor, T: int, need: str = "") -> tuple[Tensor, Tensor]:
        """Return tokens, twice: they are currents themselves."""
        rows = self.currents(images, T)
        rows = rows if self.pool is None else map_rows(rows, self.pool)
        tokens = (rows + call(self.rpe, self.act(rows, T), T)).flatten(2, 3)
        return tokens, tokens


class SpikeDrivenTransformer(SpikingTransformer):
    """A transformer whose every product but the first and the head's is a sum where spikes are.

    Args:
        num_classes, T, embed_dim, num_heads, mlp_ratio, attn_threshold, options: as of
            :class:`SpikingTransformer`.
        depth: blocks L.
        pools: which of the four maps of the stem are halved.
        stem_convs: of those four the last so many are there: 4, or 2 or 1 as a control.
        dvs_mode: erode silence in the attention, as published for event frames; no token can leave
            then.
        attention: ``sdsa``, or of the other kinds in layers.attention.
        activation: of the stem.

    A LIF fires before the head. Counts of parameters are less than published by h^2 a block: those
    of a convolution over heads that no forward reads.
    """

    published = SPIKE_DRIVEN

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        depth: int = 2,
        pools: Sequence[bool] = (False, False, True, True),
        stem_convs: int = 4,
        dvs_mode: bool = False,
        attention: str = "sdsa",
        activation: str = "lif",
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        at_least_one(depth=depth)
        own: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        own |= {"pools": pools, "convs": stem_convs}
        self.stem = MembraneStem(self.in_channels, self.embed_dim, **own)
        if dvs_mode and attention != "sdsa":
            log.warning("dvs_mode=True erodes sdsa alone: it changes nothing of %s", attention)
        self.keeps_tokens = "with dvs_mode" if dvs_mode and attention == "sdsa" else ""
        height, width = (side // self.stem.stride for side in self.image_size)
        grid = (height, width) if self.keeps_tokens else None
        blocks = self.make_blocks(depth, attention, residual="ms", grid=grid)
        self.build(blocks, head_fires=True)

    def init_weights(self) -> None:
        """Draw all weights anew from a normal distribution of deviation 0.02, cut at 2."""
        draw_normal((nn.Linear, nn.Conv2d), self)


def sized(defaults: dict[str, Any], kwargs: dict[str, Any]) -> SpikeDrivenTransformer:
    """Make a Spike-Driven Transformer of a preset's sizes, but for what `kwargs` say."""
    return SpikeDrivenTransformer(**{**defaults, **kwargs})


@register_model
def sdt_cifar_2_256(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-2-256 for 32x32 RGB images, T 4."""
    return sized({"embed_dim": 256}, kwargs)


@register_model
def sdt_cifar_2_512(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-2-512 for 32x32 RGB images, T 4 (10.2 M parameters)."""
    return sized({"embed_dim": 512}, kwargs)


@register_model
def sdt_dvs(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-2-256 for 64x64 event frames of CIFAR10-DVS, T 10."""
    sizes = {"embed_dim": 256, "T": 10, "in_channels": 2, "image_size": 64, "dvs_mode": True}
    return sized(sizes, kwargs)


@register_model
def sdt_gesture(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-2-256 for 128x128 event frames of DVS128 Gesture, T 16."""
    sizes = {"embed_dim": 256, "T": 16, "in_channels": 2, "image_size": 128, "dvs_mode": True}
    return sized({**sizes, "num_classes": 11, "pools": (False, True, True, True)}, kwargs)


def _imagenet(depth: int, dim: int, kwargs: dict[str, Any]) -> SpikeDrivenTransformer:
    sizes = {"embed_dim": dim, "depth": depth, "image_size": 224, "num_classes": 1000}
    return sized({**sizes, "pools": (True,) * 4}, kwargs)


@register_model
def sdt_imagenet_8_384(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-8-384 for 224x224 RGB images, T 4 (16.8 M parameters)."""
    return _imagenet(8, 384, kwargs)


@register_model
def sdt_imagenet_6_512(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-6-512 for 224x224 RGB images, T 4 (23.4 M parameters)."""
    return _imagenet(6, 512, kwargs)


@register_model
def sdt_imagenet_8_512(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-8-512 for 224x224 RGB images, T 4 (29.7 M parameters)."""
    return _imagenet(8, 512, kwargs)


@register_model
def sdt_imagenet_10_512(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-10-512 for 224x224 RGB images, T 4 (36.0 M parameters)."""
    return _imagenet(10, 512, kwargs)


@register_model
def sdt_imagenet_8_768(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-8-768 for 224x224 RGB images, T 4 (66.3 M parameters)."""
    return _imagenet(8, 768, kwargs)


@register_model
def sdt_toy(**kwargs: Any) -> SpikeDrivenTransformer:
    """A Spike-Driven Transformer under 60 k weights for 32x32 images: documentation, tests."""
    return sized({"embed_dim": 32, "num_heads": 4, "mlp_ratio": 2.0}, kwargs)


@register_model
def sdt_digits(**kwargs: Any) -> SpikeDrivenTransformer:
    """Spike-Driven Transformer-2-64 for 16x16 images (16 tokens): digits on small machines."""
    return sized({"embed_dim": 64, "num_heads": 4, "mlp_ratio": 2.0, "image_size": 16}, kwargs)
