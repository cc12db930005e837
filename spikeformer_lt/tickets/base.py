"""What all searches share: prunable weights, phases, and the ticket with its provenance."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.adapted import PRUNABLE
from spikeformer_lt.errors import ConfigError, TicketError, listed, shown
from spikeformer_lt.layers.neuron import reset_state
from spikeformer_lt.layers.patches import selections
from spikeformer_lt.mask import SCOPES, Mask, check_floor
from spikeformer_lt.rng import isolated_rng, seed_for
from spikeformer_lt.runtime import moved
from spikeformer_lt.ticket import Ticket, load_state
from spikeformer_lt.tickets import presets
from spikeformer_lt.training.options import OptimConfig, Step
from spikeformer_lt.training.phase import BEGIN, Fit, FitResult, Masked, Phase
from spikeformer_lt.training.ranks import digest

__getattr__ = moved(__name__)
log = logging.getLogger(__name__)
_MANY = 256  # weights whose spread tells something
Batch = Callable[[int], tuple[Tensor, Tensor]]
"""Gives so many training images and their labels, not augmented; `Trainer.batch` is one."""


def prunable(model: nn.Module, prune: Any) -> dict[str, Tensor]:
    """The weights that a `PruneConfig` allows, by state_dict name; a ConfigError for none.

    Weights that are frozen beside others that train, as of a random attention, are left alone, and
    those of selectors before blocks. One that several layers share has the name of the first.
    """
    chosen = {m for select in selections(model) for m in select.modules()}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, PRUNABLE) and m not in chosen}
    first = {id(m.weight): n for n, m in reversed(layers.items())}
    layers = {n: m for n, m in layers.items() if first[id(m.weight)] == n}
    linears = [n for n, m in layers.items() if isinstance(m, nn.Linear)]
    spared = [] if prune.head else _head(model, layers)
    spared += [] if prune.first_conv else [n for n in layers if n not in linears][:1]
    frozen = [n for n, m in layers.items() if not m.weight.requires_grad]
    spared += frozen if len(frozen) < len(layers) else []
    found = {
        f"{name}.weight": layer.weight
        for name, layer in layers.items()
        if name not in spared and (not prune.inside or name.startswith(prune.inside))
    }
    if not found:
        raise ConfigError(
            f"prune.inside={list(prune.inside)} leaves nothing to prune in "
            f"{model._get_name()}; its layers are {', '.join(layers) or 'none'}"
        )
    return found


def _head(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Names of the layers that give the logits: what the model declares, else the last linear map.

    A ConfigError where there is neither.
    """
    owners = [model, getattr(model, "network", None)]
    classifiers = [getattr(own, "get_classifier", None) for own in owners]  # timm's networks
    found = [get() for get in classifiers if callable(get)]
    found += [getattr(own, "head", None) for own in owners]
    for some in found:
        parts = some if isinstance(some, tuple | list) else (some,)
        inside = {m for part in parts if isinstance(part, nn.Module) for m in part.modules()}
        if names := [n for n, m in layers.items() if m in inside]:
            return names
    linears = [n for n, m in layers.items() if isinstance(m, nn.Linear)]
    if not linears:
        raise ConfigError(
            f"prune.head=False is not allowed: no layer of {model._get_name()} is known to give "
            "the logits; name the others by prune.inside"
        )
    return linears[-1:]


class Search:
    """Base of searches; a subclass gives `_search` and is registered with its config class.

    Args:
        config: a frozen dataclass, stored in the ticket; the config class's defaults if None.
        seed: of everything that the search draws.
        batch: gives training images, for searches that look at some.

    Attributes:
        start: whole state_dict, set by `find`; the ticket's weights are ``mask * start``.
        results: the phases that `find` trained: what the search cost.
        trained: the ticket's weights are trained ones, not a point to start from.
    """

    name: ClassVar[str]
    config_class: ClassVar[type | None] = None
    trained: bool = False
    floored: ClassVar[tuple[str, ...]] = SCOPES  # scopes whose rates a floor changes
    least: ClassVar[int] = 0  # weights that each layer keeps whatever the floor

    def __init__(self, config: Any = None, seed: int = 0, batch: Batch | None = None) -> None:
        if config is None and self.config_class is not None:
            config = self.config_class()
        self.config = self.resolved(config)
        self.seed, self.batch = seed, batch
        self.control: str = getattr(self.config, "control", "none")
        if self.control != "none":
            self.trained = False
        self.results: list[FitResult] = []
        self.start: dict[str, Tensor] = {}
        self.begun: dict[str, Tensor] = {}  # what the search's training began with

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, seed {self.seed})"

    @staticmethod
    def resolved(config: Any) -> Any:
        """The configuration that runs: with what its preset fixes, in PRESETS of its class."""
        return presets.resolved(config)

    def find(self, model: nn.Module, fit: Fit) -> Ticket:
        """Find a ticket; `model` ends holding its weights, plain and ready to train.

        A TicketError says that the mask is not of the sparsity that was asked for. What `check`
        refuses is refused before anything is trained.
        """
        self.check(model)
        self.results, self.start = [], snapshot(model)
        self.begun = self.start
        mask = self._search(model, fit)
        if empty := [name for name, kept in mask.items() if not bool(kept.any())]:
            log.warning("NOTICE: %s left no weight of %s", self.name, listed(map(shown, empty)))
        asked = self._asked(mask)
        if asked is not None and asked != mask.removed:
            raise TicketError(
                f"{self.name} was to remove {asked} of {mask.total} weights and removed "
                f"{mask.removed}: its phases are those of another search; give a new --run.out"
            )
        if self.control != "none" and not self.trained:
            self.start = self.begun if type(self).trained else self.start
            seed = seed_for(self.seed, f"{self.name} control")
            mask, self.start = control(self.control, mask, self.start, model, seed)
            if self.control == "fresh" and (odd := _spread_apart(self.start, self.begun)):
                told = "layers draw weights 1.5 times as wide or narrow as those that it began with"
                log.warning("NOTICE: control=fresh: %d %s: %s", len(odd), told, shown(odd[0]))
        ticket = self._ticket(model, mask)
        reset_state(model)
        return ticket

    def check(self, model: nn.Module) -> None:
        """Refuse, before anything is trained, what `find` would refuse of a model.

        Its weights need no values; folders that the configuration names are opened.
        """
        if not hasattr(self.config, "prune"):
            return
        sizes = {name: w.numel() for name, w in self.config.prune.weights(model).items()}
        scope: str = getattr(self.config, "scope", "global")
        floor = self._floor() if scope in self.floored else 0.0
        of_weights = getattr(self.config, "kind", "weights") == "weights"
        if (floor or self.least) and of_weights and hasattr(self.config, "sparsity"):
            check_floor(sizes, self._rate(), scope, floor, self.least)

    def _floor(self) -> float:
        """Least fraction of a layer that the last mask keeps."""
        return float(getattr(self.config, "floor", 0.0))

    def _rate(self) -> float:
        """Fraction of the prunable weights that the last mask removes."""
        return float(self.config.sparsity)

    def _asked(self, mask: Mask) -> int | None:
        """Weights to be removed, by the configuration; None where it names no rate."""
        if not (hasattr(self.config, "sparsity") and hasattr(self.config, "prune")):
            return None
        return asked_for(mask, self._rate(), getattr(self.config, "scope", None))

    def planned(self) -> int:
        """Most epochs that `find` trains, for the time that a run has left."""
        return int(getattr(self.config, "epochs", 0))

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        raise NotImplementedError

    def _fit(self, fit: Fit, model: nn.Module, phase: Phase) -> FitResult:
        """Train a phase, marked with what asked for it, and keep its result."""
        own: dict[str, Any] = {self.name: self.config} if is_dataclass(self.config) else {}
        own |= {"search": self.name, "search_seed": self.seed}
        self.results.append(fit(model, replace(phase, origin={**own, **phase.origin})))
        return self.results[-1]

    def _images(self, count: int) -> tuple[Tensor, Tensor]:
        if self.batch is None:
            raise ConfigError(
                f"{self.name} looks at training images: give batch=trainer.batch, or a function "
                "from a count to (images, labels)"
            )
        return self.batch(count)

    def _ticket(self, model: nn.Module, mask: Mask) -> Ticket:
        load_state(model, self.start)
        quiet = self.config.prune.silence and not self.trained
        whole = silenced(model, mask) if quiet else mask
        whole.apply_(model)
        counted = self.config.prune.weights(model)
        count = sum(weight.numel() for weight in counted.values())
        gone = Mask({name: kept for name, kept in mask.items() if name in counted}).removed
        about = {
            "search": self.name,
            "config": asdict(self.config),
            "search_seed": self.seed,
            "trained": self.trained,
            "control": self.control,
            "phases": [asdict(result) for result in self.results],
            "search_seconds": sum(result.seconds for result in self.results),
            "prunable_weights": count,
            "prunable_sparsity": gone / count,
            "total_sparsity": mask.removed / sum(p.numel() for p in model.parameters()),
            "dead_filters": dead_filters(mask),
            "mask_sha256": whole.sha256,
            "deviations": deviations(self.config),
        }
        return Ticket.of(model, whole, about)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the whole state_dict on the CPU."""
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


def magnitudes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w| of each weight."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def dead_filters(mask: Mask) -> dict[str, int]:
    """Output rows of which no weight is left, by layer; their neurons see the norm's bias alone."""
    counts = {n: int((~kept.flatten(1).any(1)).sum()) for n, kept in mask.items() if kept.ndim > 1}
    return {name: count for name, count in counts.items() if count}


def silenced(model: nn.Module, mask: Mask) -> Mask:
    """The mask with BatchNorm's scale and shift of every output row of which no weight is left.

    The norm is the one registered behind its layer; of two in a row neither is taken.
    """
    kinds = (*PRUNABLE, _BatchNorm)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
    found = dict(mask)
    for at, ((name, _), (norm, following)) in enumerate(pairwise(layers)):
        kept = mask.get(f"{name}.weight")
        if kept is None or not isinstance(following, _BatchNorm) or not following.affine:
            continue
        alive = kept.flatten(1).any(1)
        if len(alive) == following.num_features and not bool(alive.all()):
            if any(isinstance(m, _BatchNorm) for _, m in layers[at + 2 : at + 3]):
                told = "NOTICE: prune.silence: which norm follows %s is not known"
                log.warning(told, shown(name))
                continue
            for entry in (f"{norm}.weight", f"{norm}.bias"):
                found[entry] = found[entry] & alive if entry in found else alive
    return Mask(found)


def retrain(
    model: nn.Module,
    ticket: Ticket,
    fit: Fit,
    epochs: int,
    optim: OptimConfig | None = None,
    name: str = "retrain",
    lr_from: Step = BEGIN,
) -> FitResult:
    """Train a model from a ticket, in place, as a phase; what the mask removes stays exactly 0.

    `lr_from` is where the learning-rate schedule is entered.
    """
    ticket.apply_(model)
    origin, hooks = {"ticket.weights": digest(ticket.tensors)}, (Masked(ticket.mask),)
    return fit(model, Phase(name, epochs, optim, hooks=hooks, lr_from=lr_from, origin=origin))


def with_phase(ticket: Ticket, result: FitResult, **about: Any) -> Ticket:
    """The ticket with one more phase in its provenance: what was trained from it."""
    return noted(ticket, phases=[*ticket.provenance.get("phases", []), asdict(result)], **about)


def noted(ticket: Ticket, **about: Any) -> Ticket:
    """The ticket with more provenance."""
    return replace(ticket, provenance={**ticket.provenance, **about})


def deviations(config: Any) -> list[str]:
    """What the preset of a search does in another way than its source, by DEVIATIONS."""
    return list(getattr(config, "DEVIATIONS", {}).get(getattr(config, "preset", ""), ()))


def asked_for(mask: Mask, sparsity: float, scope: str | None) -> int:
    """Entries of a mask that a sparsity removes: of all together, or of each layer by itself."""
    sizes = [kept.numel() for kept in mask.values()] if scope == "layer" else [mask.total]
    return sum(round(sparsity * size) for size in sizes)


def control(
    kind: str, mask: Mask, start: Mapping[str, Tensor], model: nn.Module, seed: int
) -> tuple[Mask, dict[str, Tensor]]:
    """The mask and the start weights of a control, as of `TrainedPruning`.

    `start` is the whole state_dict of the ticket's start weights; the model is not changed.

    Source: Frankle & Carbin, ICLR 2019 (arXiv 1803.03635), section 2; arXiv 2009.11094.
    """
    if kind == "random":
        return Mask.random_like(mask, seed), dict(start)
    if kind == "shuffle":
        return mask, shuffled(start, mask, seed)
    return mask, fresh_weights(model, seed) if kind == "fresh" else dict(start)


def fresh_weights(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A state_dict drawn anew, by each layer's ``reset_parameters``; a ConfigError without one."""
    twin = copy.deepcopy(model)
    with isolated_rng(seed):
        for name, module in reversed(list(twin.named_modules())):  # parents have the last word
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ConfigError(
                    f"control=fresh: {name or 'the model'}, a {type(module).__name__}, has no "
                    "reset_parameters() to draw its weights anew; use random or shuffle"
                )
        own: Any = getattr(twin, "init_weights", None)
        if callable(own):
            own()
    return snapshot(twin)


def _spread_apart(fresh: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> list[str]:
    """Names of large weights that are spread otherwise than before: a network's own constructor."""
    sizes = {n: float(w.std()) / max(1e-12, float(begun[n].std())) for n, w in fresh.items()
             if w.ndim > 1 and w.numel() >= _MANY and w.is_floating_point()}  # fmt: skip
    return [name for name, ratio in sizes.items() if not 1 / 1.5 < ratio < 1.5]


@torch.no_grad()
def shuffled(state: Mapping[str, Tensor], names: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The state with each named tensor's values permuted at random: an untouched distribution."""
    out, generator = dict(state), torch.Generator().manual_seed(seed)
    for name in names:
        order = torch.randperm(state[name].numel(), generator=generator)
        out[name] = state[name].flatten()[order].view(state[name].shape)
    return out
