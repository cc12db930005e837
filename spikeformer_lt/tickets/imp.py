"""Iterative magnitude pruning with late rewinding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.ticket import load_state
from spikeformer_lt.tickets.base import Search, magnitudes, prunable, snapshot
from spikeformer_lt.tickets.configs import ImpConfig
from spikeformer_lt.tickets.presets import PRESETS
from spikeformer_lt.training.phase import Capture, Fit, Masked, Phase


def schedule(config: ImpConfig) -> tuple[float, ...]:
    """Sparsity after each round."""
    if config.levels:
        return config.levels
    if not config.sparsity:
        return tuple(1 - (1 - config.fraction) ** i for i in range(1, config.rounds + 1))
    found: list[float] = []
    while not found or found[-1] < config.sparsity:
        reached = 1 - (1 - config.fraction) ** (len(found) + 1)
        found.append(config.sparsity if reached > config.sparsity - 1e-9 else reached)
    return tuple(found)


@register_search("imp", ImpConfig)
class Imp(Search):
    """Lottery tickets by iterative magnitude pruning.

    A removed weight never returns: masks are nested, round by round. Weights are ranked as the
    last epoch of a round left them.

    Source: Frankle & Carbin, ICLR 2019 (arXiv 1803.03635); late rewinding: Frankle et al., ICML
    2020 (arXiv 1912.05671); on SNNs: Kim et al., ECCV 2022 (arXiv 2207.01382), section 3.
    """

    masks: list[Mask]
    """The mask of each round, set by `find`."""

    def check(self, model: nn.Module) -> None:
        """Refuse a rewind point behind the dense training, too."""
        super().check(model)
        late = self.config.rewind_step.epochs > self.config.epochs
        check(not late, "rewind", self.config.rewind, f"at most epochs={self.config.epochs}")

    def planned(self) -> int:
        """Epochs of the dense training and of all rounds but the last, which retraining is."""
        return int(self.config.epochs + (len(schedule(self.config)) - 1) * self._round_epochs())

    def _round_epochs(self) -> int:
        config = self.config
        return int(config.round_epochs or max(1, config.epochs - config.rewind_step.epochs))

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, step = self.config, self.config.rewind_step
        optim = PRESETS.get(config.preset)
        early, mask, levels = Capture(step), None, schedule(config)
        self.masks = []
        dense = Phase("imp-0", config.epochs, optim, hooks=(early,))
        self._fit(fit, model, replace(dense, settled_from=config.epochs - 1))
        epochs = self._round_epochs()
        for number, level in enumerate(levels, 1):
            scores = magnitudes(prunable(model, config.prune))
            mask = Mask.from_scores(scores, level, config.scope, mask, config.floor)
            self.masks.append(mask)
            self._rewind(model, early.captured)
            if number < len(levels):
                phase = Phase(f"imp-{number}", epochs, optim, hooks=(Masked(mask),))
                if config.lr == "resume":
                    phase = replace(phase, lr_from=step)
                self._fit(fit, model, replace(phase, settled_from=epochs - 1))
        assert mask is not None
        return mask

    def _rate(self) -> float:
        return schedule(self.config)[-1]

    def _rewind(self, model: nn.Module, early: dict[str, torch.Tensor]) -> None:
        """Put weights back, and BatchNorm statistics as the policy says; becomes `start`."""
        kept = {name: value.detach().clone() for name, value in model.named_buffers()}
        load_state(model, early)
        if self.config.buffers == "keep":
            load_state(model, kept, strict=False)
        elif self.config.buffers == "reset":
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.reset_running_stats()
        self.start = snapshot(model)
