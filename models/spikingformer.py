"""Spikingformer (Zhou et al., arXiv 2304.11954): currents are added, spikes alone multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spikeformer_lt.layers.inputs import at_least_one
from spikeformer_lt.models.spikformer_convert import SPIKINGFORMER
from spikeformer_lt.models.spiking_transformer import CurrentStem, SpikingTransformer
from spikeformer_lt.registry import register_model


class SpikingTokenizer(CurrentStem):
    """Five 3x3 convolutions, each of the spikes of the one before; tokens are the last currents.

    Args:
        in_channels, dim: channels of the input; width D of maps of D/8, D/4, D/2, D, D channels.
        pools: for each of the first four, whether its spikes are max-pooled for the next one.
        convs, activation, neuron: as of a :class:`ConvPEP`.

    Source: Zhou et al., Spikingformer, arXiv 2304.11954, section 4.2.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.set_reads()

    def forward(self, images: Tensor, T: int, need: str = "") -> tuple[Tensor, Tensor]:
        """Return tokens, twice: they are currents themselves."""
        tokens = self.currents(images, T).flatten(2, 3)
        return tokens, tokens


class Spikingformer(SpikingTransformer):
    """A transformer whose stream is real: a neuron before each branch fires, currents are added.

    Args:
        num_classes, T, embed_dim, num_heads, mlp_ratio, attn_scale, attn_threshold, options: as of
            :class:`SpikingTransformer`.
        depth: blocks L.
        pools: which of the four first maps of the tokenizer are halved.
        stem_convs: of those four the last so many are there: 4, or 2 or 1 as a control.
        attention: ``ssa``, or of the other kinds in layers.attention.
        activation: of the tokenizer.

    Counts of parameters are less than published by 4 D a block: those of two LayerNorms that no
    forward reads.
    """

    published = SPIKINGFORMER

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        depth: int = 4,
        pools: Sequence[bool] = (False, False, True, True),
        stem_convs: int = 4,
        attention: str = "ssa",
        activation: str = "lif",
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        at_least_one(depth=depth)
        own: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        own |= {"pools": pools, "convs": stem_convs}
        self.stem = SpikingTokenizer(self.in_channels, self.embed_dim, **own)
        self.build(self.make_blocks(depth, attention, residual="ms"))


def sized(defaults: dict[str, Any], kwargs: dict[str, Any]) -> Spikingformer:
    """Make a Spikingformer of a preset's sizes, but for what `kwargs` say."""
    return Spikingformer(**{**defaults, **kwargs})


@register_model
def spikingformer_cifar(**kwargs: Any) -> Spikingformer:
    """Spikingformer-4-384 for 32x32 RGB images, T 4 (9,320,122 parameters at 10 classes)."""
    return sized({"embed_dim": 384, "depth": 4, "num_heads": 12}, kwargs)


@register_model
def spikingformer_cifar_4_256(**kwargs: Any) -> Spikingformer:
    """Spikingformer-4-256 for 32x32 RGB images, T 4."""
    return sized({"embed_dim": 256, "depth": 4}, kwargs)


@register_model
def spikingformer_cifar_2_384(**kwargs: Any) -> Spikingformer:
    """Spikingformer-2-384 for 32x32 RGB images, T 4."""
    return sized({"embed_dim": 384, "depth": 2, "num_heads": 12}, kwargs)


@register_model
def spikingformer_dvs(**kwargs: Any) -> Spikingformer:
    """Spikingformer-2-256 for 128x128 event frames, 16x16 patches, T 16, tau 1.5."""
    sizes = {"embed_dim": 256, "depth": 2, "num_heads": 16, "T": 16, "in_channels": 2}
    return sized({**sizes, "image_size": 128, "pools": (True,) * 4, "tau": 1.5}, kwargs)


def _imagenet(dim: int, kwargs: dict[str, Any]) -> Spikingformer:
    sizes = {"embed_dim": dim, "depth": 8, "image_size": 224, "num_classes": 1000}
    return sized({**sizes, "pools": (True,) * 4}, kwargs)


@register_model
def spikingformer_imagenet_8_384(**kwargs: Any) -> Spikingformer:
    """Spikingformer-8-384 for 224x224 RGB images, 16x16 patches, T 4 (16.8 M parameters)."""
    return _imagenet(384, kwargs)


@register_model
def spikingformer_imagenet_8_512(**kwargs: Any) -> Spikingformer:
    """Spikingformer-8-512 for 224x224 RGB images, 16x16 patches, T 4 (29.7 M parameters)."""
    return _imagenet(512, kwargs)


@register_model
def spikingformer_imagenet_8_768(**kwargs: Any) -> Spikingformer:
    """Spikingformer-8-768 for 224x224 RGB images, 16x16 patches, T 4 (66.3 M parameters)."""
    return _imagenet(768, kwargs)


@register_model
def spikingformer_toy(**kwargs: Any) -> Spikingformer:
    """A Spikingformer under 60 k weights for 32x32 images: documentation, tests, small machines."""
    return sized({"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}, kwargs)


@register_model
def spikingformer_digits(**kwargs: Any) -> Spikingformer:
    """Spikingformer-2-64 for 16x16 images (16 tokens): the embedded digits on small machines."""
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "image_size": 16}
    return sized(sizes, kwargs)
