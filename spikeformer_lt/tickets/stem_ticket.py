"""The ConvPEP ticket (level 2): surgery, mask updates, and the temporary head of the search."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.layers.conv_pep import ConvPEP
from spikeformer_lt.layers.state import reset_state
from spikeformer_lt.layers.subnet import SubnetConv2d, get_masks, rankings, set_masks, subnets
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets.multisp_config import MOVING, WeightConfig
from spikeformer_lt.training.phase import Progress

LEARNS = {"latent": "weights", "magnitude": "weights", "random": "weights"}


class StemProbe(nn.Module):
    """ConvPEP with a temporary linear head: the network that a stem search trains.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.

    Source: arXiv 2311.12060, Algorithm 1, phase 1; the head is dropped afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.conv_pep: ConvPEP = model.conv_pep  # type: ignore[assignment]
        self.T = int(model.T)  # type: ignore[arg-type]
        self.head = nn.Linear(self.conv_pep.dim, int(model.num_classes))  # type: ignore[arg-type]
        self._door = model.time_first

    def forward(self, x: Tensor) -> Tensor:
        """Mean token of each step, classified."""
        reset_state(self)
        try:
            tokens, _ = self.conv_pep(self._door(x), self.T)  # type: ignore[operator]
            logits: Tensor = self.head(tokens.mean(2))
            return logits.expand(self.T, -1, -1).transpose(0, 1)
        finally:
            reset_state(self)


def install_subnets(conv_pep: ConvPEP, config: WeightConfig) -> None:
    """Replace the ConvPEP's convolutions by subnet convolutions, in place.

    Start weights are initialised first if asked for; scores and inits draw from torch's stream.
    """
    for unit in conv_pep.units():
        if unit is conv_pep.rpe and not config.include_rpe:
            continue
        init_weight(unit.conv.weight, config.init, config.sparsity)
        spikes_in = conv_pep.in_channels == 2
        binary = config.binary
        if unit is conv_pep.stages[0]:
            auto = config.first_conv == "auto"
            binary = binary and (spikes_in if auto else config.first_conv == "binary")
        unit.conv = SubnetConv2d(
            unit.conv,
            LEARNS.get(config.method, config.method),
            binary=binary,
            per_filter=config.gain == "filter",
        )


def init_weight(weight: Tensor, init: str, sparsity: float) -> None:
    """Kaiming or signed-constant start weights; the fan counts kept weights only (scale_fan)."""
    if init == "keep":
        return
    fan = weight[0].numel() * (1 - sparsity)
    std = (2 / fan) ** 0.5
    with torch.no_grad():
        drawn = torch.randn(weight.shape)
        weight.copy_(std * (drawn.sign() if init == "signed" else drawn))


class MaskController:
    """Keeps the stem's masks at the sparsity that the schedule asks for, before every step.

    Raises:
        ConfigError: a layer would lose all its weights, and nothing would pass it.
    """

    def __init__(self, model: nn.Module, config: WeightConfig, seed: int) -> None:
        self.model, self.config = model, config
        self.fixed = config.method not in MOVING
        if config.method == "random":
            set_masks(model, Mask.random_like(self._mask(config.sparsity), seed))
        else:
            self.update(0.0 if config.ramp_epochs and not self.fixed else 1.0)

    @property
    def settled_from(self) -> int:
        """First epoch that trains wholly at the final sparsity."""
        return 0 if self.fixed else int(-(-self.config.ramp_epochs // 1))

    def at_full_sparsity(self) -> MaskController:
        """Return a controller that goes on from here: the ramp is behind it."""
        after = copy.copy(self)
        after.config = replace(self.config, ramp_epochs=0.0)
        return after

    def __call__(self, progress: Progress) -> None:
        """Update masks and annealing for the step to come."""
        if self.fixed:
            return
        for _, layer in subnets(self.model):
            layer.anneal = self.config.anneal * min(progress.fraction, self.config.freeze_mask_at)
        if progress.fraction > self.config.freeze_mask_at:
            return
        ramp = self.config.ramp_epochs
        self.update(min(1.0, progress.epochs_done / ramp) if ramp else 1.0)

    def update(self, done: float) -> None:
        """Recompute the masks with `done` of the ramp behind: r + (s - r)(1 - (1 - done)^3)."""
        end = self.config.sparsity
        begin = min(end, self.config.ramp_from)
        sparsity = begin + (end - begin) * (1 - (1 - done) ** 3)
        within = get_masks(self.model) if self.config.monotone and done > 0 else None
        set_masks(self.model, self._mask(sparsity, within))

    def _mask(self, sparsity: float, within: Mask | None = None) -> Mask:
        """Rank the weights; a mask that leaves nothing of a layer is refused."""
        config = self.config
        floor = config.floor if config.scope == "global" else 0.0
        mask = Mask.from_scores(rankings(self.model), sparsity, config.scope, within, floor)
        for name, kept in mask.items():
            rule = f"lower, as it removes all {kept.numel()} weights of {name}"
            if config.scope == "global":
                rule += ", or a floor above 0"
            check(bool(kept.any()), "weights.sparsity", config.sparsity, rule)
        return mask
