"""Early-Bird tickets: stop training as soon as the mask stands still."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import PruneConfig, Search, check_mask_options, magnitudes
from spikeformer_lt.tickets.channels import channel_mask, find_groups, norm_scales
from spikeformer_lt.tickets.presets import preset_optim
from spikeformer_lt.training.hook import Hook
from spikeformer_lt.training.phase import Fit, Phase, Progress


@dataclass(frozen=True)
class EarlyBirdConfig:
    """Watch the mask of the dense network at the start of each epoch."""

    preset: str = "default"
    """default; eccv22: the SNN form, 300 epochs, SGD at 0.3, twice that for the search."""
    kind: str = "weights"
    """weights: unstructured, by |w|; channels: by the scale of the BatchNorm, whole channels."""
    sparsity: float = 0.9
    """Fraction removed, in [0, 1): of the prunable weights, or of the removable channels."""
    scope: str = "global"
    """global ranks all layers together; layer removes the same fraction of each."""
    floor: float = 0.0
    """Least fraction of each layer that stays, in [0, 1]; channels: at least one always does."""
    epochs: int = 30
    """Most epochs of the search; the mask of the last one is taken if none stood still."""
    window: int = 5
    """Masks compared: the newest with all others."""
    tolerance: float = -1.0
    """Largest distance in the window that counts as standing still; below 0: 0.02 for weights, 0.1
    for channels."""
    lr_factor: float = 2.0
    """Learning rate of the search over the run's own."""
    l1: float = 1e-4
    """Penalty on the BatchNorm scales while channels are searched."""
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        check(self.preset in ("default", "eccv22"), "preset", self.preset, "default or eccv22")
        check(self.kind in ("weights", "channels"), "kind", self.kind, "weights or channels")
        check_mask_options(self)
        check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        check(self.window >= 2, "window", self.window, "at least 2")
        check(self.tolerance <= 1, "tolerance", self.tolerance, "at most 1")
        check(self.lr_factor > 0, "lr_factor", self.lr_factor, "above 0")
        check(0 <= self.l1 < 1, "l1", self.l1, "in [0, 1)")

    def resolved(self) -> EarlyBirdConfig:
        """The configuration that runs, with its tolerance and what the preset fixes."""
        usual = 0.02 if self.kind == "weights" else 0.1
        made = replace(self, tolerance=self.tolerance if self.tolerance >= 0 else usual)
        if self.preset == "default":
            return made
        return replace(
            made, kind="weights", scope="global", floor=0.0, epochs=300, window=5, tolerance=0.02,
            lr_factor=2.0,
        )  # fmt: skip


class MaskWatch(Hook):
    """Ends a phase when the newest of some masks differs little from the ones before.

    Args:
        draw: the mask of the present weights.
        window: masks compared.
        tolerance: largest Hamming distance, as a fraction of all entries.
        penalty: added to the gradient of each norm's scale, times its sign.

    No decision is made before the window is full, so that the first possible end is before epoch
    index ``window - 1``.
    """

    def __init__(
        self,
        draw: Callable[[nn.Module], Mask],
        window: int,
        tolerance: float,
        penalty: Mapping[str, float] | None = None,
    ) -> None:
        self.draw, self.window, self.tolerance = draw, window, tolerance
        self.penalty = dict(penalty or {})
        self.masks: list[Mask] = []
        self.distances: list[float] = []
        self.history: list[list[float]] = []
        self.epoch, self.still = -1, False

    def before_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Draw the mask once for each epoch, and compare."""
        if epoch > self.epoch:  # an epoch that was resumed amid has been looked at
            self.epoch = epoch
            self.masks = [*self.masks, self.draw(model)][-self.window :]
            newest = self.masks[-1]
            self.distances = [newest.hamming(mask) for mask in self.masks[:-1]]
            self.history.append(self.distances)
            full = len(self.masks) == self.window
            self.still = full and max(self.distances) < max(self.tolerance, 1e-12)
        return self.still

    @torch.no_grad()
    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Add the L1 penalty of the scales."""
        for name, strength in self.penalty.items():
            scale = model.get_parameter(name)
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=strength)

    def tensors(self) -> dict[str, Tensor]:
        """The masks in the window."""
        return {f"{i}/{n}": kept for i, mask in enumerate(self.masks) for n, kept in mask.items()}

    def state(self) -> dict[str, Any]:
        """Where the watch stands."""
        known = {"epoch": self.epoch, "still": self.still, "count": len(self.masks)}
        return {**known, "distances": self.distances, "history": self.history}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take masks and decision over."""
        self.epoch, self.still = int(state["epoch"]), bool(state["still"])
        self.distances = [float(value) for value in state["distances"]]
        self.history = [[float(value) for value in row] for row in state.get("history", [])]
        parts: list[dict[str, Tensor]] = [{} for _ in range(int(state["count"]))]
        for key, kept in tensors.items():
            place, _, name = key.partition("/")
            parts[int(place)][name] = kept
        self.masks = [Mask(part) for part in parts]


class EarlyBird(Search):
    """Lottery tickets drawn early in training; the ticket starts from the initial weights.

    Args:
        config: form, sparsity and when to stop.
        seed: unused; every search takes one.

    The channel form removes whole channels: `channels.shrink` makes the smaller network.

    Source: You et al., ICLR 2020 (arXiv 1909.11957), algorithm 1, the channel form; Kim et al.,
    ECCV 2022 (arXiv 2207.01382), section 3.2, the weight form.
    """

    name = "early_bird"

    def __init__(self, config: EarlyBirdConfig | None = None, seed: int = 0) -> None:
        super().__init__((config or EarlyBirdConfig()).resolved(), seed)

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, channels = self.config, self.config.kind == "channels"
        groups = find_groups(model, *self._images(2)) if channels else ()

        def draw(now: nn.Module) -> Mask:
            scores = norm_scales(now, groups) if channels else magnitudes(config.prune.weights(now))
            floor = config.floor
            if channels:  # never a whole layer: nothing would pass it
                floor = max(floor, min(1 / score.numel() for score in scores.values()))
            return Mask.from_scores(scores, config.sparsity, config.scope, floor=floor)

        scales = {group.scale: config.l1 for group in groups}
        self.watch = MaskWatch(draw, config.window, config.tolerance, scales)
        phase = Phase("early_bird", config.epochs, preset_optim(config.preset))
        phase = replace(phase, hooks=(self.watch,), lr_factor=config.lr_factor)
        stopped = self._fit(fit, model, replace(phase, settled_from=config.epochs - 1))
        still = stopped.epochs < config.epochs
        mask = self.watch.masks[-1] if still else draw(model)
        return channel_mask(model, groups, mask) if channels else mask

    def _ticket(self, model: nn.Module, mask: Mask) -> Ticket:
        """With each epoch's distances to the masks before it in the window, oldest first."""
        made = super()._ticket(model, mask)
        about = {**made.provenance, "mask_distances": self.watch.history}
        return Ticket(made.mask, made.tensors, about)


@register_search
def early_bird(
    config: EarlyBirdConfig | None = None, seed: int = 0, batch: Any = None
) -> EarlyBird:
    """Early-Bird tickets: unstructured, or whole channels by BatchNorm scale."""
    search = EarlyBird(config, seed)
    search.batch = batch
    return search
