"""Edge-popup and biprop: a subnetwork of frozen weights, found by learning scores.

Biprop: edge-popup whose kept weights are binary, with a gain.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from spikeformer_lt.config import check
from spikeformer_lt.layers.subnet import collapse, get_masks, install
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.tickets.base import PruneConfig, Search, check_mask_options, snapshot
from spikeformer_lt.tickets.configs import INITS, WeightConfig, preset_optim
from spikeformer_lt.tickets.multisp import MaskController, init_weight
from spikeformer_lt.training.phase import Fit, Phase


@dataclass(frozen=True)
class EdgePopupConfig:
    """Learn which of the frozen initial weights to keep."""

    preset: str = "default"
    """default, or cvpr20: half of each layer, signed constants, SGD at 0.1, 100 epochs."""
    sparsity: float = 0.5
    """Fraction of the prunable weights removed, in [0, 1): exactly round(sparsity * n) of n."""
    scope: str = "layer"
    """layer: the same sparsity in each layer; global: one threshold over all scores."""
    floor: float = 0.005
    """Least fraction of each layer that a global threshold leaves, in [0, 1]; at 0 a layer may
    lose all its weights, which ends the search."""
    epochs: int = 30
    """Epochs of score learning."""
    ramp_epochs: float = 0.0
    """Epochs of a cubic ramp of the sparsity from ramp_from."""
    ramp_from: float = 0.5
    """Sparsity at which the ramp starts."""
    init: str = "keep"
    """Frozen weights: keep what the model holds, kaiming (scaled by what is kept), or signed
    constants."""
    learn_norm: bool = True
    """Train scale and shift of the norms, and biases; the papers leave them at their start."""
    freeze_mask_at: float = 1.0
    """Fraction of the training after which the mask stays as it is."""
    prune: PruneConfig = field(default_factory=PruneConfig)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "cvpr20": {"sparsity": 0.5, "scope": "layer", "ramp_epochs": 0.0, "init": "signed"}
    }

    def __post_init__(self) -> None:
        known = ("default", *self.PRESETS)
        check(self.preset in known, "preset", self.preset, f"one of {', '.join(known)}")
        check_mask_options(self)
        check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        check(self.ramp_epochs >= 0, "ramp_epochs", self.ramp_epochs, "at least 0")
        check(0 <= self.ramp_from < 1, "ramp_from", self.ramp_from, "in [0, 1)")
        check(self.init in INITS, "init", self.init, f"one of {', '.join(INITS)}")
        check(0 <= self.freeze_mask_at <= 1, "freeze_mask_at", self.freeze_mask_at, "in [0, 1]")

    def resolved(self) -> EdgePopupConfig:
        """The configuration that runs: a preset fixes the published settings."""
        if self.preset == "default":
            return self
        return replace(self, epochs=100, learn_norm=False, **self.PRESETS[self.preset])


class EdgePopup(Search):
    """Scores over frozen weights; the mask is the top of ``|s|``, computed anew at every step.

    A removed weight can return while scores are learned. The ticket holds the network that was
    validated: its weights are ``w * M`` (biprop: ``alpha * sign(w) * M``), not to be retrained.

    Args:
        config: sparsity, schedule and start weights.
        seed: of start weights and scores.

    Source: Ramanujan et al., CVPR 2020 (arXiv 1911.13299), section 4.
    """

    name = "edge_popup"
    trained = True
    binary: ClassVar[bool] = False

    def __init__(self, config: EdgePopupConfig | None = None, seed: int = 0) -> None:
        super().__init__((config or EdgePopupConfig()).resolved(), seed)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config = self.config
        weights = config.prune.weights(model)
        torch.manual_seed(seed_for(self.seed, "edge_popup"))
        for name, weight in weights.items():
            init_weight(weight, config.init, config.sparsity)
            install(model, name.removesuffix(".weight"), "scores", binary=self.binary)
        rest = {n: p for n, p in model.named_parameters() if not n.endswith(".scores")}
        wanted = {name: parameter.requires_grad for name, parameter in rest.items()}
        for name, parameter in rest.items():
            parameter.requires_grad_(config.learn_norm and name not in weights)
        self.frozen = {name: weight.detach().clone() for name, weight in weights.items()}
        controller = MaskController(model, self._mask_options(), self.seed)
        phase = Phase(
            self.name,
            config.epochs,
            preset_optim(config.preset),
            before_step=controller,
            settled_from=controller.settled_from,
        )
        self._fit(fit, model, phase)
        mask = get_masks(model)
        collapse(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted.get(name, True))
        for name in weights:
            model.get_parameter(name).requires_grad_(True)
        self.start = snapshot(model)
        return mask

    def _mask_options(self) -> WeightConfig:
        config = self.config
        return WeightConfig(
            method="scores",
            sparsity=config.sparsity,
            binary=self.binary,
            scope=config.scope,
            floor=config.floor,
            ramp_epochs=config.ramp_epochs,
            ramp_from=config.ramp_from,
            freeze_mask_at=config.freeze_mask_at,
        )


@register_search
def edge_popup(config: EdgePopupConfig | None = None, seed: int = 0) -> EdgePopup:
    """A subnetwork of the frozen initial weights, found by scores (edge-popup)."""
    return EdgePopup(config, seed)


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
