"""Masks without a search in training: by magnitude, N:M, at random; SNIP, GraSP and SynFlow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import kept_modes
from spikeformer_lt.layers.neuron import LIF, Activation, Relu, foreign_neurons, make_linear
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.tickets.base import Search, magnitudes, prunable, snapshot
from spikeformer_lt.tickets.configs import (
    GraspConfig,
    MagnitudeConfig,
    NmConfig,
    RandomConfig,
    SnipConfig,
    SynflowConfig,
)
from spikeformer_lt.training.phase import Fit, Phase, of_first


def kept_counts(
    shapes: Mapping[str, Sequence[int]], sparsity: float, distribution: str
) -> dict[str, int]:
    """Weights that each layer keeps; together exactly ``n - round(sparsity * n)``.

    ``uniform`` gives every layer the same density. ``erk`` (Erdos-Renyi kernel) gives a layer a
    density proportional to ``(out + in + kH + kW) / (out * in * kH * kW)``; layers that would
    exceed 1 are dense, and the others share the rest. Fractions are rounded by largest remainder.

    Source: ERK: Evci et al., ICML 2020 (arXiv 1911.11134), section 3.
    """
    RandomConfig(sparsity, distribution)  # refuses what is not allowed
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    target = total - round(sparsity * total)
    wanted = {name: target * size / total for name, size in sizes.items()}
    if distribution == "erk":
        wanted = _erk(shapes, sizes, target)
    counts = {name: min(sizes[name], math.floor(share + 1e-9)) for name, share in wanted.items()}
    by_rest = sorted(sizes, key=lambda name: counts[name] - wanted[name])
    while (missing := target - sum(counts.values())) > 0:
        for name in [n for n in by_rest if counts[n] < sizes[n]][:missing]:
            counts[name] += 1
    return counts


def _erk(
    shapes: Mapping[str, Sequence[int]], sizes: Mapping[str, int], target: int
) -> dict[str, float]:
    raw = {name: float(sum(shape)) for name, shape in shapes.items()}  # density times size
    dense: set[str] = set()
    while True:
        left = target - sum(sizes[name] for name in dense)
        scale = left / max(1e-12, sum(raw[name] for name in raw if name not in dense))
        full = {n for n in raw if n not in dense and raw[n] * scale > sizes[n]}
        if not full:
            return {n: float(sizes[n]) if n in dense else raw[n] * scale for n in raw}
        dense |= full


def random_mask(
    weights: Mapping[str, Tensor], sparsity: float, distribution: str, seed: int
) -> Mask:
    """Keep `kept_counts` weights at random places, each layer drawn by its own name."""
    counts = kept_counts({n: w.shape for n, w in weights.items()}, sparsity, distribution)
    first = {n: (torch.arange(w.numel()) < counts[n]).view(w.shape) for n, w in weights.items()}
    return Mask.random_like(Mask(first), seed_for(seed, "random ticket"))


@register_search("magnitude", MagnitudeConfig)
class Magnitude(Search):
    """Smallest weights removed in one step, after a training if the configuration says so."""

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        return of_first(self.config.mask(magnitudes(self._trained(model, fit))))

    def _trained(self, model: nn.Module, fit: Fit) -> dict[str, Tensor]:
        """The prunable weights, after the dense training if there is one."""
        config = self.config
        if config.epochs:
            last = config.epochs - 1
            self._fit(fit, model, Phase(self.name, config.epochs, settled_from=last))
        if config.start == "trained":
            self.start = snapshot(model)
        return prunable(model, config.prune)


@register_search("random", RandomConfig)
class RandomTicket(Search):
    """A random mask over the initial weights, at a density for each layer."""

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config = self.config
        weights = config.prune.weights(model)
        return random_mask(weights, config.sparsity, config.distribution, self.seed)


def nm_mask(scores: Mapping[str, Tensor], n: int, m: int) -> Mask:
    """Keep the n largest scores of each m along dimension 1; of equal ones the first.

    Raises:
        MaskError: a layer whose inputs are no multiple of m (by torch's own view).
    """
    kept = {}
    for name, score in scores.items():
        rows = score.detach().cpu().movedim(1, -1)
        groups = rows.reshape(-1, m)
        order = torch.sort(groups, dim=1, descending=True, stable=True).indices
        flags = torch.zeros_like(groups, dtype=torch.bool).scatter(1, order[:, :n], True)
        kept[name] = flags.view(rows.shape).movedim(-1, 1).contiguous()
    return Mask(kept)


@register_search("nm", NmConfig)
class Nm(Magnitude):
    """Semi-structured tickets by magnitude.

    Layers whose number of inputs is no multiple of m stay dense and are not in the mask.

    Source: Zhou et al., ICLR 2021 (arXiv 2102.04010), the N:M pattern.
    """

    def check(self, model: nn.Module) -> None:
        """Refuse a group that divides the inputs of no layer."""
        self._fitting(self.config.prune.weights(model))

    def _fitting(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        m = self.config.m
        fitting = {name: w for name, w in weights.items() if w.shape[1] % m == 0}
        if not fitting:
            raise ConfigError(f"m={m} is not allowed: it divides the inputs of no layer")
        return fitting

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        fitting = self._fitting(self._trained(model, fit))
        return nm_mask(magnitudes(fitting), self.config.n, self.config.m)


def loss_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Gradient of the cross entropy of the mean logits in train mode; the model stays as it is."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with kept_modes(model), torch.enable_grad():
        logits = functional_call(model.train(), buffers, images)
        loss = F.cross_entropy(logits.mean(1), labels)
        every = list(weights.values())
        found = torch.autograd.grad(loss, every, allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


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
        return of_first(self.config.mask(scores))


@torch.no_grad()
def hessian_gradient(
    weights: Mapping[str, Tensor], gradients: Callable[[], dict[str, Tensor]], step: float
) -> dict[str, Tensor]:
    """``H g`` by a central difference of gradients at ``w + e g`` and ``w - e g``.

    ``e = step ||w|| / ||g||``. Surrogate gradients have no second derivative that means anything.
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
        for distance in (away, -away):
            for name, weight in weights.items():
                weight.copy_(own[name] + distance * grad[name])
            sides.append(gradients())
    finally:
        for name, weight in weights.items():
            weight.copy_(own[name])
    return {name: (sides[0][name] - sides[1][name]) / (2 * away) for name in own}


@register_search("grasp", GraspConfig)
class Grasp(Search):
    """Weights go first whose removal raises ``||g||^2`` most: those with the smallest ``w * Hg``.

    Source: Wang et al., ICLR 2020 (arXiv 2002.07376), eq. 8.
    """

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        weights = self.config.prune.weights(model)
        gradients = partial(loss_gradients, model, weights, *self._images(self.config.images))
        curved = hessian_gradient(weights, gradients, self.config.step)
        scores = {name: weight.detach() * curved[name] for name, weight in weights.items()}
        return of_first(self.config.mask(scores))


def positive_twin(model: nn.Module) -> nn.Module:
    """A float64 copy with absolute parameters, norms that are the identity, and ReLU neurons.

    Hooks on outputs go: without neurons a static image has one step.
    """
    twin = copy.deepcopy(model)
    for parent in list(twin.modules()):
        parent._forward_hooks.clear()
        for name, child in parent.named_children():
            if isinstance(child, (LIF, Activation)):
                setattr(parent, name, Relu())
            elif isinstance(child, _BatchNorm):
                child.reset_running_stats()
                if child.affine:
                    nn.init.ones_(child.weight)
                    nn.init.zeros_(child.bias)
            elif isinstance(child, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | _InstanceNorm):
                setattr(parent, name, nn.Identity())
            elif hasattr(child, "form"):  # it runs on the weights themselves, not on their signs
                setattr(child, "effective_weight", partial(getattr, child, "weight"))  # noqa: B010
    for neuron in foreign_neurons(twin).values():
        make_linear(neuron)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
    return twin.eval().double()


@register_search("synflow", SynflowConfig)
class Synflow(Search):
    """Weights with the least ``|w * dR/dw|`` go, ``R = sum of the outputs for an input of ones``.

    Every round ranks what is left anew. Of `batch` the shape alone is looked at.

    Source: Tanaka et al., NeurIPS 2020 (arXiv 2006.05467), algorithm 1.
    """

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, twin = self.config, positive_twin(model)
        ones = torch.ones_like(self._images(1)[0][:1], dtype=torch.float64)
        weights = config.prune.weights(twin)
        mask = None
        for number in range(1, config.rounds + 1):
            left = (1 - config.sparsity) ** (number / config.rounds)
            level = replace(config, sparsity=1 - left) if number < config.rounds else config
            mask = of_first(level.mask(flow(twin, weights, ones), mask))
            mask.apply_(twin)
        return mask  # type: ignore[return-value]


def flow(twin: nn.Module, weights: Mapping[str, Tensor], ones: Tensor) -> dict[str, Tensor]:
    """``|w * dR/dw|`` of each weight, over the largest of them: a scale ranks nothing."""
    with torch.enable_grad():
        total = twin(ones).sum()
        total = total / total.detach().clamp(min=1e-300)
        found = torch.autograd.grad(total, list(weights.values()))
    pairs = zip(weights.items(), found, strict=True)
    return {name: (grad * weight.detach()).abs() for (name, weight), grad in pairs}
