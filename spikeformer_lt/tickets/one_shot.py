"""How many weights each layer keeps when a sparsity is shared out before any ranking.

One-shot magnitude pruning: the simplest search.

Random tickets: the control that every search must beat.

N:M masks: N of every M weights in a row are kept, as sparse tensor cores want them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.tickets.base import OneShotConfig, PruneConfig, Search, magnitudes, snapshot
from spikeformer_lt.training.phase import Fit, Phase

DISTRIBUTIONS = ("uniform", "erk")


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
    check(0 <= sparsity < 1, "sparsity", sparsity, "in [0, 1)")
    allowed = ", ".join(DISTRIBUTIONS)
    check(distribution in DISTRIBUTIONS, "distribution", distribution, f"one of {allowed}")
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
    first = {}
    for name, weight in weights.items():
        flat = torch.zeros(weight.numel(), dtype=torch.bool)
        flat[: counts[name]] = True
        first[name] = flat.view(weight.shape)
    return Mask.random_like(Mask(first), seed_for(seed, "random ticket"))


@dataclass(frozen=True)
class MagnitudeConfig(OneShotConfig):
    """Remove the smallest weights at once."""

    epochs: int = 0
    """Epochs of dense training before the removal; 0 ranks the initial weights."""
    start: str = "init"
    """Start weights of the ticket: init, or trained (fine-tuning, as compression does)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.epochs >= 0, "epochs", self.epochs, "at least 0")
        check(self.start in ("init", "trained"), "start", self.start, "init or trained")


class Magnitude(Search):
    """Smallest weights removed in one step.

    Args:
        config: sparsity, and whether to train first.
        seed: unused; every search takes one.
    """

    name = "magnitude"

    def __init__(self, config: MagnitudeConfig | None = None, seed: int = 0) -> None:
        super().__init__(config or MagnitudeConfig(), seed)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config = self.config
        if config.epochs:
            last = config.epochs - 1
            self._fit(fit, model, Phase("magnitude", config.epochs, settled_from=last))
        if config.start == "trained":
            self.start = snapshot(model)
        return config.mask(magnitudes(config.prune.weights(model)))  # type: ignore[no-any-return]


@register_search
def magnitude(config: MagnitudeConfig | None = None, seed: int = 0) -> Magnitude:
    """One-shot magnitude pruning, at initialisation or after training."""
    return Magnitude(config, seed)


@dataclass(frozen=True)
class RandomConfig:
    """Random places at a given sparsity."""

    sparsity: float = 0.9
    """Fraction of the prunable weights removed, in [0, 1): exactly round(sparsity * n) of n."""
    distribution: str = "uniform"
    """uniform: the same density in each layer; erk: denser where a layer is small."""
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        kept_counts({"": (1,)}, self.sparsity, self.distribution)


class RandomTicket(Search):
    """A random mask over the initial weights.

    Args:
        config: sparsity and its distribution over layers.
        seed: of the places.
    """

    name = "random"

    def __init__(self, config: RandomConfig | None = None, seed: int = 0) -> None:
        super().__init__(config or RandomConfig(), seed)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        weights = self.config.prune.weights(model)
        shapes = {name: weight.shape for name, weight in weights.items()}
        counts = kept_counts(shapes, self.config.sparsity, self.config.distribution)
        return random_mask(weights, counts, self.seed)


@register_search
def random(config: RandomConfig | None = None, seed: int = 0) -> RandomTicket:
    """Random mask, uniform or ERK, over the initial weights."""
    return RandomTicket(config, seed)


@dataclass(frozen=True)
class NmConfig:
    """Keep the n largest of every m weights along the input channels."""

    n: int = 2
    """Weights kept of each group."""
    m: int = 4
    """Weights of a group: neighbours along the input channels, at one kernel position."""
    epochs: int = 0
    """Epochs of dense training before the removal; 0 ranks the initial weights."""
    start: str = "init"
    """Start weights of the ticket: init, or trained."""
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        check(self.m >= 2, "m", self.m, "at least 2")
        check(1 <= self.n < self.m, "n", self.n, f"from 1 to m - 1 = {self.m - 1}")
        check(self.epochs >= 0, "epochs", self.epochs, "at least 0")
        check(self.start in ("init", "trained"), "start", self.start, "init or trained")


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


class Nm(Search):
    """Semi-structured tickets by magnitude.

    Layers whose number of inputs is no multiple of m (an RGB convolution) stay dense and are not
    in the mask.

    Args:
        config: the pattern, and whether to train first.
        seed: unused; every search takes one.

    Source: Zhou et al., ICLR 2021 (arXiv 2102.04010), the N:M pattern; 2:4 by magnitude is the
    plain baseline of it.
    """

    name = "nm"

    def __init__(self, config: NmConfig | None = None, seed: int = 0) -> None:
        super().__init__(config or NmConfig(), seed)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config = self.config
        if config.epochs:
            last = config.epochs - 1
            self._fit(fit, model, Phase("nm", config.epochs, settled_from=last))
        if config.start == "trained":
            self.start = snapshot(model)
        weights = config.prune.weights(model)
        fitting = {name: w for name, w in weights.items() if w.shape[1] % config.m == 0}
        if not fitting:
            raise ConfigError(f"m={config.m} divides the inputs of no layer; choose another")
        return nm_mask(magnitudes(fitting), config.n, config.m)


@register_search
def nm(config: NmConfig | None = None, seed: int = 0) -> Nm:
    """2:4 and other N:M masks by magnitude."""
    return Nm(config, seed)
