"""LIF neurons whose input nobody else reads: their currents are overwritten, or never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.export.product import Product, in_graph
from spikeformer_lt.layers.kernels import choice
from spikeformer_lt.layers.kernels.choice import KernelError
from spikeformer_lt.layers.kernels.reference import LIFParams
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.norm import hooked

__all__ = ["fire", "fire_linear"]

_FEW = 256  # rows of a step: 5 to 14 % are gained on 44 of them, none on 1,408 (products.py)


def fire(act: Any, current: Tensor, T: int, source: nn.Module | None = None) -> Tensor:
    """``act(current, T)``, which may overwrite `current`.

    A kernel that writes where it read touches half the memory. It runs where `act` is a plain LIF
    without hooks, and only outside of graphs and gradients.

    Args:
        act: the activation.
        current: ``[T|1, ...]``; of no use afterwards.
        T: number of time steps.
        source: what made the current; a hook that watches it may have kept it.
    """
    params = None if source is not None and _watched(source) else _plain(act)
    own = current.shape[0] == T and current.is_contiguous() and not torch.is_grad_enabled()
    if params is None or not own or not choice.takes_numba(current, current.numel()):
        return act(current, T)  # type: ignore[no-any-return]
    try:
        from spikeformer_lt.layers.kernels.work import Work

        v = act.start(current)
        start = None if v is None else v.contiguous()
        spikes, last = Work(current, start, T, params).forward(current)
    except ImportError:  # which the activation will report
        return act(current, T)  # type: ignore[no-any-return]
    except KernelError as error:
        choice.give_up(error)
        return act(current, T)  # type: ignore[no-any-return]
    act.keep(last)
    return spikes


def fire_linear(act: Any, product: Product, x: Tensor, T: int) -> Tensor | None:
    """``act(product(x), T)`` in one pass over the rows; None where that does not apply or pay.

    Of many rows the product alone takes so long that nothing is gained, and byte products are
    faster than both.

    Args:
        act: the activation.
        product: the linear map.
        x: ``[T|1, ..., in]``.
        T: number of time steps.
    """
    if in_graph():  # where a look at the number of rows would fix it
        return None
    params = None if _watched(product) else _plain(act)
    if params is None or torch.is_grad_enabled() or x.shape[0] not in (1, T):
        return None
    if x.shape[-1] != product.weight.shape[1]:  # the product will say so
        return None
    few = x.shape[1:-1].numel() <= _FEW or choice.is_forced()
    if not few or product.takes_bytes(x):
        return None
    if not choice.takes_numba(x, x.numel() // x.shape[0] * T) or product.weight.dtype != x.dtype:
        return None
    try:
        from spikeformer_lt.layers.kernels.fused import linear_lif

        panels = product.panels()
        if panels is None:
            return None
        v = act.start(product.bias.expand(1, *x.shape[1:-1], -1))
        spikes, last = linear_lif(x.contiguous(), panels, product.bias, v, T, params)
    except ImportError:  # which the activation will report
        return None
    except KernelError as error:
        choice.give_up(error)
        return None
    act.keep(last)
    return spikes


def _plain(act: Any) -> LIFParams | None:
    """Constants of a LIF that nothing watches; None for every other activation."""
    if type(act) is not LIF or act.store_v_seq or _watched(act):
        return None
    return act.params()


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks) or hooked(module)
