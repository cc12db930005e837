"""SynFlow: prune at initialisation by synaptic flow, without data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.config import check
from spikeformer_lt.layers.activation import Activation, Relu
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.base import Batch, OneShotConfig, Search
from spikeformer_lt.training.phase import Fit


@dataclass(frozen=True)
class SynflowConfig(OneShotConfig):
    """Rank the initial weights by the flow through them, again and again as they go."""

    rounds: int = 100
    """Rounds; after round i a fraction (1 - sparsity)^(i / rounds) is left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.rounds >= 1, "rounds", self.rounds, "at least 1")


def positive_twin(model: nn.Module) -> nn.Module:
    """A copy whose parameters are absolute, whose norms and neurons pass positive values on.

    Norms become the identity (up to the rounding of their epsilon), neurons a ReLU, which the
    identity is on values that are never negative; float64, for products over many layers. Hooks on
    outputs stay the model's own: without neurons a static image has one step only.
    """
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module._forward_hooks.clear()
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (LIF, Activation)):
                setattr(parent, name, Relu())
            elif isinstance(child, _BatchNorm):
                child.reset_running_stats()
                nn.init.ones_(child.weight)
                nn.init.zeros_(child.bias)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
    return twin.eval().double()


class Synflow(Search):
    """Weights with the least ``|w * dR/dw|`` go, ``R = sum of the outputs for an input of ones``.

    Every round ranks what is left anew, which is what keeps a layer from vanishing as a whole.

    Args:
        config: sparsity and rounds.
        seed: unused; every search takes one.
        batch: gives the shape of an input; its values are never looked at.

    Source: Tanaka et al., NeurIPS 2020 (arXiv 2006.05467), algorithm 1.
    """

    name = "synflow"

    def __init__(
        self, config: SynflowConfig | None = None, seed: int = 0, batch: Batch | None = None
    ) -> None:
        super().__init__(config or SynflowConfig(), seed, batch)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, twin = self.config, positive_twin(model)
        ones = torch.ones_like(self._images(1)[0][:1], dtype=torch.float64)
        weights = config.prune.weights(twin)
        mask = None
        for number in range(1, config.rounds + 1):
            left = (1 - config.sparsity) ** (number / config.rounds)
            sparsity = config.sparsity if number == config.rounds else 1 - left
            scores = flow(twin, weights, ones)
            mask = Mask.from_scores(scores, sparsity, config.scope, mask, config.floor)
            mask.apply_(twin)
        assert mask is not None
        return mask


def flow(twin: nn.Module, weights: Mapping[str, Tensor], ones: Tensor) -> dict[str, Tensor]:
    """``|w * dR/dw|`` of each weight, over the largest of them: a scale ranks nothing."""
    with torch.enable_grad():
        total = twin(ones).sum()
        found = torch.autograd.grad(
            total / total.detach().clamp(min=1e-300), list(weights.values())
        )
    return {
        name: (grad * weight.detach()).abs()
        for (name, weight), grad in zip(weights.items(), found, strict=True)
    }


@register_search
def synflow(config: SynflowConfig | None = None, seed: int = 0, batch: Any = None) -> Synflow:
    """Pruning at initialisation by synaptic flow (SynFlow)."""
    return Synflow(config, seed, batch)
