"""Dynamic sparse training: one engine for SET, RigL and a GraNet-style schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.tickets.base import PruneConfig, Search, snapshot
from spikeformer_lt.tickets.one_shot import DISTRIBUTIONS, kept_counts, random_mask
from spikeformer_lt.training.phase import Fit, Phase, Progress, Rewired

PRESETS: dict[str, dict[str, Any]] = {
    "set": {"grow": "random", "start_sparsity": -1.0, "distribution": "erk"},
    "rigl": {"grow": "gradient", "start_sparsity": -1.0, "distribution": "erk"},
    "granet": {"grow": "gradient", "start_sparsity": 0.5, "distribution": "erk"},
}


@dataclass(frozen=True)
class SparseTrainingConfig:
    """Train sparse from the start; now and then drop the smallest weights and grow others."""

    preset: str = "rigl"
    """set (grows at random), rigl (where the gradient is largest), granet (rigl that begins at
    50 % and prunes on), or default, which leaves the fields as given."""
    sparsity: float = 0.9
    """Final fraction removed, in [0, 1): exactly round(sparsity * n) of n."""
    start_sparsity: float = -1.0
    """Sparsity at the start; below 0: the final one, kept all along."""
    grow: str = "gradient"
    """gradient or random."""
    distribution: str = "erk"
    """Start densities over the layers: uniform or erk."""
    drop: float = 0.3
    """Fraction of a layer's weights exchanged by the first update; falls to 0 on a cosine."""
    every: int = 100
    """Optimizer steps between updates."""
    end: float = 0.75
    """Fraction of the training after which the mask stays as it is."""
    floor: float = 0.005
    """Least fraction of each layer that pruning leaves (schedules that prune on)."""
    epochs: int = 30
    """Epochs of the training."""
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        known = ("default", *PRESETS)
        check(self.preset in known, "preset", self.preset, f"one of {', '.join(known)}")
        check(0 <= self.sparsity < 1, "sparsity", self.sparsity, "in [0, 1)")
        low = self.start_sparsity <= self.sparsity
        check(low, "start_sparsity", self.start_sparsity, "at most the final sparsity")
        check(self.grow in ("gradient", "random"), "grow", self.grow, "gradient or random")
        allowed = ", ".join(DISTRIBUTIONS)
        check(self.distribution in DISTRIBUTIONS, "distribution", self.distribution, allowed)
        check(0 <= self.drop < 1, "drop", self.drop, "in [0, 1)")
        check(self.every >= 1, "every", self.every, "at least 1")
        check(0 < self.end <= 1, "end", self.end, "in (0, 1]")
        check(0 <= self.floor <= 1, "floor", self.floor, "in [0, 1]")
        check(self.epochs >= 1, "epochs", self.epochs, "at least 1")

    def resolved(self) -> SparseTrainingConfig:
        """The configuration that runs: a preset fixes how weights grow and where it starts."""
        made = self if self.preset == "default" else replace(self, **PRESETS[self.preset])
        begin = made.sparsity if made.start_sparsity < 0 else made.start_sparsity
        return replace(made, start_sparsity=min(begin, made.sparsity))


def exchange(weight: Tensor, kept: Tensor, count: int, grow: Tensor) -> Tensor:
    """Drop the `count` smallest kept weights, then grow as many where `grow` is largest.

    A weight just dropped may come back. Of equals the lower index wins. The count stays.
    """
    alive = int(kept.sum())
    count = min(count, kept.numel() - alive, alive)
    if count == 0:
        return kept
    size, flat = weight.detach().abs().flatten().cpu(), kept.flatten()
    size = torch.where(flat, size, torch.full_like(size, math.inf))
    out = flat.clone()
    out[torch.sort(size, stable=True).indices[:count]] = False
    score = grow.detach().flatten().cpu().double()
    score = torch.where(out, torch.full_like(score, -math.inf), score)
    out[torch.sort(score, descending=True, stable=True).indices[:count]] = True
    return out.view(kept.shape)


class Rewiring(Rewired):
    """Changes the mask during training, between a backward and its step.

    The dense gradient is there for nothing: a removed weight is 0 in value, and its gradient is
    cleared only after this has looked at it.
    """

    def __init__(self, mask: Mask, config: SparseTrainingConfig, seed: int) -> None:
        super().__init__(mask)
        self.config, self.seed = config, seed

    @torch.no_grad()
    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Update the mask if it is time, then clear the gradients of what is removed."""
        update = progress.epoch * progress.steps_per_epoch + progress.step
        total = progress.epochs * progress.steps_per_epoch
        last = min(max(1, math.floor(self.config.end * total)), total - 1)
        due = update > 0 and update % self.config.every == 0 and update < last
        if due or update == last:  # the last update exchanges nothing and settles the sparsity
            self.change(self._next(model, update, last), model, optimizer)
        super().after_backward(model, optimizer, progress)

    def _next(self, model: nn.Module, update: int, last: int) -> Mask:
        config, done = self.config, update / max(1, last)
        parameters = dict(model.named_parameters())
        mask, final = self.mask, config.sparsity
        if config.start_sparsity < final:
            level = final + (config.start_sparsity - final) * (1 - done) ** 3
            scores = {name: parameters[name].detach().abs() for name in mask}
            level = max(level, mask.sparsity)
            mask = Mask.from_scores(scores, level, "global", mask, config.floor)
        fraction = config.drop / 2 * (1 + math.cos(math.pi * done))
        out = {}
        for name, kept in mask.items():
            weight = parameters[name]
            if config.grow == "random":
                generator = torch.Generator().manual_seed(seed_for(self.seed, "grow", update, name))
                grow = torch.rand(kept.shape, generator=generator)
            else:
                grow = torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
            out[name] = exchange(weight, kept, int(fraction * int(kept.sum())), grow)
        return Mask(out)


class SparseTraining(Search):
    """Dynamic sparse training; the ticket holds trained weights and the final mask.

    Args:
        config: growth rule and schedule.
        seed: of the start mask and of random growth.

    Source: SET: Mocanu et al., Nat. Commun. 2018 (arXiv 1707.04780); RigL: Evci et al., ICML 2020
    (arXiv 1911.11134), algorithm 1; GraNet: Liu et al., NeurIPS 2021 (arXiv 2106.10404).
    """

    name = "sparse_training"
    trained = True

    def __init__(self, config: SparseTrainingConfig | None = None, seed: int = 0) -> None:
        super().__init__((config or SparseTrainingConfig()).resolved(), seed)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, weights = self.config, self.config.prune.weights(model)
        shapes = {name: weight.shape for name, weight in weights.items()}
        counts = kept_counts(shapes, config.start_sparsity, config.distribution)
        self.wiring = Rewiring(random_mask(weights, counts, self.seed), config, self.seed)
        settled = math.ceil(config.end * config.epochs)
        phase = Phase("sparse_training", config.epochs, hooks=(self.wiring,))
        self._fit(fit, model, replace(phase, settled_from=settled))
        self.start = snapshot(model)
        return self.wiring.mask


@register_search
def sparse_training(config: SparseTrainingConfig | None = None, seed: int = 0) -> SparseTraining:
    """Dynamic sparse training: SET, RigL, or a GraNet-style schedule."""
    return SparseTraining(config, seed)
