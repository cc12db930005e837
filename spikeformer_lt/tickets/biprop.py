"""Biprop: edge-popup whose kept weights are binary, with a gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.edge_popup import EdgePopup, EdgePopupConfig


@dataclass(frozen=True)
class BipropConfig(EdgePopupConfig):
    """Learn which signs of the frozen initial weights to keep; one gain for each layer."""

    preset: str = "default"
    """default; iclr21: layer-wise, kaiming, SGD at 0.1, 100 epochs; iclr21-global: one threshold
    with a ramp from 50 % over 10 epochs. Both leave the sparsity as given."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "iclr21": {"scope": "layer", "ramp_epochs": 0.0, "init": "kaiming"},
        "iclr21-global": {
            "scope": "global",
            "ramp_epochs": 10.0,
            "ramp_from": 0.5,
            "init": "kaiming",
        },
    }


class Biprop(EdgePopup):
    """Multi-prize tickets: weights ``alpha * sign(w) * M`` with ``alpha = ||w*M||_1 / ||M||_0``.

    The gain divides by the true number of kept weights; a layer of which nothing is kept has gain
    0. Scores learn as in edge-popup: the gain is a constant of the step.

    Source: Diffenderfer & Kailkhura, ICLR 2021 (arXiv 2103.09377), algorithm 1.
    """

    name = "biprop"
    binary = True

    def __init__(self, config: BipropConfig | None = None, seed: int = 0) -> None:
        super().__init__(config or BipropConfig(), seed)


@register_search
def biprop(config: BipropConfig | None = None, seed: int = 0) -> Biprop:
    """A binary subnetwork of the frozen initial weights, with a gain (biprop)."""
    return Biprop(config, seed)
