"""SNIP: prune at initialisation by connection sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.base import Batch, OneShotConfig, Search
from spikeformer_lt.training.phase import Fit


@dataclass(frozen=True)
class SnipConfig(OneShotConfig):
    """Rank the initial weights by |gradient times weight|."""

    images: int = 128
    """Training images that the gradient is taken on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.images >= 2, "images", self.images, "at least 2")


def loss_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Gradient of the cross entropy of the mean logits; the model is left as it was.

    BatchNorm normalises by the batch, as at the start of training; its buffers do not move. A
    weight that the loss does not depend on has gradient 0.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(model(images).mean(1), labels)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return {
        name: torch.zeros_like(weight) if grad is None else grad
        for (name, weight), grad in zip(weights.items(), found, strict=True)
    }


class Snip(Search):
    """Weights with the smallest ``|g * w|`` are removed, on one batch, before any training.

    Args:
        config: sparsity and batch.
        seed: unused; every search takes one.
        batch: where the images come from.

    Source: Lee et al., ICLR 2019 (arXiv 1810.02340), eq. 6. On SNNs it falls below random masks
    at high sparsity: arXiv 2207.01382.
    """

    name = "snip"

    def __init__(
        self, config: SnipConfig | None = None, seed: int = 0, batch: Batch | None = None
    ) -> None:
        super().__init__(config or SnipConfig(), seed, batch)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        weights = self.config.prune.weights(model)
        grads = loss_gradients(model, weights, *self._images(self.config.images))
        scores = {name: (grads[name] * weight.detach()).abs() for name, weight in weights.items()}
        return self.config.mask(scores)  # type: ignore[no-any-return]


@register_search
def snip(config: SnipConfig | None = None, seed: int = 0, batch: Batch | None = None) -> Snip:
    """Pruning at initialisation by connection sensitivity (SNIP)."""
    return Snip(config, seed, batch)
