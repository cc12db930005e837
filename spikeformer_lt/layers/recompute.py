"""Activation checkpointing: parts of a network are computed again in the backward pass.

A part keeps its input alone. In its second forward neurons start from the same voltages, running
statistics of BatchNorm do not move again, and hooks that only observe spikes are not called.

Source: Chen et al. 2016, arXiv:1604.06174, section 3; torch.utils.checkpoint does the bookkeeping.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.neuron import NeuronState, carried, carry


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
    """``part(*args)``; a part in training with ``recompute`` set keeps only `args`."""
    asked = part.training and getattr(part, "recompute", False)
    if not asked or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return part(*args)
    state = carried()
    begun = None if state is None else state.copy()

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _Again(part, begun)

    return checkpoint(part, *args, use_reentrant=False, context_fn=contexts)


class _Again:
    """The context of a second forward; it may be entered again, for a second backward pass."""

    def __init__(self, part: nn.Module, begun: NeuronState | None) -> None:
        self._of = part, begun

    def __enter__(self) -> None:
        self._context = _again(*self._of)
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


@contextmanager
def _again(part: nn.Module, begun: NeuronState | None) -> Iterator[None]:
    """Let the part run from its first state, and leave no trace of this run."""
    modules: list[Any] = list(part.modules())
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    hooks = [module._forward_hooks for module in modules]
    for norm in norms:
        norm.track_running_stats = False
    for module, own in zip(modules, hooks, strict=True):
        kept = ((k, h) for k, h in own.items() if not getattr(h, "observes_output", False))
        module._forward_hooks = OrderedDict(kept) if own else own
    try:
        with carry(None if begun is None else begun.copy()):
            yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, own in zip(modules, hooks, strict=True):
            module._forward_hooks = own
