"""Spikformers for event frames: two polarities in, frames as time steps."""

from __future__ import annotations

from typing import Any

from spikeformer_lt.models.spikformer import Spikformer, sized
from spikeformer_lt.registry import register_model


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
