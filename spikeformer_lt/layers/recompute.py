"""Parts of a network that keep their input alone, and compute the rest again for the gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.neuron import NeuronState, carried, carry


def set_recompute(model: nn.Module, on: bool = True) -> int:
    """Say whether the modules with an attribute ``recompute`` are computed again instead of kept.

    Returns:
        Their number.

    Raises:
        ConfigError: `on`, and the network has none.
    """
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "recompute")]
    for part in parts:
        part.recompute = on
    if on and not parts:
        raise ConfigError(
            f"recompute=True is not allowed: {model._get_name()} has no part that says "
            "recompute; run it without"
        )
    return len(parts)


def call(part: Any, *args: Any) -> Any:
    """``part(*args)``; a part in training with ``recompute`` set keeps only `args`.

    In its second forward neurons start from the same voltages, running statistics of BatchNorm do
    not move again, and hooks that only observe spikes are not called.

    Source: Chen et al. 2016, arXiv:1604.06174, section 3.
    """
    asked = part.training and getattr(part, "recompute", False) and torch.is_grad_enabled()
    # torch.func has no hooks of saved tensors, which a checkpoint needs.
    if not asked or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return part(*args)
    state = carried()
    begun = None if state is None else state.copy()
    again = _Again(part, begun)
    both = again.noted(), again
    return checkpoint(part, *args, use_reentrant=False, context_fn=lambda: both)


class _Again(AbstractContextManager[None]):
    """A second forward of a part from its first state, which leaves no trace.

    It may be entered again, for a second backward pass.
    """

    def __init__(self, part: nn.Module, begun: NeuronState | None) -> None:
        self._part, self._begun = part, begun

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the running statistics that the first forward leaves: borders of maps read them."""
        yield
        own: list[Any] = [m._buffers for m in self._part.modules() if isinstance(m, _BatchNorm)]
        self._left = [(now, {k: v.clone() for k, v in now.items() if v is not None}) for now in own]

    def _exchange(self) -> None:
        for now, left in self._left:
            for name, value in left.items():
                left[name], now[name] = now[name], value

    def __enter__(self) -> None:
        self._exchange()
        modules: list[Any] = list(self._part.modules())
        self._norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._hooks = [(m, m._forward_hooks) for m in modules if m._forward_hooks]
        for norm in self._norms:
            norm.track_running_stats = False
        for module, own in self._hooks:
            kept = ((k, h) for k, h in own.items() if not getattr(h, "observes_output", False))
            module._forward_hooks = OrderedDict(kept)
        self._carry = carry(None if self._begun is None else self._begun.copy())
        self._carry.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._carry.__exit__(*error)
        self._exchange()
        for norm in self._norms:
            norm.track_running_stats = True
        for module, own in self._hooks:
            module._forward_hooks = own
