"""Mean firing rate of every spiking layer during training, and a warning for dead ones.

Progress of an epoch: a bar on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spikeformer_lt.layers.patches import PatchSelect, kept_count
from spikeformer_lt.layers.subnet import SubnetConv2d

__all__ = ["EpochProgress", "FiringWatch", "clock", "epoch_line", "removed", "spiking_layers"]

log = logging.getLogger(__name__)

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
            log.warning(
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


class EpochProgress:
    """Shows steps, images/s, ETA of the whole phase, loss, sparsity and mean firing rate.

    Args:
        title: phase and epoch.
        steps: optimizer steps of this epoch.
        rest: steps of the phase after this epoch (for the ETA).
        images_per_step: images over all ranks.
        show: only one rank shows anything.
        every_s: least seconds between two plain lines.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        rest: int,
        images_per_step: int,
        *,
        show: bool = True,
        every_s: float = 30.0,
    ) -> None:
        self.title, self.steps, self.rest = title, steps, rest
        self.images_per_step, self.every_s, self.show = images_per_step, every_s, show
        self.done, self.start = 0, time.monotonic()
        self.last_line = self.start
        self.bar = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, desc=title, unit="step", leave=False)

    def __enter__(self) -> EpochProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    @property
    def images_per_s(self) -> float:
        """Mean throughput of this epoch."""
        return self.done * self.images_per_step / max(1e-9, time.monotonic() - self.start)

    def step(self, **shown: float) -> None:
        """Count one optimizer step; `shown` values are printed as they come."""
        self.done += 1
        if not self.show:
            return
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)
            return
        now = time.monotonic()
        if now - self.last_line < self.every_s:
            return
        self.last_line = now
        left = (self.steps - self.done + self.rest) * (now - self.start) / self.done
        values = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
        log.info(
            "%s  [%d/%d]  %s  %.0f images/s  ETA %s",
            self.title, self.done, self.steps, values, self.images_per_s, clock(left),
        )  # fmt: skip


def removed(model: nn.Module, masked: int = 0, of: int = 0) -> dict[str, float]:
    """What a model in training has removed now: sparsity of weights and of patches.

    Args:
        model: its convolutions and patch selection are counted.
        masked, of: weights that the search's own mask removes, and has; they count instead of the
            convolutions.
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    total = sum(conv.weight.numel() for conv in convs)
    kept = sum(
        int((conv.mask if isinstance(conv, SubnetConv2d) else conv.weight).count_nonzero())
        for conv in convs
    )
    if of:
        total, kept = of, of - masked
    tokens = int(getattr(model, "num_tokens", 0))
    asked = [m.sparsity for m in model.modules() if isinstance(m, PatchSelect)]
    gone = 1 - kept_count(tokens, asked[0]) / tokens if asked and tokens else 0.0
    return {
        "weight_sparsity": 1 - kept / total if total else 0.0,
        "patch_sparsity": gone,
    }


def epoch_line(row: Mapping[str, Any], epochs: int, images_per_s: float, left_s: float) -> str:
    """One line for the end of an epoch, from its row of the summary."""
    val = "-" if row["val_accuracy"] is None else f"{row['val_accuracy']:.2f} %"
    return (
        f"{row['phase']} epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
        f"train {row['train_accuracy']:.2f} %  val {val}  rate {row['firing_rate']:.3f}  "
        f"removed: weights {100 * row['weight_sparsity']:.1f} % "
        f"patches {100 * row['patch_sparsity']:.1f} %  {images_per_s:.0f} images/s  "
        f"ETA {clock(left_s)}"
    )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
