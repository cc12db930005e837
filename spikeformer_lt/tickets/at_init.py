"""Pruning at initialisation: SNIP, GraSP and SynFlow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.layers.neuron import LIF, Activation, Relu
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.base import Search, kept_modes
from spikeformer_lt.tickets.configs import GraspConfig, SnipConfig, SynflowConfig
from spikeformer_lt.training.phase import Fit


def loss_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Gradient of the cross entropy of the mean logits; the model is left as it was.

    BatchNorm normalises by the batch, as at the start of training; its buffers do not move. A
    weight that the loss does not depend on has gradient 0.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with kept_modes(model), torch.enable_grad():
        model.train()
        try:
            loss = F.cross_entropy(model(images).mean(1), labels)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        finally:
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
    return {
        name: torch.zeros_like(weight) if grad is None else grad
        for (name, weight), grad in zip(weights.items(), found, strict=True)
    }


@register_search("snip", SnipConfig)
class Snip(Search):
    """Weights with the smallest ``|g * w|`` are removed, on one batch, before any training.

    Source: Lee et al., ICLR 2019 (arXiv 1810.02340), eq. 6. On SNNs it falls below random masks
    at high sparsity: arXiv 2207.01382.
    """

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        weights = self.config.prune.weights(model)
        grads = loss_gradients(model, weights, *self._images(self.config.images))
        scores = {name: (grads[name] * weight.detach()).abs() for name, weight in weights.items()}
        return self.config.mask(scores)  # type: ignore[no-any-return]


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


@register_search("grasp", GraspConfig)
class Grasp(Search):
    """Keeps the weights with the largest ``w * Hg``.

    Removing weight q changes ``||g||^2`` by about ``-2 w_q (Hg)_q``: those go first whose removal
    raises it most.

    Source: Wang et al., ICLR 2020 (arXiv 2002.07376), eq. 8.
    """

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, weights = self.config, self.config.prune.weights(model)
        images, labels = self._images(config.images)
        curved = hessian_gradient(
            weights, lambda: loss_gradients(model, weights, images, labels), config.step
        )
        scores = {name: weight.detach() * curved[name] for name, weight in weights.items()}
        return config.mask(scores)  # type: ignore[no-any-return]


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


@register_search("synflow", SynflowConfig)
class Synflow(Search):
    """Weights with the least ``|w * dR/dw|`` go, ``R = sum of the outputs for an input of ones``.

    Every round ranks what is left anew, which keeps a layer from vanishing as a whole. Of `batch`
    the shape alone is looked at.

    Source: Tanaka et al., NeurIPS 2020 (arXiv 2006.05467), algorithm 1.
    """

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
