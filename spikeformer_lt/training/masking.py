"""Training under a weight mask: what is removed is exactly 0 after every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.mask import Mask
from spikeformer_lt.training.ema import Ema
from spikeformer_lt.training.hook import Hook
from spikeformer_lt.training.phase import Progress

__all__ = ["Masked"]


class Masked(Hook):
    """Keeps the weights that a mask removes at exactly 0, whatever the optimizer.

    Gradients of removed weights are cleared before clipping, so that they neither count in the norm
    nor enter a momentum; after the step the weights are set to +0.0 again, which no rounding,
    decay or stale moment survives. The mask is explicit: a kept weight may pass through 0.

    Args:
        mask: which weights are kept; names are those of the model's state_dict.

    Raises:
        MaskError: (start) the mask does not fit the model.
    """

    mask: Mask

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self._factors: dict[str, Tensor] = {}

    def start(self, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        """Clear what is removed before the optimizer and the weight average see it."""
        self.mask.check(model, allow_layer_collapse=True)
        self.mask.apply_(model)

    @torch.no_grad()
    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Clear the gradients of removed weights; a NaN stays one, for the guard to find."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in self.mask:
            grad = parameters[name].grad
            if grad is not None:
                grad.mul_(self._factor(name, grad))

    def after_step(self, model: nn.Module, updates: int) -> None:
        """Set removed weights to +0.0."""
        self.mask.apply_(model)

    def _factor(self, name: str, like: Tensor) -> Tensor:
        known = self._factors.get(name)
        if known is None or known.device != like.device or known.dtype != like.dtype:
            known = self._factors[name] = self.mask[name].to(like.device, like.dtype)
        return known


class Rewired(Masked):
    """A mask that changes while it trains: base of dynamic sparse training.

    The mask is saved with the phase. Weights that return start at 0 with fresh optimizer moments.
    """

    def change(self, mask: Mask, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put another mask in force, between a backward and its step."""
        returned = {name: mask[name] & ~self.mask[name] for name in mask}
        self.mask, self._factors = mask, {}
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
        self.mask, self._factors = Mask(tensors), {}
