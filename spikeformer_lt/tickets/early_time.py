"""Early-Time tickets: search with fewer time steps, whatever the search."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import kept_modes
from spikeformer_lt.registry import create_search, register_search
from spikeformer_lt.ticket import Ticket, load_state
from spikeformer_lt.tickets.base import Batch, Search, noted, snapshot
from spikeformer_lt.tickets.configs import EarlyTimeConfig
from spikeformer_lt.tickets.presets import preset_optim
from spikeformer_lt.training.options import TrainConfig
from spikeformer_lt.training.phase import Fit, Phase

log = logging.getLogger(__name__)


@torch.no_grad()
def divergences(model: nn.Module, images: Tensor, order: str, batch: int = 250) -> list[float]:
    """Divergence between the class probabilities after t steps and after all T.

    One run at T gives every t: ``P_t`` is the softmax of the mean logits of the first t steps, in
    eval mode. Mean over the images, for t = 2 to T - 1, in nats, of KL(P_t || P_T) ("paper") or
    KL(P_T || P_t) ("code"); `batch` images at a time.
    """
    with kept_modes(model):
        model.eval()
        logits = torch.cat([model(part).double() for part in images.split(batch)])
    steps = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    logs = F.log_softmax(logits.cumsum(1) / steps[None, :, None], dim=2)
    few, full = logs[:, 1:-1], logs[:, -1:].expand_as(logs[:, 1:-1])
    p, q = (few, full) if order == "paper" else (full, few)
    return [float(value) for value in (p.exp() * (p - q)).sum(2).mean(0)]


def choose_time(values: Sequence[float], T: int, threshold: float, order: str) -> int:
    """The fewest steps t >= 2 whose divergence, normalised, is below the threshold; else T.

    `values` are of t = 2 to T - 1; "paper" normalises by that of t = 2, "code" by the largest.
    """
    unit = max(values[:1] if order == "paper" else values, default=0.0)
    for t, value in enumerate(values, 2):
        if (value / unit if unit > 0 else 0.0) < threshold:
            return t
    return T


@contextlib.contextmanager
def at_time(model: nn.Module, T: int) -> Iterator[None]:
    """Run a network with T steps inside, frames cut to their first T; a ConfigError without T."""
    own = getattr(model, "T", None)
    if not isinstance(own, int):
        raise ConfigError(f"{model._get_name()} has no number of time steps T to change")

    def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        return (x[:, :T] if x.ndim == 5 else x, *rest)

    def confirm(_: nn.Module, args: Any, logits: Any) -> None:
        if logits.shape[1] != T:
            raise ConfigError(
                f"{model._get_name()} gave {logits.shape[1]} time steps where T={T} was set"
            )

    handles = (model.register_forward_pre_hook(cut), model.register_forward_hook(confirm))
    model.T = T  # type: ignore[assignment]
    try:
        yield
    finally:
        model.T = own  # type: ignore[assignment]
        for handle in handles:
            handle.remove()


def find_after(train: TrainConfig, search: Any, model: nn.Module, fit: Fit) -> Ticket:
    """What a search finds in a network that was trained through the ``phases`` of `train` before.

    Each phase goes on from the best weights of the one before. The ticket tells them as "before".

    Source: training at T = 1 first, then at 4: Yao et al., ICLR 2024 (arXiv 2404.03663).
    """
    before = []
    for number, (T, epochs, optim) in enumerate(train.stretches, 1):
        with at_time(model, T):
            result = fit(model, Phase(f"before{number}", epochs, optim))
        before.append({"T": T, **asdict(result)})
    ticket: Ticket = search.find(model, fit)
    return noted(ticket, before=before) if before else ticket


@register_search("early_time", EarlyTimeConfig)
class EarlyTime(Search):
    """Another search, run with fewer time steps; the ticket is to be trained with all T.

    The probe's short training is undone before the search. Beside the arguments of every search,
    `inner` is the search inside; the one that the configuration names, with its defaults, if None.

    Source: Kim et al., ECCV 2022 (arXiv 2207.01382), section 3.3.
    """

    def __init__(
        self,
        config: EarlyTimeConfig | None = None,
        seed: int = 0,
        batch: Batch | None = None,
        inner: Search | None = None,
    ) -> None:
        super().__init__(config, seed, batch)
        if inner is None:
            inner = create_search(self.config.search, seed=seed, batch=batch)
        self.inner, self.trained, self.T = inner, inner.trained, 0

    def check(self, model: nn.Module) -> None:
        """As the search inside."""
        self.inner.check(model)

    def planned(self) -> int:
        """Epochs of the probe and of the search inside."""
        return int(self.config.epochs + self.inner.planned())

    def find(self, model: nn.Module, fit: Fit) -> Ticket:
        """Choose the time, search with it, give T back; a ConfigError for a model without T."""
        config = self.config
        self.check(model)
        with at_time(model, int(getattr(model, "T", 0))):
            before = snapshot(model)
            phase = Phase("early_time", config.epochs, preset_optim(config.preset))
            probed = self._fit(fit, model, phase)
            own = int(model.T)  # type: ignore[arg-type]
            values = divergences(model, self._images(config.images)[0], config.order)
            self.T = choose_time(values, own, config.threshold, config.order)
            load_state(model, before)
        with at_time(model, self.T):
            ticket = self.inner.find(model, fit)
        self.start, self.results = self.inner.start, [probed, *self.inner.results]
        about = {"T": own, "T_early": self.T, "divergences": values, "config": asdict(config)}
        if self.trained and own != self.T:
            told = f"the network was trained with {self.T} of {own} time steps, and not after"
            log.warning("NOTICE: early_time: %s; --%s.control start does", told, self.inner.name)
            ticket = noted(ticket, deviations=[*ticket.provenance.get("deviations", ()), told])
        phases = [asdict(probed), *ticket.provenance.get("phases", [])]
        seconds = sum(phase["seconds"] for phase in phases)
        return noted(ticket, early_time=about, phases=phases, search_seconds=seconds)
