"""Spikformer (Zhou et al., ICLR 2023, arXiv 2209.15425): ConvPEP, L x (SSA, MLP), linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikeformer_lt.layers.inputs import at_least_one
from spikeformer_lt.layers.stems import ConvPEP
from spikeformer_lt.models.spikformer_convert import SPIKFORMER
from spikeformer_lt.models.spiking_transformer import SpikingTransformer, draw_linear
from spikeformer_lt.registry import register_model


class Spikformer(SpikingTransformer):
    """Spiking transformer with a convolutional patch embedding.

    Args:
        num_classes, T, embed_dim, num_heads, mlp_ratio, attn_scale, attn_threshold, options: as of
            :class:`SpikingTransformer`.
        depth: blocks L.
        pools: which of the four ConvPEP stages halve their map.
        stem_convs: of those four the last so many are there: 4, or 2 or 1 as a control.
        linear_bias: bias of the encoder's linear maps.
        qkv_bias: whether q, k, v share in it: published CIFAR models do, DVS and ImageNet do not.
        attention: ``ssa``, or of the other kinds in layers.attention.
        block_residual: how the encoder's branches join its stream: ``add``, ``iand``, ``or``, or
            ``ms``, which adds currents.
        activation, residual, pool_before_act: of the ConvPEP.
    """

    published = SPIKFORMER

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        depth: int = 4,
        num_heads: int = 12,
        pools: Sequence[bool] = (False, False, True, True),
        stem_convs: int = 4,
        linear_bias: bool = True,
        qkv_bias: bool = True,
        attention: str = "ssa",
        block_residual: str = "add",
        activation: str = "lif",
        residual: str = "add",
        pool_before_act: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, num_heads=num_heads, **options)
        at_least_one(depth=depth)
        self.conv_pep = ConvPEP(
            self.in_channels,
            self.embed_dim,
            pools=pools,
            convs=stem_convs,
            activation=activation,
            residual=residual,
            pool_before_act=pool_before_act,
            neuron=self.neuron,
        )
        biases: dict[str, Any] = {"bias": linear_bias, "qkv_bias": qkv_bias}
        self.build(self.make_blocks(depth, attention, residual=block_residual, **biases))

    def init_weights(self) -> None:
        """Draw the linear maps anew from a normal distribution of deviation 0.02, cut at 2."""
        draw_linear(self)

    @property
    def stem(self) -> ConvPEP:
        """The patch embedding."""
        return self.conv_pep


def sized(defaults: dict[str, Any], kwargs: dict[str, Any]) -> Spikformer:
    """Make a Spikformer of a preset's sizes, but for what `kwargs` say."""
    return Spikformer(**{**defaults, **kwargs})


@register_model
def spikformer_cifar(**kwargs: Any) -> Spikformer:
    """Spikformer-4-384 for 32x32 RGB images, T 4 (9.32 M parameters)."""
    return sized({"embed_dim": 384, "depth": 4, "num_heads": 12}, kwargs)


@register_model
def spikformer_cifar_4_256(**kwargs: Any) -> Spikformer:
    """Spikformer-4-256 for 32x32 RGB images, T 4."""
    return sized({"embed_dim": 256, "depth": 4, "num_heads": 8}, kwargs)


@register_model
def spikformer_cifar_2_384(**kwargs: Any) -> Spikformer:
    """Spikformer-2-384 for 32x32 RGB images, T 4."""
    return sized({"embed_dim": 384, "depth": 2, "num_heads": 12}, kwargs)


@register_model
def spikformer_tiny(**kwargs: Any) -> Spikformer:
    """DeiT-Tiny sizes with a ConvPEP: 192 wide, 12 blocks, 3 heads (TINY of arXiv 2311.12060)."""
    return sized({"embed_dim": 192, "depth": 12, "num_heads": 3}, kwargs)


@register_model
def spikformer_small(**kwargs: Any) -> Spikformer:
    """DeiT-Small sizes with a ConvPEP: 384 wide, 12 blocks, 6 heads (SMALL of arXiv 2311.12060)."""
    return sized({"embed_dim": 384, "depth": 12, "num_heads": 6}, kwargs)


@register_model
def spikformer_toy(**kwargs: Any) -> Spikformer:
    """A Spikformer under 50 k weights for 32x32 images: documentation, tests, small machines."""
    return sized({"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}, kwargs)


@register_model
def spikformer_digits(**kwargs: Any) -> Spikformer:
    """Spikformer-2-64 for 16x16 images (16 tokens): the embedded digits on small machines."""
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "image_size": 16}
    return sized(sizes, kwargs)


@register_model
def spikformer_dvs(**kwargs: Any) -> Spikformer:
    """Spikformer-2-256 for 128x128 event frames, 16x16 patches, T 16 (2.57 M parameters)."""
    sizes = {"embed_dim": 256, "depth": 2, "num_heads": 16, "T": 16, "in_channels": 2}
    stem = {"image_size": 128, "pools": (True, True, True, True)}
    stem |= {"attn_scale": 0.25, "qkv_bias": False}
    return sized({**sizes, **stem}, kwargs)


def _imagenet(depth: int, dim: int, kwargs: dict[str, Any]) -> Spikformer:
    sizes = {"embed_dim": dim, "depth": depth, "num_heads": 8, "image_size": 224}
    stem = {"num_classes": 1000, "pools": (True,) * 4, "qkv_bias": False}
    return sized({**sizes, **stem}, kwargs)


@register_model
def spikformer_imagenet_8_384(**kwargs: Any) -> Spikformer:
    """Spikformer-8-384 for 224x224 RGB images, 16x16 patches, T 4 (16.8 M parameters)."""
    return _imagenet(8, 384, kwargs)


@register_model
def spikformer_imagenet_6_512(**kwargs: Any) -> Spikformer:
    """Spikformer-6-512 for 224x224 RGB images, 16x16 patches, T 4 (23.4 M parameters)."""
    return _imagenet(6, 512, kwargs)


@register_model
def spikformer_imagenet_8_512(**kwargs: Any) -> Spikformer:
    """Spikformer-8-512 for 224x224 RGB images, 16x16 patches, T 4 (29.7 M parameters)."""
    return _imagenet(8, 512, kwargs)


@register_model
def spikformer_imagenet_10_512(**kwargs: Any) -> Spikformer:
    """Spikformer-10-512 for 224x224 RGB images, 16x16 patches, T 4 (36.0 M parameters)."""
    return _imagenet(10, 512, kwargs)


@register_model
def spikformer_imagenet_8_768(**kwargs: Any) -> Spikformer:
    """Spikformer-8-768 for 224x224 RGB images, 16x16 patches, T 4 (66.3 M parameters)."""
    return _imagenet(8, 768, kwargs)


@register_model
def spikformer_dvs_toy(**kwargs: Any) -> Spikformer:
    """A Spikformer-2-64 for 32x32 event frames, 8x8 patches, T 8: documentation, small machines."""
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "T": 8}
    stem = {"in_channels": 2, "image_size": 32, "pools": (True, True, True, False)}
    return sized({**sizes, **stem, "attn_scale": 0.25, "qkv_bias": False}, kwargs)
