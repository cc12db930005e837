"""Dynamic sparse training: one engine for SET, RigL and a GraNet-style schedule."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from spikeformer_lt.layers.kernels.dispatch import Kept
from spikeformer_lt.mask import Mask, keep_largest
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import generator_for
from spikeformer_lt.tickets.base import Search, snapshot
from spikeformer_lt.tickets.configs import SparseTrainingConfig
from spikeformer_lt.tickets.one_shot import random_mask
from spikeformer_lt.training.phase import Fit, Phase, Progress, Rewired

log = logging.getLogger(__name__)


def exchange(weight: Tensor, kept: Tensor, count: int, grow: Tensor) -> Tensor:
    """Drop the `count` smallest kept weights, then grow as many where `grow` is largest.

    A weight just dropped may come back. Of equals the lower index wins. The count stays.
    """
    alive = int(kept.sum())
    count = min(count, kept.numel() - alive, alive)
    if count == 0:
        return kept
    flat = kept.to(weight.device).flatten()
    small = torch.where(flat, -weight.detach().abs().flatten(), -math.inf)
    out = flat & ~keep_largest(small, count)
    score = grow.detach().to(weight.device).flatten().nan_to_num(0.0)
    out |= keep_largest(torch.where(out, -math.inf, score), count)
    return out.view(kept.shape).to(kept.device)


class Rewiring(Rewired):
    """Changes the mask between a backward and its step, while the dense gradient is still there."""

    def __init__(self, mask: Mask, config: SparseTrainingConfig, seed: int) -> None:
        super().__init__(mask)
        self.config, self.seed = config, seed

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Say where the training is too short for any exchange."""
        super().start(model, steps_per_epoch, epochs)
        last = self._last(steps_per_epoch * epochs)
        if self.config.every >= last and self.config.drop > 0:
            log.warning(
                "NOTICE: every=%d: this training changes its mask up to step %d of "
                "%d, so that no weight is exchanged; give a smaller number",
                self.config.every, last, steps_per_epoch * epochs,
            )  # fmt: skip

    def _last(self, total: int) -> int:
        return min(max(1, math.floor(self.config.end * total)), total - 1)

    def kept(self, model: nn.Module, progress: Progress) -> dict[Tensor, Kept]:
        """None in a step whose dense gradients say where weights grow."""
        due = self._due(progress) and self.config.grow != "random"
        return {} if due else super().kept(model, progress)

    def _due(self, progress: Progress) -> bool:
        update = progress.epoch * progress.steps_per_epoch + progress.step
        last = self._last(progress.epochs * progress.steps_per_epoch)
        # The last update exchanges nothing and settles the sparsity.
        return update == last or (0 < update < last and update % self.config.every == 0)

    @torch.no_grad()
    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Update the mask if it is time, then clear the gradients of what is removed."""
        if self._due(progress):
            update = progress.epoch * progress.steps_per_epoch + progress.step
            last = self._last(progress.epochs * progress.steps_per_epoch)
            self.change(self._next(model, update, last), model, optimizer)
        super().after_backward(model, optimizer, progress)

    def _next(self, model: nn.Module, update: int, last: int) -> Mask:
        config, done = self.config, update / last if last else 1.0
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
                grow = torch.rand(
                    kept.shape, generator=generator_for(self.seed, "grow", update, name)
                )
            else:
                grow = torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
            out[name] = exchange(weight, kept, int(fraction * int(kept.sum())), grow)
        return Mask(out)


@register_search("sparse_training", SparseTrainingConfig)
class SparseTraining(Search):
    """Dynamic sparse training; the ticket holds trained weights and the final mask.

    Source: SET: Mocanu et al., Nat. Commun. 2018 (arXiv 1707.04780); RigL: Evci et al., ICML 2020
    (arXiv 1911.11134), algorithm 1; GraNet: Liu et al., NeurIPS 2021 (arXiv 2106.10404).
    """

    trained = True

    @staticmethod
    def resolved(config: SparseTrainingConfig) -> SparseTrainingConfig:
        """The configuration that runs: a preset fixes how weights grow and where it starts."""
        made: SparseTrainingConfig = Search.resolved(config)
        begin = made.sparsity if made.start_sparsity < 0 else made.start_sparsity
        return replace(made, start_sparsity=min(begin, made.sparsity))

    def _floor(self) -> float:
        """None where training starts at the last rate, and removes nothing by a floor."""
        return super()._floor() if self.config.start_sparsity < self.config.sparsity else 0.0

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, weights = self.config, self.config.prune.weights(model)
        mask = random_mask(weights, config.start_sparsity, config.distribution, self.seed)
        self.wiring = Rewiring(mask, config, self.seed)
        settled = math.ceil(config.end * config.epochs)
        phase = Phase("sparse_training", config.epochs, hooks=(self.wiring,))
        self._fit(fit, model, replace(phase, settled_from=settled))
        self.start = snapshot(model)
        return self.wiring.mask
