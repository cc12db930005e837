"""Mean firing rate of every spiking layer during training, and a warning for dead ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["FiringWatch", "spiking_layers"]

logger = logging.getLogger(__name__)

LISTED = 8  # layers that a warning names before it counts the rest
ROUNDING = 1e-6  # of a float32 sum over a saturated layer


def spiking_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose attribute `spiking` is True and that lie in no other such module, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if getattr(module, "spiking", False) is True:
            parents = (name[:at] for at, letter in enumerate(name) if letter == ".")
            if "" not in found and not any(parent in found for parent in parents):
                found[name] = module
    return found


class FiringWatch:
    """Sums the spikes of each layer as they are made: one read of the output, nothing copied.

    A layer is any module whose attribute `spiking` is True and that lies in no other such module: a
    neuron is one layer with its surrogate. Only forwards while `model` is in train mode count, so
    that a validation amid an epoch leaves no trace. On a GPU nothing waits for the device before a
    rate is asked for.

    Args:
        model: the network, not a wrapper of it, so that layers bear their names in the state_dict.
        always: count in eval mode, too.
    """

    def __init__(self, model: nn.Module, always: bool = False) -> None:
        self._model, self._always = model, always
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        for name, module in spiking_layers(model).items():
            hook = partial(self._count, name)
            # Who computes a layer by a fused kernel may call this with the output alone.
            hook.observes_output = True  # type: ignore[attr-defined]
            self._handles.append(module.register_forward_hook(hook))

    def __enter__(self) -> FiringWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the model; rates can still be read."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def _count(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        if not (self._always or self._model.training):
            return
        # float32 even for bfloat16 spikes, whose sum would stall at 256.
        spikes = output.detach().sum(dtype=torch.promote_types(output.dtype, torch.float32))
        total = self._sums.get(name)
        self._sums[name] = spikes.double() if total is None else total.to(spikes.device) + spikes
        self._counts[name] = self._counts.get(name, 0) + output.numel()

    def rates(self) -> dict[str, float]:
        """Mean firing rate, in [0, 1], of each layer that has run since the last `reset`."""
        return {name: self._total(name) / self._counts[name] for name in self._sums}

    def mean_rate(self) -> float:
        """Spikes over all layers per neuron and step; 0.0 if no layer has run."""
        count = sum(self._counts.values())
        return sum(self._total(name) for name in self._sums) / count if count else 0.0

    def warn(self, epoch: int) -> tuple[list[str], list[str]]:
        """Log one warning that names the layers of rate 0 and of rate 1, if there are any.

        Args:
            epoch: number of the epoch, from 0; the warning counts from 1.

        Returns:
            Names of the dead layers and of the saturated ones.
        """
        rates = self.rates()
        dead = [name for name, rate in rates.items() if rate == 0.0]
        full = [name for name, rate in rates.items() if rate >= 1.0 - ROUNDING]
        parts = []
        if dead:
            parts.append(f"{len(dead)} never fired: {_names(dead)}")
        if full:
            parts.append(f"{len(full)} fired at every step: {_names(full)}")
        if parts:
            logger.warning(
                "epoch %d: of %d spiking layers, %s; no information passes there: look at the "
                "input's scale, the threshold or the learning rate",
                epoch + 1,
                len(rates),
                "; ".join(parts),
            )
        return dead, full

    def reset(self) -> None:
        """Forget all counts, at the start of an epoch."""
        self._sums.clear()
        self._counts.clear()

    def state(self) -> dict[str, list[float]]:
        """Sum and count of each layer, for a checkpoint amid an epoch."""
        return {name: [self._total(name), self._counts[name]] for name in self._sums}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Go on from what `state` returned."""
        self.reset()
        for name, (total, count) in state.items():
            self._sums[name] = torch.tensor(total, dtype=torch.float64)
            self._counts[name] = int(count)

    def _total(self, name: str) -> float:
        return float(self._sums[name])


def _names(layers: list[str]) -> str:
    more = f" and {len(layers) - LISTED} more" if len(layers) > LISTED else ""
    return f"{', '.join(layers[:LISTED])}{more}"
