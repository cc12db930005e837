"""LIF neurons whose input nobody else reads: spikes take the place of the currents in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeformer_lt.layers.kernels import choice
from spikeformer_lt.layers.kernels.choice import KernelError
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.norm import hooked

__all__ = ["fire"]


def fire(act: Any, current: Tensor, T: int) -> Tensor:
    """``act(current, T)``, which may overwrite `current`.

    A kernel that writes where it read touches half the memory. It runs where `act` is a plain LIF
    without hooks, and only outside of graphs and gradients.

    Args:
        act: the activation.
        current: ``[T|1, ...]``; of no use afterwards.
        T: number of time steps.
    """
    if type(act) is not LIF or act.store_v_seq or act._forward_hooks or hooked(act):
        return act(current, T)  # type: ignore[no-any-return]
    params = act.params()
    own = current.shape[0] == T and current.is_contiguous() and not torch.is_grad_enabled()
    if params is None or not own or not choice.takes_numba(current, current.numel()):
        return act(current, T)  # type: ignore[no-any-return]
    try:
        from spikeformer_lt.layers.kernels.work import Work

        v = act.start(current)
        start = None if v is None else v.contiguous()
        spikes, last = Work(current, start, T, params).forward(current)
    except (ImportError, KernelError):  # which the activation will report
        return act(current, T)  # type: ignore[no-any-return]
    act.keep(last)
    return spikes
