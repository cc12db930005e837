"""Random tickets: the control that every search must beat."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.base import PruneConfig, Search
from spikeformer_lt.tickets.densities import kept_counts, random_mask
from spikeformer_lt.training.phase import Fit


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
