"""Spikformer (Zhou et al., ICLR 2023, arXiv 2209.15425): ConvPEP, L x (SSA, MLP), linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.attention import EncoderBlock, SpikingMLP, SpikingSelfAttention
from spikeformer_lt.layers.inputs import SpikingClassifier, at_least_one, finite
from spikeformer_lt.layers.neuron import carry
from spikeformer_lt.layers.patches import PatchSelect, gather_tokens
from spikeformer_lt.layers.stems import ConvPEP
from spikeformer_lt.layers.units import Chain, call, chains_of_parts
from spikeformer_lt.models import spikformer_convert
from spikeformer_lt.registry import register_model


class Spikformer(SpikingClassifier):
    """Spiking transformer with a convolutional patch embedding.

    Args:
        num_classes, T: as of :class:`SpikingClassifier`.
        embed_dim, depth, num_heads, mlp_ratio: encoder sizes D, L, h and hidden/D.
        pools: which of the four ConvPEP stages halve their map.
        attn_scale, attn_threshold: of the spiking self attention.
        linear_bias: bias of the encoder's linear maps.
        qkv_bias: whether q, k, v share in it: published CIFAR models do, DVS and ImageNet do not.
        activation, residual, pool_before_act: of the ConvPEP.
        options: input size, and constants of every LIF, of :class:`SpikingClassifier`.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.

    Raises:
        ConfigError: a size, head count or choice that cannot be built, or an input of another
            T, size, channel count or dtype than the model's.
    """

    translate = staticmethod(spikformer_convert.translate)  # published checkpoints

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        embed_dim: int = 384,
        depth: int = 4,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        pools: Sequence[bool] = (False, False, True, True),
        attn_scale: float = 0.125,
        attn_threshold: float = 0.5,
        linear_bias: bool = True,
        qkv_bias: bool = True,
        activation: str = "lif",
        residual: str = "add",
        pool_before_act: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        at_least_one(depth=depth, embed_dim=embed_dim, num_heads=num_heads)
        check(depth <= 1000, "depth", depth, "at most 1,000 blocks")
        numbers = {"mlp_ratio": mlp_ratio, "attn_scale": attn_scale}
        for field, value in {**numbers, "attn_threshold": attn_threshold}.items():
            check(finite(value), field, value, "a finite number")
        hidden = int(embed_dim * mlp_ratio)
        at_least_one(**{"embed_dim * mlp_ratio": hidden})
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.conv_pep = ConvPEP(
            self.in_channels,
            embed_dim,
            pools=pools,
            activation=activation,
            residual=residual,
            pool_before_act=pool_before_act,
            neuron=self.neuron,
        )
        self.conv_pep.check_size(*self.image_size)
        self.patch: PatchSelect | None = None
        self.blocks: Any = nn.ModuleList(
            EncoderBlock(
                SpikingSelfAttention(
                    embed_dim,
                    num_heads,
                    scale=attn_scale,
                    attn_threshold=attn_threshold,
                    bias=linear_bias,
                    qkv_bias=qkv_bias,
                    neuron=self.neuron,
                ),
                SpikingMLP(embed_dim, hidden, bias=linear_bias, neuron=self.neuron),
            )
            for _ in range(depth)
        )
        self.conv_pep.feed(self.blocks)
        self.head = nn.Linear(embed_dim, num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the linear maps anew from a normal distribution of deviation 0.02, cut at 2."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def stem(self) -> ConvPEP:
        """The patch embedding."""
        return self.conv_pep

    def chains(self) -> list[Chain]:
        """Units that one other unit reads: of the ConvPEP and of every MLP."""
        return chains_of_parts(self)

    @property
    def num_tokens(self) -> int:
        """Tokens N before any patch is removed."""
        height, width = self.image_size
        return (height // self.conv_pep.stride) * (width // self.conv_pep.stride)

    def set_patch(self, patch: PatchSelect | None) -> None:
        """Select tokens behind the stem, or all of them with None, in place."""
        self.patch = patch
        rescale = patch is not None and patch.rescale
        for block in self.blocks:
            block.attn.rescale_to = self.num_tokens if rescale else None

    def forward(self, x: Tensor) -> Tensor:
        """Classify images or frames."""
        return self.classify(self.time_first(x)).transpose(0, 1)

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of ``[T|1, B, C, H, W]``."""
        return self.classify_tokens(*self.stem_tokens(images), images)

    def stem_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens ``[T|1, B, N, D]`` of images, and their current if the selection reads it.

        For a selection in pixel space they are a measurement: no graph, no statistics moved.
        """
        need_current = self.patch is not None and self.patch.score.needs_current
        inputs = (images, self.T, need_current)
        out: tuple[Tensor, Tensor]
        if self.training and self.patch is not None and self.patch.space == "pixel":
            buffers = {name: value.clone() for name, value in self.conv_pep.named_buffers()}
            with torch.no_grad():
                out = functional_call(self.conv_pep, buffers, inputs)
        else:
            out = self.conv_pep(*inputs)
        return out

    def classify_tokens(self, tokens: Tensor, current: Tensor, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of the stem's outputs for `images`."""
        tokens = self._select(tokens, current, images)
        for block in self.blocks:
            tokens = call(block, tokens, self.T)
        logits: Tensor = self.head(tokens.mean(2))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """ConvPEP and patch selection: ``[T|1, B, C, H, W]`` -> kept tokens ``[T|1, B, N', D]``.

        Raises:
            ConfigError: a selection that rescales the attention, not put in by `set_patch`.
        """
        return self._select(*self.stem_tokens(images), images)

    def _select(self, tokens: Tensor, current: Tensor, images: Tensor) -> Tensor:
        patch = self.patch
        if patch is None:
            return tokens
        if patch.rescale and self.blocks[0].attn.rescale_to is None:
            raise ConfigError(
                "a selection with rescale=True is put in by model.set_patch(selection)"
            )
        index, multiplier = patch(tokens, current, images, self.T)
        if patch.space == "pixel":
            with carry(None):
                masked = patch.mask_pixels(images, index, self.num_tokens)
                tokens = self.conv_pep(masked, self.T)[0]
        tokens = gather_tokens(tokens, index)
        return tokens if multiplier is None else tokens * multiplier


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


@register_model
def spikformer_dvs_toy(**kwargs: Any) -> Spikformer:
    """A Spikformer-2-64 for 32x32 event frames, 8x8 patches, T 8: documentation, small machines."""
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "T": 8}
    stem = {"in_channels": 2, "image_size": 32, "pools": (True, True, True, False)}
    return sized({**sizes, **stem, "attn_scale": 0.25, "qkv_bias": False}, kwargs)
