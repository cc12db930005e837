"""Activation checkpointing: parts of a network are computed again in the backward pass.

A part keeps its input alone; when its gradients are needed its forward runs a second time. Neurons
then start from the same voltages, running statistics of BatchNorm do not move again, and hooks that
only observe spikes are not called.

Source: Chen et al. 2016, arXiv:1604.06174, section 3; torch.utils.checkpoint does the bookkeeping.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.neuron import carried, carry

__all__ = ["call", "set_recompute"]


def set_recompute(model: nn.Module, on: bool = True) -> int:
    """Say whether the parts of a network are computed again instead of kept.

    Args:
        model: changed in place; parts are its modules with an attribute ``recompute``: encoder
            blocks, units of the ConvPEP, layers and residual blocks of CNNs.
        on: False keeps everything, which is faster.

    Returns:
        Number of parts.

    Raises:
        ConfigError: `on`, and the network has no such part.
    """
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "recompute")]
    if on and not parts:
        raise ConfigError(
            f"recompute=True is not allowed: {type(model).__name__} has no part that says "
            "recompute; run it without"
        )
    for part in parts:
        part.recompute = on
    return len(parts)


def call(part: Any, *args: Any) -> Any:
    """``part(*args)``; of a part in training that asks for it only `args` are kept."""
    asked = part.training and getattr(part, "recompute", False)
    if not asked or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return part(*args)
    again = _Again(part)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), again

    return checkpoint(part, *args, use_reentrant=False, context_fn=contexts)


class _Again:
    """The part as it was before its forward; afterwards it is as if nothing had run."""

    def __init__(self, part: nn.Module) -> None:
        self.modules: list[Any] = list(part.modules())
        state = carried()
        self.state = None if state is None else state.copy()

    def __enter__(self) -> None:
        self.carry = carry(None if self.state is None else self.state.copy())
        self.carry.__enter__()
        self.norms = [
            m for m in self.modules if isinstance(m, _BatchNorm) and m.track_running_stats
        ]
        for norm in self.norms:
            norm.track_running_stats = False
        self.hooks = [module._forward_hooks for module in self.modules]
        for module, hooks in zip(self.modules, self.hooks, strict=True):
            if hooks:
                module._forward_hooks = OrderedDict(
                    (key, hook)
                    for key, hook in hooks.items()
                    if not getattr(hook, "observes_output", False)
                )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for norm in self.norms:
            norm.track_running_stats = True
        for module, hooks in zip(self.modules, self.hooks, strict=True):
            module._forward_hooks = hooks
        self.carry.__exit__(kind, error, trace)
