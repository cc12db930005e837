"""Spiking VGG-9 at a fraction of its width, for searches that train a network many times over.

python recipes/imp_cifar.py --plugins docs/results/queue/narrow_vgg9.py --model.name narrow_vgg9
"""

from __future__ import annotations

from typing import Any

from spikeformer_lt.models.spiking_vgg import SpikingVGG
from spikeformer_lt.registry import register_model

LAYERS = (16, 16, "M", 32, 32, "M", 64, 64, 64, "M")


@register_model
def narrow_vgg9(**options: Any) -> SpikingVGG:
    """VGG-9 with a quarter of the channels: 142,000 weights, a sixteenth of ``spiking_vgg9``."""
    sizes = {"pooled": 2, "hidden": 128, "conv_bias": False, "head_std": None}
    return SpikingVGG(**{"layers": LAYERS, **sizes, **options})
