"""Edge-popup and biprop: a subnetwork of frozen weights, found by learning scores."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from spikeformer_lt.layers.subnet import collapse, get_masks, install
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.tickets.base import Search, snapshot
from spikeformer_lt.tickets.configs import BipropConfig, EdgePopupConfig
from spikeformer_lt.tickets.levels import WeightConfig
from spikeformer_lt.tickets.multisp import MaskController, init_weight
from spikeformer_lt.tickets.presets import preset_optim
from spikeformer_lt.training.phase import Fit, Phase


@register_search("edge_popup", EdgePopupConfig)
class EdgePopup(Search):
    """Scores over frozen weights; the mask is the top of ``|s|``, computed anew at every step.

    The ticket's weights are ``w * M`` (biprop: ``alpha * sign(w) * M``), not to be retrained.

    Source: Ramanujan et al., CVPR 2020 (arXiv 1911.13299), section 4.
    """

    trained = True
    binary: ClassVar[bool] = False
    floored = ("global",)  # equal rates in every layer need no floor
    least = 1

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config = self.config
        weights = config.prune.weights(model)
        torch.manual_seed(seed_for(self.seed, "edge_popup"))
        for name, weight in weights.items():
            init_weight(weight, config.init, config.sparsity)
            install(model, name.removesuffix(".weight"), "scores", binary=self.binary)
        rest = {n: p for n, p in model.named_parameters() if not n.endswith(".scores")}
        wanted = {
            name: parameter.requires_grad or name in weights for name, parameter in rest.items()
        }
        for name, parameter in rest.items():
            trained = config.learn_norm and name not in weights
            parameter.requires_grad_(trained and wanted[name])
        self.frozen = {name: weight.detach().clone() for name, weight in weights.items()}
        self.begun = {**self.start, **{name: w.cpu() for name, w in self.frozen.items()}}
        names = ("sparsity", "scope", "floor", "ramp_epochs", "ramp_from", "freeze_mask_at")
        same = {name: getattr(config, name) for name in names}
        options = WeightConfig(method="scores", binary=self.binary, **same)
        controller = MaskController(model, options, self.seed)
        phase = Phase(self.name, config.epochs, preset_optim(config.preset), controller)
        self._fit(fit, model, replace(phase, settled_from=controller.settled_from))
        mask = get_masks(model)
        collapse(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        self.start = snapshot(model)
        return mask


@register_search("biprop", BipropConfig)
class Biprop(EdgePopup):
    """Multi-prize tickets: weights ``alpha * sign(w) * M`` with ``alpha = ||w*M||_1 / ||M||_0``.

    Scores learn as in edge-popup: the gain is a constant of the step, and 0 where nothing is kept.

    Source: Diffenderfer & Kailkhura, ICLR 2021 (arXiv 2103.09377), algorithm 1.
    """

    binary = True
