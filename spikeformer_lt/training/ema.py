"""Exponential moving average of a model's weights, without a copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import CheckpointError, ConfigError, MaskError, near, shown

UPDATES = "ema.updates"  # the counter's name among the saved tensors


class Ema:
    """Averages every tensor of ``model.state_dict()`` under its own name.

    After update n, counted from 1, with ``d = min(decay, (1 + n) / (10 + n))`` during warm-up and
    ``d = decay`` else: ``average = d * average + (1 - d) * weight``. Averages are float32 at least;
    integers (counters) are copied. The model itself is never deep-copied, which fails on neurons
    that hold a state.

    Args:
        model: its present weights are the start of the average.
        decay: in [0, 1); 0 follows the weights.
        warmup: start with a shorter memory, so that the first weights are forgotten sooner.

    Raises:
        ConfigError: `decay` outside [0, 1).

    Source: the warm-up is that of TensorFlow's ExponentialMovingAverage (`num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        check(0 <= decay < 1, "ema_decay", decay, "a number in [0, 1)")
        self.decay, self.warmup, self.updates = float(decay), bool(warmup), 0
        self._average = {
            name: value.detach().to(_wide(value), copy=True)
            for name, value in _state(model).items()
        }

    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights.

        Raises:
            ConfigError: the model has gained, lost or reshaped a tensor since.
        """
        current = self._matching(model)
        self.updates += 1
        keep = self.decay
        if self.warmup:
            keep = min(keep, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, average in self._average.items():
                value = current[name].detach()
                if average.is_floating_point():
                    average.lerp_(value.to(average.dtype), 1 - keep)
                else:
                    average.copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """Return the averages under the names of the state_dict; not copies."""
        return dict(self._average)

    def tensors(self) -> dict[str, Tensor]:
        """Return `weights` and the count of updates, for a checkpoint; not copies."""
        return {**self._average, UPDATES: torch.tensor(self.updates)}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned.

        Raises:
            CheckpointError: other names, shapes or dtypes than this model's.
        """
        own = self.tensors()
        for name in [*own, *tensors]:
            here, there = (
                "nothing" if name not in found else f"{found[name].dtype} {list(found[name].shape)}"
                for found in (own, tensors)
            )
            if here != there:
                raise CheckpointError(
                    f"weight average: {shown(name)} is {there} in the checkpoint, {here} in the "
                    "model"
                )
        for name, average in self._average.items():
            average.copy_(tensors[name])
        self.updates = int(tensors[UPDATES])

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's weights with the average, cast to their dtype."""
        for name, value in self._matching(model).items():
            value.copy_(self._average[name])

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Let the model hold the average inside; its own weights come back, bit for bit, after."""
        own = {name: value.detach().clone() for name, value in self._matching(model).items()}
        try:
            self.copy_to(model)
            yield
        finally:
            with torch.no_grad():
                for name, value in _state(model).items():
                    value.copy_(own[name])

    @torch.no_grad()
    def apply_mask(self, mask: Mapping[str, Tensor]) -> None:
        """Set removed weights to exactly 0.

        Args:
            mask: name -> bool tensor, True = kept.

        Raises:
            MaskError: a name or shape that the average does not have.
        """
        for name, kept in mask.items():
            average = self._average.get(name)
            if average is None:
                raise MaskError(
                    f"the weight average has no {shown(name)}{near(name, self._average)}"
                )
            if average.shape != kept.shape:
                raise MaskError(
                    f"{shown(name)}: the mask has shape {list(kept.shape)}, the weight average "
                    f"{list(average.shape)}"
                )
            average.masked_fill_(~kept.to(average.device), 0)

    def _matching(self, model: nn.Module) -> dict[str, Tensor]:
        current = _state(model)
        for name in sorted(current.keys() ^ self._average.keys()):
            side = "has gained" if name in current else "has lost"
            raise ConfigError(
                f"the model {side} {shown(name)} since its Ema was made; make it anew"
            )
        for name, value in current.items():
            if value.shape != self._average[name].shape:
                raise ConfigError(
                    f"{shown(name)} has changed from {list(self._average[name].shape)} to "
                    f"{list(value.shape)} since the Ema was made; make it anew"
                )
        return current


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _wide(value: Tensor) -> torch.dtype:
    wide = torch.promote_types(value.dtype, torch.float32)
    return wide if value.is_floating_point() else value.dtype
