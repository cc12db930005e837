"""Optimizers and schedules by timm's names, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import CheckpointError, ConfigError, MaskError, near, shown
from spikeformer_lt.layers.patches import PatchSelect
from spikeformer_lt.layers.subnet import subnets
from spikeformer_lt.rng import isolated_rng
from spikeformer_lt.ticket import fit_buffers, open_buffers
from spikeformer_lt.training.checkpoint import flatten_optimizer, misfits
from spikeformer_lt.training.options import OptimConfig

UPDATES = "ema.updates"  # the counter's name among the saved tensors


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters in three groups: decayed, not decayed (1-D), scores.

    With a decay of layers each but the scores is a group for each layer, the last layer first; its
    ``lr_scale`` is what the schedule multiplies its rate by.
    """
    rates = ((config.lr, config.weight_decay), (config.lr, 0.0), (config.score_lr, 0.0))
    if config.decay_vectors:
        rates = (rates[0], rates[0], rates[2])
    depth = _depths(model) if config.layer_decay < 1 else {}
    scores = {id(layer.scores) for _, layer in subnets(model)}
    last, found = max(depth.values(), default=0), dict[tuple[int, int], list[nn.Parameter]]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = 2 if id(parameter) in scores else int(parameter.ndim < 2)
            above = last - depth[name] if depth and place < 2 else 0
            found.setdefault((above, place), []).append(parameter)
    if not found:
        raise ConfigError("nothing to train: every parameter is frozen")
    groups = []
    for (above, place), own in sorted(found.items(), key=lambda entry: entry[0]):
        lr, decay = rates[place]
        scale = {"lr_scale": config.layer_decay**above} if depth else {}
        groups.append({"params": own, "lr": lr, "weight_decay": decay, **scale})
    return groups


def _depths(model: nn.Module) -> dict[str, int]:
    """Layer of each parameter: children in their order, those of a list or sequence one by one.

    A selection of tokens counts with the first layer: it stands behind the stem.
    """
    layers: dict[str, int] = {}
    for name, child in model.named_children():
        if isinstance(child, PatchSelect):
            continue
        several = isinstance(child, nn.ModuleList | nn.Sequential)
        for inner in (
            [f"{name}.{own}." for own, _ in child.named_children()] if several else [f"{name}."]
        ):
            layers[inner] = len(layers)
    return {
        name: next((n for start, n in layers.items() if name.startswith(start)), 0)
        for name, _ in model.named_parameters()
    }


def check_optimizer(config: OptimConfig) -> None:
    """Refuse a name that timm does not know, or whose steps or state fail, by a ConfigError."""
    if config.opt in ("adamw", "adam"):
        return
    from timm.optim import list_optimizers

    known = [str(name) for name in list_optimizers()]
    if config.opt not in known:
        hint = near(config.opt, known) or ", such as adamw, adam or sgd"
        raise ConfigError(f"optim.opt={shown(config.opt)} is not one of timm's {len(known)}{hint}")
    try:
        with isolated_rng(0):
            tried = nn.Linear(2, 2)
            optimizer = _of_timm(list(tried.parameters()), config)
            tried(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            flatten_optimizer(optimizer.state_dict())
    except Exception as fault:
        raise ConfigError(f"optim.opt={config.opt} cannot be used here: {fault}") from fault


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Create the optimizer; a ConfigError for a name that timm does not know."""
    check_optimizer(config)
    groups = parameter_groups(model, config)
    if config.opt in ("adamw", "adam"):  # torch's fused step: 4x the loop on the CPU
        kind = torch.optim.AdamW if config.opt == "adamw" else torch.optim.Adam
        return kind(groups, lr=config.lr, fused=True)
    return _of_timm(groups, config)


def _of_timm(groups: Any, config: OptimConfig) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(
        groups, opt=config.opt, lr=config.lr, weight_decay=0.0, momentum=config.momentum
    )


def lengths(config: OptimConfig, epochs: float) -> tuple[float, float, str]:
    """Epochs of warm-up and cool-down in a phase of `epochs`, and what to tell the user, or "".

    They scale with the phase where the configuration says for which length they are. Where they
    would leave nothing between them, they share half of the phase.
    """
    scale = epochs / config.of_epochs if config.of_epochs else 1.0
    warmup, cooldown = config.warmup_epochs * scale, config.cooldown_epochs * scale
    if warmup + cooldown < epochs or warmup + cooldown == 0:
        return warmup, cooldown, ""
    less = 0.5 * epochs / (warmup + cooldown)
    notice = (
        f"warm-up of {warmup:g} epochs and cool-down of {cooldown:g} leave nothing of {epochs:g} "
        f"epochs: they are shortened to {warmup * less:.3g} and {cooldown * less:.3g}; choose "
        "--train.optim.warmup-epochs and --train.optim.cooldown-epochs for this length"
    )
    return warmup * less, cooldown * less, notice


class Schedule:
    """Learning rates as a function of the update number alone, so that they need no saved state.

    Every group keeps its own peak: scores and weights share the shape of the curve. The formulas
    are those of timm's schedulers. `notice` says where the phase is too short for its warm-up.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: OptimConfig, updates: int, per_epoch: int
    ) -> None:
        self.optimizer, self.config, self.last = optimizer, config, max(0, updates - 1)
        warmup, cooldown, self.notice = lengths(config, updates / per_epoch)
        self.updates = max(1, updates - round(cooldown * per_epoch))
        self.warmup = round(warmup * per_epoch)
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, update: int) -> float:
        """Put the rates of update number `update` in force, the last ones after the end.

        Return that of the first group.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            rate = self._rate(peak, min(update, self.last))
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return float(self.optimizer.param_groups[0]["lr"])

    def _rate(self, peak: float, update: int) -> float:
        config, done = self.config, min(update, self.updates)
        if update < self.warmup:
            first = min(config.warmup_lr, config.lr)
            return first + update * ((peak - first) / self.warmup)
        if config.sched == "cosine":
            wave = 1 + math.cos(math.pi * done / self.updates)
            return config.min_lr + 0.5 * (peak - config.min_lr) * wave
        end = config.min_lr / config.lr
        if config.sched in ("constant", "step"):
            drops = (done - self.warmup) // max(1, self.updates // 3)
            share = 1.0 if config.sched == "constant" else max(0.1**drops, min(1.0, end))
            return float(peak * (end if update >= self.updates else share))
        return peak * (1 - (1 - end) * (done / self.updates))


class Ema:
    """Averages every tensor of ``model.state_dict()`` under its own name, from its present value.

    After update n, counted from 1, with ``d = min(decay, (1 + n) / (10 + n))``:
    ``average = d * average + (1 - d) * weight``. Averages are float32 at least; integers (counters)
    are copied. `decay` lies in [0, 1), else it raises a ConfigError.

    Source: the warm-up is that of TensorFlow's ExponentialMovingAverage (`num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        check(0 <= decay < 1, "ema_decay", decay, "a number in [0, 1)")
        self.decay, self.updates = float(decay), 0
        self._average = {k: v.detach().to(_wide(v), copy=True) for k, v in _state(model).items()}
        self._open = {name for name, _, _ in open_buffers(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average; a ConfigError if the model has gained, lost or reshaped a tensor.

        A buffer of another shape than before is taken as it is.
        """
        current = self._matching(model)
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self._average.items():
            if average.shape != current[name].shape:
                self._average[name] = current[name].detach().to(average.dtype, copy=True)
            elif average.is_floating_point():
                average.lerp_(current[name].to(average.dtype), 1 - keep)
            else:
                average.copy_(current[name])

    def weights(self) -> dict[str, Tensor]:
        """Return the averages under the names of the state_dict; not copies."""
        return dict(self._average)

    def tensors(self) -> dict[str, Tensor]:
        """Return `weights` and the count of updates, for a checkpoint; not copies."""
        return {**self._average, UPDATES: torch.tensor(self.updates)}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned; a CheckpointError if names, shapes, dtypes differ."""
        shapes = {n: self._average[n].new_empty(tensors[n].shape, device="meta")
                  for n in self._open & self._average.keys() if n in tensors}  # fmt: skip
        if odd := misfits(self.tensors() | shapes, tensors):
            raise CheckpointError(f"weight average: {odd[0]}")
        for name, average in self._average.items():
            self._average[name] = (
                average.copy_(tensors[name])
                if (average.shape == tensors[name].shape)
                else tensors[name].to(average.device, copy=True)
            )
        self.updates = int(tensors[UPDATES])

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Let the model hold the average inside; its own weights come back, bit for bit, after."""
        own = {name: value.detach().clone() for name, value in self._matching(model).items()}
        try:
            _overwrite(model, self._average)
            yield
        finally:
            _overwrite(model, own)

    @torch.no_grad()
    def apply_mask(self, mask: Mapping[str, Tensor]) -> None:
        """Set weights that a mask removes (False) to exactly 0; MaskError if it does not fit."""
        for name, kept in mask.items():
            if name not in self._average:
                hint = near(name, self._average)
                raise MaskError(f"the weight average has no {shown(name)}{hint}")
            average = self._average[name]
            if average.shape != kept.shape:
                raise MaskError(
                    f"{shown(name)}: the mask has shape {list(kept.shape)}, the weight average "
                    f"{list(average.shape)}"
                )
            average.masked_fill_(~kept.to(average.device), 0)

    def _matching(self, model: nn.Module) -> dict[str, Tensor]:
        current = _state(model)
        sizes = [{k: list(v.shape) for k, v in of.items()} for of in (self._average, current)]
        for name in {**sizes[1], **sizes[0]}:
            before, now = (of.get(name) for of in sizes)
            if before != now and (before is None or now is None or name not in self._open):
                what = f"the model has {'gained' if before is None else 'lost'} {shown(name)}"
                if before and now:
                    what = f"{shown(name)} has changed from {before} to {now}"
                raise ConfigError(f"{what} since the Ema was made; make it anew")
        return current


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def _overwrite(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    fit_buffers(model, tensors)
    for name, value in _state(model).items():
        value.copy_(tensors[name])


def _wide(value: Tensor) -> torch.dtype:
    if value.is_floating_point():
        return torch.promote_types(value.dtype, torch.float32)
    return value.dtype
