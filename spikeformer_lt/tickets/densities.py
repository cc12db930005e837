"""How many weights each layer keeps when a sparsity is shared out before any ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.rng import seed_for

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
