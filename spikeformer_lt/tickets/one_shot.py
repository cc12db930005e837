"""One-shot masks: by magnitude, N:M by magnitude, and at random (the control), uniform or ERK."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.tickets.base import Search, magnitudes, prunable, snapshot
from spikeformer_lt.tickets.configs import MagnitudeConfig, NmConfig, RandomConfig
from spikeformer_lt.training.phase import Fit, Phase


def kept_counts(
    shapes: Mapping[str, Sequence[int]], sparsity: float, distribution: str
) -> dict[str, int]:
    """Weights that each layer keeps; together exactly ``n - round(sparsity * n)``.

    ``uniform`` gives every layer the same density. ``erk`` (Erdos-Renyi kernel) gives a layer a
    density proportional to ``(out + in + kH + kW) / (out * in * kH * kW)``; layers that would
    exceed 1 are dense, and the others share the rest. Fractions are rounded by largest remainder.

    Raises:
        ConfigError: sparsity outside [0, 1), or an unknown distribution.

    Source: ERK: Evci et al., ICML 2020 (arXiv 1911.11134), section 3.
    """
    RandomConfig(sparsity, distribution)  # refuses what is not allowed
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    target = total - round(sparsity * total)
    if distribution == "uniform":
        wanted = {name: target * size / total for name, size in sizes.items()}
    else:
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


def random_mask(weights: Mapping[str, Tensor], counts: Mapping[str, int], seed: int) -> Mask:
    """Keep so many weights of each layer at random places, each layer drawn by its own name."""
    first = {
        name: (torch.arange(weight.numel()) < counts[name]).view(weight.shape)
        for name, weight in weights.items()
    }
    return Mask.random_like(Mask(first), seed_for(seed, "random ticket"))


@register_search("magnitude", MagnitudeConfig)
class Magnitude(Search):
    """Smallest weights removed in one step, after a training if the configuration says so."""

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        return self.config.mask(magnitudes(self._trained(model, fit)))  # type: ignore[no-any-return]

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
        weights = self.config.prune.weights(model)
        shapes = {name: weight.shape for name, weight in weights.items()}
        counts = kept_counts(shapes, self.config.sparsity, self.config.distribution)
        return random_mask(weights, counts, self.seed)


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
        flags = torch.zeros(groups.shape, dtype=torch.bool)
        flags.scatter_(1, order[:, :n], True)
        kept[name] = flags.view(rows.shape).movedim(-1, 1).contiguous()
    return Mask(kept)


@register_search("nm", NmConfig)
class Nm(Magnitude):
    """Semi-structured tickets by magnitude.

    Layers whose number of inputs is no multiple of m (an RGB convolution) stay dense and are not
    in the mask.

    Source: Zhou et al., ICLR 2021 (arXiv 2102.04010), the N:M pattern; 2:4 by magnitude is the
    plain baseline of it.
    """

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, weights = self.config, self._trained(model, fit)
        fitting = {name: w for name, w in weights.items() if w.shape[1] % config.m == 0}
        if not fitting:
            raise ConfigError(f"m={config.m} divides the inputs of no layer; choose another")
        return nm_mask(magnitudes(fitting), config.n, config.m)
