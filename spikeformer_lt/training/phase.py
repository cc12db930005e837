"""A phase: one stretch of training with its own epochs, optimizer and hooks.

Hooks are what a search does inside it, with a state that survives a kill: capture the weights to
rewind to, hold a mask, change it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from spikeformer_lt.config import flat_values, to_dict
from spikeformer_lt.errors import CheckpointError, ConfigError, shown
from spikeformer_lt.layers.kernels.dispatch import Kept
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.mask import Mask
from spikeformer_lt.training.optim import Ema
from spikeformer_lt.training.options import OptimConfig, Step
from spikeformer_lt.training.ranks import from_first, share_buffers, together

log = logging.getLogger(__name__)

BEGIN = Step()  # of a phase


@dataclass(frozen=True)
class Progress:
    """Where a phase stands, before a step; beyond its `epochs` while it is extended."""

    epoch: int
    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epochs_done(self) -> float:
        """Epochs behind, with the fraction of the present one."""
        return self.epoch + self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Fraction of the phase that is done, in [0, 1); above 1 while it is extended."""
        return self.epochs_done / self.epochs


@dataclass(frozen=True)
class Phase:
    """What a search asks of `fit`.

    Attributes:
        name: unique in the run: key of its checkpoints, seeds and summary rows.
        epochs: epochs to train; 0 returns at once.
        optim: overrides the run's optimizer.
        before_step, after_step: called around every optimizer step (annealing, masks).
        settled_from: first epoch whose validation may choose the best weights.
        teacher, distill: frozen network whose softened logits are distilled; its weight in [0, 1].
        frozen: prefixes of parameter names that do not train, and whose BatchNorms stay in eval.
        hooks: what the search does inside; their state is saved and restored with the phase.
        lr_factor: multiplies the peak learning rate, also that of scores.
        lr_from: where the learning-rate schedule, longer by so much, is entered.
        tags: further columns of the phase's summary rows.
        origin: what else makes it, by name, in configurations or values that JSON can hold: the
            search and its configuration. A phase is resumed under the same origin alone.
    """

    name: str
    epochs: int
    optim: OptimConfig | None = None
    before_step: Callable[[Progress], None] | None = None
    after_step: Callable[[], None] | None = None
    settled_from: int = 0
    teacher: nn.Module | None = None
    distill: float = 0.0
    frozen: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()
    lr_factor: float = 1.0
    lr_from: Step = BEGIN
    tags: dict[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def facts(self, usual: OptimConfig) -> dict[str, Any]:
        """What makes the phase, by name, in a run whose `usual` optimizer is given."""
        masks = [hook.mask.sha256 if hook.mask else "" for hook in self.hooks]
        own = {
            "epochs": self.epochs, "settled_from": self.settled_from, "distill": self.distill,
            "frozen": list(self.frozen), "lr_factor": self.lr_factor, "lr_from": str(self.lr_from),
            "hooks": [type(hook).__name__ for hook in self.hooks], "masks": masks,
        }  # fmt: skip
        optim = {"train.optim": to_dict(usual)}
        if self.optim is not None:
            optim = {f"{self.name}.optim": to_dict(self.optim)}
        origin = {k: to_dict(v) if is_dataclass(v) else v for k, v in self.origin.items()}
        return dict(flat_values(origin)) | dict(flat_values({self.name: own, **optim}))

    def optimizer(self, usual: OptimConfig) -> OptimConfig:
        """The optimizer of this phase in a run whose `usual` one is given."""
        chosen, by = self.optim or usual, self.lr_factor
        return replace(chosen, lr=chosen.lr * by, score_lr=chosen.score_lr * by)


@contextlib.contextmanager
def held(model: nn.Module, prefixes: Sequence[str]) -> Iterator[None]:
    """Within, parameters whose names start with one of these parts of a model do not train."""
    own = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(f"{name}.".startswith(f"{p}.") for p in prefixes)
    ]
    for parameter in own:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in own:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class FitResult:
    """What a phase reached: the model holds its best validated weights.

    `epochs` is how many it trained: fewer than asked for where a hook ended it, more where it was
    extended. `best_epoch` counts from 1; 0 is none. `best_on_test` is the best test accuracy of
    all validated epochs, %, where it was asked for.
    """

    phase: str
    val_accuracy: float
    best_epoch: int
    epochs: int
    seconds: float
    best_on_test: float | None = None


Fit: TypeAlias = Callable[[nn.Module, Phase], FitResult]
"""Trains a model in place through one phase; resumable, deterministic for a given seed."""


class Hook:
    """Called by a phase at its seams; does nothing by itself.

    `tensors` and `state` are saved with every checkpoint of the phase and with its result; `load`
    gets them back, also when the phase had finished before and does not train again. `mask` is the
    one that it keeps in force, if any.
    """

    mask: Mask | None = None

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Called before the optimizer is made; on a resumed run, too, and then before `load`."""

    def before_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Called before epoch number `epoch` (from 0); True ends the phase there."""
        return False

    def kept(self, model: nn.Module, progress: Progress) -> dict[Tensor, Kept]:
        """Weights that are 0 where they are not kept, and need no gradient there in this step."""
        return {}

    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Called with the gradients of a step, before they are clipped and used."""

    def after_step(self, model: nn.Module, updates: int) -> None:
        """Called after an optimizer step; `updates` counts those of the phase so far."""

    def after_average(self, ema: Ema) -> None:
        """Called after the weight average has moved."""

    def tensors(self) -> dict[str, Tensor]:
        """What to save, by name; not copies."""
        return {}

    def state(self) -> dict[str, Any]:
        """What to save as JSON values."""
        return {}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `state` returned."""


class Hooks:
    """The hooks of one phase, called in their order."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = tuple(hooks)

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Start them all."""
        for hook in self.hooks:
            hook.start(model, steps_per_epoch, epochs)

    def before_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Whether any wants the phase to end; all are asked."""
        return any([hook.before_epoch(model, epoch) for hook in self.hooks])

    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Pass gradients through them."""
        for hook in self.hooks:
            hook.after_backward(model, optimizer, progress)

    def kept(self, model: nn.Module, progress: Progress) -> dict[Tensor, Kept]:
        """Weights of which they need no other gradient than that of the kept entries."""
        return {w: k for hook in self.hooks for w, k in hook.kept(model, progress).items()}

    def after_step(self, model: nn.Module, updates: int, ema: Ema | None) -> None:
        """Pass the stepped model through them, then move the average and pass that."""
        for hook in self.hooks:
            hook.after_step(model, updates)
        if ema is not None:
            ema.update(model)
            for hook in self.hooks:
                hook.after_average(ema)

    def masks(self) -> list[Mask]:
        """Masks that they keep in force."""
        return [hook.mask for hook in self.hooks if hook.mask is not None]

    def weights(self, model: nn.Module) -> str:
        """What reports call the weights whose removed fraction `monitor.removed` gives."""
        if self.masks():
            return "masked layers' weights"
        stem = stem_of(model)
        own = {id(part.unit.synapse) for part in stem.units()} if stem is not None else set()
        convs = {id(layer) for layer in model.modules() if isinstance(layer, nn.Conv2d)}
        return "ConvPEP weights" if convs and convs <= own else "convolutions' weights"

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of all hooks, as one group of a checkpoint."""
        own = enumerate(hook.tensors() for hook in self.hooks)
        return {f"{place}.{n}": value for place, found in own for n, value in found.items()}

    def state(self) -> list[dict[str, Any]]:
        """State of each hook."""
        return [hook.state() for hook in self.hooks]

    def load(self, tensors: Mapping[str, Tensor], states: Sequence[Mapping[str, Any]]) -> None:
        """Give each hook back what it had saved; a CheckpointError for another number of hooks."""
        if len(states) != len(self.hooks):
            raise CheckpointError(
                f"the checkpoint is of a phase with {len(states)} hooks, this one has "
                f"{len(self.hooks)}: the search or its options changed; start anew"
            )
        for place, (hook, state) in enumerate(zip(self.hooks, states, strict=True)):
            prefix = f"{place}."
            own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            hook.load(own, state)


@dataclass(eq=False)
class Capture(Hook):
    """Keeps the whole ``state_dict`` as it is after `step`: what late rewinding goes back to.

    `start` raises a ConfigError where the phase ends before `step`; ``Step()`` is its very start.

    Source: Frankle et al., ICML 2020 (arXiv 1912.05671): rewinding to an early iteration.
    """

    step: Step
    captured: dict[str, Tensor] = field(default_factory=dict)

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Find the step; take the state if it is the start."""
        self.at, end = self.step.iterations(steps_per_epoch), epochs * steps_per_epoch
        if self.at > end:
            raise ConfigError(
                f"rewind step {shown(str(self.step))} is iteration {self.at}, but the phase ends "
                f"at {end}; choose an earlier one"
            )
        if self.at == 0:
            self._take(model)

    def after_step(self, model: nn.Module, updates: int) -> None:
        """Take the state once, at the step or at the first update after it that was not skipped."""
        if updates >= self.at and not self.captured:
            self._take(model)

    def tensors(self) -> dict[str, Tensor]:
        """The state, if it was taken."""
        return self.captured

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self.captured = {name: value.clone() for name, value in tensors.items()}

    def _take(self, model: nn.Module) -> None:
        share_buffers(model)  # else each rank would rewind to its own BatchNorm statistics
        self.captured = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


def of_first(mask: Mask) -> Mask:
    """The first rank's mask: the scores of others may differ in their last bits."""
    return Mask(from_first(mask)) if together() else mask


@dataclass(eq=False)
class Masked(Hook):
    """Keeps the weights that a mask removes at exactly 0, whatever the optimizer.

    Gradients of removed weights are cleared before clipping, so that they neither count in the norm
    nor enter a momentum; after the step the weights are set to +0.0 again. A kept one may pass 0.
    """

    mask: Mask
    _factors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[str, Kept] = field(default_factory=dict, init=False, repr=False)
    _told: bool = field(default=False, init=False, repr=False)

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Clear what is removed before the optimizer and the weight average see it."""
        self.mask = of_first(self.mask)
        self.mask.check(model, allow_layer_collapse=True)
        self.mask.apply_(model)

    def kept(self, model: nn.Module, progress: Progress) -> dict[Tensor, Kept]:
        """The masked weights; their lists are made anew when the mask changes."""
        self._kept = self._kept or {name: Kept(kept) for name, kept in self.mask.items()}
        weights = self.mask.weights(model)
        return {weights[name]: own for name, own in self._kept.items()}

    @torch.no_grad()
    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Clear the gradients of removed weights; a NaN stays one, for the guard to find."""
        for name, weight in self.mask.weights(model).items():
            if (grad := weight.grad) is not None:
                known = self._factors.get(name, self.mask[name])
                self._factors[name] = known.to(grad.device, grad.dtype)
                grad.mul_(self._factors[name])

    def after_step(self, model: nn.Module, updates: int) -> None:
        """Set removed weights to +0.0."""
        self.mask.apply_(model)
        if self._kept and not self._told:
            self._told = True
            parts = ("forward", "inputs' gradient", "weights' gradient")
            layers = [own for own in self._kept.values() if own.mask.dim() > 1]
            used = [(own._joined[1] if own._joined else own).chosen for own in layers]
            told = ", ".join(f"{part} {sum(own)}" for part, *own in zip(parts, *used, strict=True))
            log.info("masked layers that skip removed weights, of %d: %s", len(layers), told)


class Rewired(Masked):
    """A mask that changes while it trains: base of dynamic sparse training.

    The mask is saved with the phase. Weights that return start at 0 with fresh optimizer moments.
    """

    def change(self, mask: Mask, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put another mask in force, the first rank's, between a backward and its step."""
        mask = of_first(mask)
        returned = {name: mask[name] & ~self.mask[name] for name in mask}
        self.mask, self._factors, self._kept = mask, {}, {}
        mask.apply_(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, fresh in returned.items():
            for moment in optimizer.state.get(parameters[name], {}).values():
                if isinstance(moment, Tensor) and moment.shape == fresh.shape:
                    moment.masked_fill_((fresh | ~mask[name]).to(moment.device), 0)

    def after_average(self, ema: Ema) -> None:
        """Clear in the average what is removed now; it may hold what was kept before."""
        ema.apply_mask(self.mask)

    def tensors(self) -> dict[str, Tensor]:
        """The mask in force."""
        return dict(self.mask)

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take a saved mask over."""
        self.mask, self._factors, self._kept = Mask(tensors), {}, {}
