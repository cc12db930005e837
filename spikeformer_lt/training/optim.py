"""Optimizers and schedules by timm's names, with groups for decay and for scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spikeformer_lt.errors import ConfigError, near
from spikeformer_lt.training.options import OptimConfig


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters in three groups: decayed, not decayed (1-D), scores."""
    found: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "scores": []}
    for name, parameter in model.named_parameters():
        kind = "plain" if parameter.ndim < 2 else "decayed"
        if parameter.requires_grad:
            found["scores" if name.endswith(".scores") else kind].append(parameter)
    groups = [
        {"params": found["decayed"], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": found["plain"], "lr": config.lr, "weight_decay": 0.0},
        {"params": found["scores"], "lr": config.score_lr, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("nothing to train: every parameter is frozen")
    return groups


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Create the optimizer; a ConfigError for a name that timm does not know."""
    groups = parameter_groups(model, config)
    if config.opt in ("adamw", "adam"):  # torch's fused step: 4x the loop on the CPU
        kind = torch.optim.AdamW if config.opt == "adamw" else torch.optim.Adam
        return kind(groups, lr=config.lr, fused=True)
    from timm.optim import create_optimizer_v2, list_optimizers

    known = [str(name) for name in list_optimizers()]
    if config.opt not in known:
        hint = near(config.opt, known) or ", such as adamw, adam or sgd"
        raise ConfigError(f"optim.opt={config.opt!r} is not one of timm's {len(known)}{hint}")
    return create_optimizer_v2(
        groups, opt=config.opt, lr=config.lr, weight_decay=0.0, momentum=config.momentum
    )


class Schedule:
    """Learning rates as a function of the update number alone, so that they need no saved state.

    Every group keeps its own peak: scores and weights share the shape of the curve.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: OptimConfig, updates: int, per_epoch: int
    ) -> None:
        from timm.scheduler import CosineLRScheduler, StepLRScheduler

        self.optimizer = optimizer
        updates = max(1, updates - round(config.cooldown_epochs * per_epoch))
        warmup = round(config.warmup_epochs * per_epoch)
        first = min(config.warmup_lr, config.lr)
        common: dict[str, Any] = {"warmup_t": warmup, "warmup_lr_init": first, "t_in_epochs": False}
        self.timm: Any = None
        if config.sched == "cosine":
            self.timm = CosineLRScheduler(optimizer, updates, lr_min=config.min_lr, **common)
        elif config.sched == "step":
            self.timm = StepLRScheduler(optimizer, max(1, updates // 3), 0.1, **common)
        else:
            end = 1.0 if config.sched == "constant" else config.min_lr / config.lr
            self.linear = (warmup, updates, end, first)
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])

    def rates(self, first: int, count: int) -> list[list[float]]:
        """Learning rate of each group in `count` updates from number `first`; sets the last."""
        found = []
        for update in range(first, first + count):
            self.set(update)
            found.append([float(group["lr"]) for group in self.optimizer.param_groups])
        return found

    def set(self, update: int) -> float:
        """Put the learning rates of update number `update` in force; returns the first group's."""
        if self.timm is not None:
            self.timm.step_update(update)
        else:
            warmup, updates, end, first = self.linear
            factor = 1 - (1 - end) * min(1.0, update / updates)
            for group in self.optimizer.param_groups:
                peak = group["initial_lr"]
                warm = update < warmup
                group["lr"] = first + (peak - first) * update / warmup if warm else peak * factor
        return float(self.optimizer.param_groups[0]["lr"])
