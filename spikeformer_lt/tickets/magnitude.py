"""One-shot magnitude pruning: the simplest search."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.base import OneShotConfig, Search, magnitudes, snapshot
from spikeformer_lt.training.phase import Fit, Phase


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
