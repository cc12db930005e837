"""GraSP: prune at initialisation so that the gradient keeps flowing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.base import Batch, Search
from spikeformer_lt.tickets.snip import SnipConfig, loss_gradients
from spikeformer_lt.training.phase import Fit


@dataclass(frozen=True)
class GraspConfig(SnipConfig):
    """Rank the initial weights by what their removal does to the gradient's norm."""

    step: float = 1e-2
    """Length of the finite difference, over that of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.step < 1, "step", self.step, "in (0, 1)")


@torch.no_grad()
def hessian_gradient(
    weights: Mapping[str, Tensor], gradients: Callable[[], dict[str, Tensor]], step: float
) -> dict[str, Tensor]:
    """``H g`` by a central difference of gradients along g; the weights come back bit for bit.

    Surrogate gradients have no second derivative that means anything to a spike, so that the
    gradients themselves are compared at ``w + e g`` and ``w - e g``, ``e = step ||w|| / ||g||``.
    """
    own = {name: weight.detach().clone() for name, weight in weights.items()}
    grad = gradients()
    length = sum(float(g.double().square().sum()) for g in grad.values()) ** 0.5
    size = sum(float(w.double().square().sum()) for w in own.values()) ** 0.5
    if length == 0:
        return {name: torch.zeros_like(value) for name, value in grad.items()}
    away = step * size / length
    sides = []
    try:
        for sign in (1.0, -1.0):
            for name, weight in weights.items():
                weight.copy_(own[name] + sign * away * grad[name])
            sides.append(gradients())
    finally:
        for name, weight in weights.items():
            weight.copy_(own[name])
    return {name: (sides[0][name] - sides[1][name]) / (2 * away) for name in own}


class Grasp(Search):
    """Keeps the weights with the largest ``w * Hg``.

    Removing weight q changes ``||g||^2`` by about ``-2 w_q (Hg)_q``: those go first whose removal
    raises it most.

    Args:
        config: sparsity, batch and difference step.
        seed: unused; every search takes one.
        batch: where the images come from.

    Source: Wang et al., ICLR 2020 (arXiv 2002.07376), eq. 8.
    """

    name = "grasp"

    def __init__(
        self, config: GraspConfig | None = None, seed: int = 0, batch: Batch | None = None
    ) -> None:
        super().__init__(config or GraspConfig(), seed, batch)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, weights = self.config, self.config.prune.weights(model)
        images, labels = self._images(config.images)
        curved = hessian_gradient(
            weights, lambda: loss_gradients(model, weights, images, labels), config.step
        )
        scores = {name: weight.detach() * curved[name] for name, weight in weights.items()}
        return config.mask(scores)  # type: ignore[no-any-return]


@register_search
def grasp(config: GraspConfig | None = None, seed: int = 0, batch: Batch | None = None) -> Grasp:
    """Pruning at initialisation that preserves gradient flow (GraSP)."""
    return Grasp(config, seed, batch)
