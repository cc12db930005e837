"""Early-Time tickets: search with fewer time steps, whatever the search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import create_search, register_search
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import Batch, Search, snapshot
from spikeformer_lt.tickets.configs import preset_optim
from spikeformer_lt.training.phase import Fit, Phase

ORDERS = ("paper", "code")


@dataclass(frozen=True)
class EarlyTimeConfig:
    """Find the fewest time steps whose output is near that of all T."""

    preset: str = "default"
    """default, or eccv22: 2 epochs, 1000 images, threshold 0.6, SGD at 0.3."""
    epochs: int = 2
    """Epochs of dense training before the probe; its weights are thrown away."""
    images: int = 1000
    """Training images of the probe."""
    threshold: float = 0.6
    """Normalised divergence below which a number of steps will do, in [0, 1]."""
    order: str = "paper"
    """paper: KL(P_t || P_T) over that of t = 2; code: KL(P_T || P_t) over the largest."""

    def __post_init__(self) -> None:
        check(self.preset in ("default", "eccv22"), "preset", self.preset, "default or eccv22")
        check(self.epochs >= 0, "epochs", self.epochs, "at least 0")
        check(self.images >= 1, "images", self.images, "at least 1")
        check(0 <= self.threshold <= 1, "threshold", self.threshold, "in [0, 1]")
        check(self.order in ORDERS, "order", self.order, f"one of {', '.join(ORDERS)}")

    def resolved(self) -> EarlyTimeConfig:
        """The configuration that runs: a preset fixes the published settings."""
        if self.preset == "default":
            return self
        return replace(self, epochs=2, images=1000, threshold=0.6)


@torch.no_grad()
def divergences(model: nn.Module, images: Tensor, order: str, batch: int = 250) -> list[float]:
    """Divergence between the class probabilities after t steps and after all T.

    The network is causal in time, so that one run at T gives every t: ``P_t`` is the softmax of
    the mean logits of the first t steps. It is evaluated as it would be used, with the running
    statistics of its norms; neither they nor the training mode of any module change.

    Args:
        model: gives logits ``[B, T, K]``.
        images: ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``.
        order: "paper" for KL(P_t || P_T), "code" for KL(P_T || P_t).
        batch: images at a time.

    Returns:
        Mean over the images for t = 2 to T - 1, in nats.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        parts = [model(part).double() for part in images.split(batch)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    logits = torch.cat(parts)
    steps = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    logs = F.log_softmax(logits.cumsum(1) / steps[None, :, None], dim=2)
    found = []
    for t in range(2, logits.shape[1]):
        few, full = logs[:, t - 1], logs[:, -1]
        p, q = (few, full) if order == "paper" else (full, few)
        found.append(float((p.exp() * (p - q)).sum(1).mean()))
    return found


def choose_time(values: Sequence[float], T: int, threshold: float, order: str) -> int:
    """The fewest steps t >= 2 whose divergence, normalised, is below the threshold; else T.

    Args:
        values: divergences for t = 2 to T - 1.
        T: all steps.
        threshold: in [0, 1]; 0 gives T, unless a divergence is not there at all.
        order: "paper" normalises by the value of t = 2 (which is then 1), "code" by the largest.
    """
    if not values:
        return T
    unit = values[0] if order == "paper" else max(values)
    for t, value in enumerate(values, 2):
        if (value / unit if unit > 0 else 0.0) < threshold:
            return t
    return T


@contextlib.contextmanager
def at_time(model: nn.Module, T: int) -> Iterator[None]:
    """Run a network with T steps inside: frames are cut to their first T; its own T comes back.

    Raises:
        ConfigError: the model has no T, or does not follow it.
    """
    own = getattr(model, "T", None)
    if not isinstance(own, int):
        raise ConfigError(f"{type(model).__name__} has no number of time steps T to change")

    def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        return (x[:, :T] if x.ndim == 5 else x, *rest)

    def confirm(_: nn.Module, args: Any, logits: Any) -> None:
        if logits.shape[1] != T:
            raise ConfigError(
                f"{type(model).__name__} gave {logits.shape[1]} time steps where T={T} was set"
            )

    handles = (model.register_forward_pre_hook(cut), model.register_forward_hook(confirm))
    model.T = T  # type: ignore[assignment]
    try:
        yield
    finally:
        model.T = own  # type: ignore[assignment]
        for handle in handles:
            handle.remove()


class EarlyTime:
    """Another search, run with fewer time steps; the ticket is to be trained with all T.

    The probe's short training is undone before the search, which begins from the same weights and
    buffers as without it.

    Args:
        config: how the number of steps is chosen.
        search: the search to run, or its name.
        seed: of a search given by name.
        batch: where the probe's images come from.

    Source: Kim et al., ECCV 2022 (arXiv 2207.01382), section 3.3.
    """

    name = "early_time"

    def __init__(
        self,
        config: EarlyTimeConfig | None = None,
        search: Search | str = "imp",
        seed: int = 0,
        batch: Batch | None = None,
    ) -> None:
        self.config, self.batch = (config or EarlyTimeConfig()).resolved(), batch
        self.inner = create_search(search, seed=seed) if isinstance(search, str) else search
        self.trained = bool(self.inner.trained)
        self.T = 0

    @property
    def start(self) -> dict[str, Tensor]:
        """Start weights of the search inside."""
        return self.inner.start

    def find(self, model: nn.Module, fit: Fit) -> Ticket:
        """Choose the time, search with it, give T back.

        Raises:
            ConfigError: no images to probe with, or a model without T.
        """
        config = self.config
        if self.batch is None:
            raise ConfigError("early_time looks at training images: give batch=trainer.batch")
        with at_time(model, int(getattr(model, "T", 0))):
            before = snapshot(model)
            probed = fit(model, Phase("early_time", config.epochs, preset_optim(config.preset)))
            own = int(model.T)  # type: ignore[arg-type]
            values = divergences(model, self.batch(config.images)[0], config.order)
            self.T = choose_time(values, own, config.threshold, config.order)
            model.load_state_dict(before)
        with at_time(model, self.T):
            ticket: Ticket = self.inner.find(model, fit)
        about = {"T": own, "T_early": self.T, "divergences": values, "config": asdict(config)}
        phases = [asdict(probed), *ticket.provenance.get("phases", [])]
        found = {**ticket.provenance, "early_time": about, "phases": phases}
        found["search_seconds"] = sum(phase["seconds"] for phase in phases)
        return Ticket(ticket.mask, ticket.tensors, found)


@register_search
def early_time(
    config: EarlyTimeConfig | None = None,
    search: Search | str = "imp",
    seed: int = 0,
    batch: Batch | None = None,
) -> EarlyTime:
    """Any other search with fewer time steps (Early-Time)."""
    return EarlyTime(config, search, seed, batch)
