"""Published optimizers, by the name of the preset that asks for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from spikeformer_lt.training.phase import OptimConfig

C = TypeVar("C")
ECCV22 = OptimConfig(
    opt="momentum", lr=0.3, weight_decay=5e-4, momentum=0.9, min_lr=0.0, clip_grad=0.0
)
"""SGD at 0.3, cosine to 0, batch 128: Kim et al., ECCV 2022 (arXiv 2207.01382), section 4.1."""
EDGE_POPUP = OptimConfig(
    opt="momentum", lr=0.1, score_lr=0.1, weight_decay=1e-4, momentum=0.9, min_lr=0.0, clip_grad=0.0
)
"""SGD at 0.1, cosine to 0, 100 epochs: the published settings of arXiv 1911.13299 on CIFAR-10 and
of arXiv 2103.09377 for binary weights."""
PRESETS = {
    "eccv22": ECCV22,
    "cvpr20": EDGE_POPUP,
    "iclr21": EDGE_POPUP,
    "iclr21-global": EDGE_POPUP,
}


def preset_optim(preset: str) -> OptimConfig | None:
    """Optimizer of a preset; None leaves the run's own."""
    return PRESETS.get(preset)


def with_preset(config: C, preset: str) -> C:
    """The configuration of a search with a preset by name; "default" leaves it as it is.

    Raises:
        ConfigError: the search has no such preset.
    """
    if preset == "default":
        return config
    given: Any = config
    made: C = replace(given, preset=preset)
    return made
