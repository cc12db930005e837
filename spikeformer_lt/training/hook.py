"""What a search does inside a phase, with a state that survives a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import CheckpointError, ConfigError, shown
from spikeformer_lt.mask import Mask
from spikeformer_lt.step import Step
from spikeformer_lt.training.ema import Ema
from spikeformer_lt.training.phase import Progress
from spikeformer_lt.training.ranks import share_buffers

__all__ = ["Capture", "Hook", "Hooks"]


class Hook:
    """Called by a phase at its seams; does nothing by itself.

    `tensors` and `state` are saved with every checkpoint of the phase and with its result; `load`
    gets them back, also when the phase had finished before and does not train again.
    """

    mask: Mask | None = None
    """The mask that it keeps in force, if any."""

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Called before the optimizer is made; on a resumed run, too, and then before `load`."""

    def before_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Called before epoch number `epoch` (from 0); True ends the phase there."""
        return False

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

    def after_step(self, model: nn.Module, updates: int, ema: Ema | None) -> None:
        """Pass the stepped model through them, then move the average and pass that."""
        for hook in self.hooks:
            hook.after_step(model, updates)
        if ema is not None:
            ema.update(model)
            for hook in self.hooks:
                hook.after_average(ema)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of all hooks, as one group of a checkpoint."""
        found: dict[str, Tensor] = {}
        for place, hook in enumerate(self.hooks):
            found |= {f"{place}.{name}": value for name, value in hook.tensors().items()}
        return found

    def removed(self) -> tuple[int, int]:
        """Weights that their masks remove, and have."""
        masks = [hook.mask for hook in self.hooks if hook.mask is not None]
        return sum(mask.removed for mask in masks), sum(mask.total for mask in masks)

    def state(self) -> list[dict[str, Any]]:
        """State of each hook."""
        return [hook.state() for hook in self.hooks]

    def load(self, tensors: Mapping[str, Tensor], states: Sequence[Mapping[str, Any]]) -> None:
        """Give each hook back what it had saved.

        Raises:
            CheckpointError: the checkpoint is of another number of hooks.
        """
        if len(states) != len(self.hooks):
            raise CheckpointError(
                f"the checkpoint is of a phase with {len(states)} hooks, this one has "
                f"{len(self.hooks)}: the search or its options changed; start anew"
            )
        for place, (hook, state) in enumerate(zip(self.hooks, states, strict=True)):
            prefix = f"{place}."
            own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            hook.load(own, state)


class Capture(Hook):
    """Keeps the whole ``state_dict`` as it is after `step`: what late rewinding goes back to.

    Args:
        step: the point of the phase; ``Step()`` is its very start.

    Raises:
        ConfigError: (start) the phase ends before `step`.

    Source: Frankle et al., ICML 2020 (arXiv 1912.05671): rewinding to an early iteration.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.captured: dict[str, Tensor] = {}

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Find the step; take the state if it is the start."""
        self.at = self.step.iterations(steps_per_epoch)
        if self.at > epochs * steps_per_epoch:
            raise ConfigError(
                f"rewind step {shown(str(self.step))} is iteration {self.at}, but the phase ends "
                f"at {epochs * steps_per_epoch}; choose an earlier one"
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
