"""Spikformer (Zhou et al., ICLR 2023, arXiv 2209.15425): ConvPEP, L x (SSA, MLP), linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.attention import EncoderBlock, SpikingMLP, SpikingSelfAttention
from spikeformer_lt.layers.inputs import time_first
from spikeformer_lt.layers.neuron import reset_state
from spikeformer_lt.layers.patches import PatchSelect, gather_tokens, kept_count
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.stems import ConvPEP
from spikeformer_lt.layers.units import Chain, chains_of_parts
from spikeformer_lt.models import spikformer_convert
from spikeformer_lt.registry import register_model


class Spikformer(nn.Module):
    """Spiking transformer with a convolutional patch embedding.

    Args:
        num_classes: classes K.
        T: time steps. A static image is presented T times; event frames bring T themselves.
        in_channels: 3 for RGB, 2 for events.
        image_size: side of the square input, or (H, W); other sizes are refused.
        embed_dim, depth, num_heads, mlp_ratio: encoder sizes D, L, h and hidden/D.
        pools: which of the four ConvPEP stages halve their map.
        attn_scale, attn_threshold: of the spiking self attention.
        linear_bias: bias of the encoder's linear maps.
        qkv_bias: whether q, k, v share in it: published CIFAR models do, DVS and ImageNet do not.
        activation, residual, pool_before_act: of the ConvPEP.
        tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset: of every LIF.
        compute_once: compute a static image once where it is the same at every step; the
            result is identical, only the time differs.

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
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
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
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        surrogate: str = "sigmoid",
        alpha: float | None = None,
        detach_reset: bool = True,
        compute_once: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        counts = {"T": T, "num_classes": num_classes, "depth": depth, "in_channels": in_channels}
        counts |= {"embed_dim": embed_dim, "num_heads": num_heads, "embed_dim * mlp_ratio": hidden}
        for field, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field}={value} is not allowed: a whole number, at least 1")
        neuron: dict[str, object] = {
            "tau": tau,
            "v_threshold": v_threshold,
            "v_reset": v_reset,
            "decay_input": decay_input,
            "surrogate": surrogate,
            "detach_reset": detach_reset,
        }
        if alpha is not None:
            neuron["alpha"] = alpha
        self.T, self.num_classes, self.compute_once = T, num_classes, compute_once
        self.in_channels, self.embed_dim, self.num_heads = in_channels, embed_dim, num_heads
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2:
            raise ConfigError(f"image_size={image_size} is not allowed: a side, or (H, W)")
        self.image_size = (int(size[0]), int(size[1]))
        self.conv_pep = ConvPEP(
            in_channels,
            embed_dim,
            pools=pools,
            activation=activation,
            residual=residual,
            pool_before_act=pool_before_act,
            neuron=neuron,
        )
        self.conv_pep.check_size(*self.image_size)
        self.patch: PatchSelect | None = None
        self.blocks = nn.ModuleList(
            EncoderBlock(
                SpikingSelfAttention(
                    embed_dim,
                    num_heads,
                    scale=attn_scale,
                    attn_threshold=attn_threshold,
                    bias=linear_bias,
                    qkv_bias=qkv_bias,
                    neuron=neuron,
                ),
                SpikingMLP(embed_dim, hidden, bias=linear_bias, neuron=neuron),
            )
            for _ in range(depth)
        )
        self.conv_pep.feed(self.blocks)
        self.head = nn.Linear(embed_dim, num_classes)
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

    def forward(self, x: Tensor) -> Tensor:
        """Classify images or frames; neuron state is clean before and after."""
        reset_state(self)
        try:
            images = self.time_first(x)
            tokens = self.embed(images)
            for block in self.blocks:
                tokens = call(block, tokens, self.T)
            logits: Tensor = self.head(tokens.mean(2))
            return logits.transpose(0, 1)
        finally:
            if not torch.compiler.is_compiling():
                reset_state(self)

    def embed(self, images: Tensor) -> Tensor:
        """ConvPEP and patch selection: ``[T|1, B, C, H, W]`` -> kept tokens ``[T|1, B, N', D]``."""
        patch, total = self.patch, self.num_tokens
        removed = patch.sparsity if patch is not None and patch.rescale else 0.0
        for block in self.blocks:
            attn = getattr(block, "attn", None)
            if isinstance(attn, SpikingSelfAttention):
                attn.key_gain = total / kept_count(total, removed)
        if patch is None:
            return self.conv_pep(images, self.T)[0]
        tokens, current = self.conv_pep(images, self.T, patch.score.needs_current)
        index, multiplier = patch(tokens, current, images, self.T)
        if patch.space == "pixel":
            reset_state(self.conv_pep)
            masked = patch.mask_pixels(images, index, total)
            tokens = self.conv_pep(masked, self.T)[0]
        tokens = gather_tokens(tokens, index)
        return tokens if multiplier is None else tokens * multiplier

    def time_first(self, x: Tensor) -> Tensor:
        """Check the door and put time first: ``[1, B, C, H, W]`` or ``[T, B, C, H, W]``."""
        return time_first(
            x,
            T=self.T,
            in_channels=self.in_channels,
            image_size=self.image_size,
            dtype=self.head.weight.dtype,
            compute_once=self.compute_once,
        )


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
