"""N:M masks: N of every M weights in a row are kept, as sparse tensor cores want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.tickets.base import PruneConfig, Search, magnitudes, snapshot
from spikeformer_lt.training.phase import Fit, Phase


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
