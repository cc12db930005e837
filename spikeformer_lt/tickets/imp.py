"""Iterative magnitude pruning with late rewinding."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.step import Step
from spikeformer_lt.tickets.base import (
    PruneConfig,
    Search,
    check_mask_options,
    magnitudes,
    shuffled,
)
from spikeformer_lt.tickets.configs import preset_optim
from spikeformer_lt.training.phase import Capture, Fit, Masked, Phase


@dataclass(frozen=True)
class ImpConfig:
    """Train, remove the smallest weights, go back to an early point, again and again.

    After round i exactly ``round((1 - (1 - fraction)^i) * n)`` of the n prunable weights are gone:
    every level is counted from n, so that rounding never adds up.
    """

    preset: str = "default"
    """default, or eccv22: 14 rounds of 25 %, 300 epochs, back to epoch 21, SGD at 0.3."""
    rounds: int = 8
    """Rounds of removal; the dense training before them is not counted."""
    fraction: float = 0.25
    """Fraction of the weights still there that a round removes, in (0, 1)."""
    sparsity: float = 0.0
    """Where above 0: stop at exactly this sparsity, after as many rounds as that takes."""
    levels: tuple[float, ...] = ()
    """Sparsity after each round, rising; overrides rounds, fraction and sparsity."""
    scope: str = "global"
    """global ranks all layers together; layer removes the same fraction of each."""
    floor: float = 0.0
    """Least fraction of each layer that stays, in [0, 1]."""
    epochs: int = 30
    """Epochs of the dense training."""
    round_epochs: int = 0
    """Epochs of training between two removals; 0 takes what the rewind point leaves of epochs."""
    rewind: str = "2ep"
    """Point of the dense training to go back to: 2ep, 500it; 0it is the initialisation."""
    buffers: str = "rewind"
    """BatchNorm statistics: rewind with the weights, keep what training left, or reset."""
    lr: str = "restart"
    """Learning rate of later rounds: restart its schedule, or resume it at the rewind point."""
    control: str = "none"
    """none; random: as many weights of each layer, at random places; shuffle: the found mask with
    start weights permuted within each layer."""
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        check(self.preset in ("default", "eccv22"), "preset", self.preset, "default or eccv22")
        check_mask_options(self)
        check(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        check(self.round_epochs >= 0, "round_epochs", self.round_epochs, "at least 0")
        check(0 < self.fraction < 1, "fraction", self.fraction, "in (0, 1)")
        rising = all(a < b for a, b in zip((0.0, *self.levels), (*self.levels, 1.0), strict=True))
        check(rising, "levels", self.levels, "rising, in (0, 1)")
        for name, allowed in (
            ("buffers", ("rewind", "keep", "reset")),
            ("lr", ("restart", "resume")),
            ("control", ("none", "random", "shuffle")),
        ):
            value = getattr(self, name)
            check(value in allowed, name, value, f"one of {', '.join(allowed)}")
        Step.parse(self.rewind)

    def resolved(self) -> ImpConfig:
        """The configuration that runs: a preset fixes the published schedule."""
        if self.preset == "default":
            return self
        return replace(
            self, rounds=14, fraction=0.25, sparsity=0.0, levels=(), scope="global", floor=0.0,
            epochs=300, round_epochs=280, rewind="21ep", buffers="keep", lr="restart",
        )  # fmt: skip

    def schedule(self) -> tuple[float, ...]:
        """Sparsity after each round."""
        if self.levels:
            return self.levels
        if not self.sparsity:
            return tuple(1 - (1 - self.fraction) ** i for i in range(1, self.rounds + 1))
        found: list[float] = []
        while not found or found[-1] < self.sparsity:
            reached = 1 - (1 - self.fraction) ** (len(found) + 1)
            found.append(self.sparsity if reached > self.sparsity - 1e-9 else reached)
        return tuple(found)


class Imp(Search):
    """Lottery tickets by iterative magnitude pruning.

    Args:
        config: schedule and policies.
        seed: of the controls.

    A removed weight never returns: masks are nested, round by round. Weights are ranked as the
    last epoch of a round left them.

    Source: Frankle & Carbin, ICLR 2019 (arXiv 1803.03635); late rewinding: Frankle et al., ICML
    2020 (arXiv 1912.05671); on SNNs: Kim et al., ECCV 2022 (arXiv 2207.01382), section 3.
    """

    name = "imp"

    def __init__(self, config: ImpConfig | None = None, seed: int = 0) -> None:
        super().__init__((config or ImpConfig()).resolved(), seed)
        self.masks: list[Mask] = []

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, step = self.config, Step.parse(self.config.rewind)
        optim = preset_optim(config.preset)
        early, mask, levels = Capture(step), None, config.schedule()
        self.masks = []
        dense = Phase("imp-0", config.epochs, optim, hooks=(early,))
        self._fit(fit, model, replace(dense, settled_from=config.epochs - 1))
        epochs = config.round_epochs or max(1, config.epochs - step.epochs)
        for number, level in enumerate(levels, 1):
            scores = magnitudes(config.prune.weights(model))
            mask = Mask.from_scores(scores, level, config.scope, mask, config.floor)
            self.masks.append(mask)
            self._rewind(model, early.captured)
            if number < len(levels):
                phase = Phase(f"imp-{number}", epochs, optim, hooks=(Masked(mask),))
                phase = replace(phase, settled_from=epochs - 1)
                if config.lr == "resume":
                    phase = replace(phase, lr_from=step)
                self._fit(fit, model, phase)
        assert mask is not None
        if config.control == "random":
            mask = Mask.random_like(mask, seed_for(self.seed, "imp control"))
        if config.control == "shuffle":
            self.start = shuffled(self.start, mask, seed_for(self.seed, "imp control"))
        return mask

    def _rewind(self, model: nn.Module, early: dict[str, torch.Tensor]) -> None:
        """Put weights back, and BatchNorm statistics as the policy says; becomes `start`."""
        kept = {name: value.detach().clone() for name, value in model.named_buffers()}
        model.load_state_dict(early)
        if self.config.buffers == "keep":
            for name, value in model.named_buffers():
                value.copy_(kept[name])
        elif self.config.buffers == "reset":
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.reset_running_stats()
        self.start = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


@register_search
def imp(config: ImpConfig | None = None, seed: int = 0) -> Imp:
    """Iterative magnitude pruning with late rewinding."""
    return Imp(config, seed)
