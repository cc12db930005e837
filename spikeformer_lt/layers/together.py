"""Several linear units of the same input as one: q, k and v in one product and one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.layers import kernels
from spikeformer_lt.layers.kernels import choice
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.norm import BatchNorm, hooked
from spikeformer_lt.layers.products import applies, product_rows
from spikeformer_lt.layers.units import LinearUnit

__all__ = ["spikes_together"]


def spikes_together(units: Sequence[Any], tokens: Tensor, T: int) -> Tensor | None:
    """The units' spikes ``[T, B, N, U, D']`` of tokens ``[T|1, B, N, D]``, side by side.

    Weights, statistics and states stay those of the units; only the calls are one. None where a
    unit is hooked, differs from the others in kind, or carries a voltage: then each runs alone.
    """
    first = units[0]
    if not choice.takes_numba(tokens, tokens.numel() // tokens.shape[0] * T):
        return None
    if not all(_is_plain(unit) and _kind(unit) == _kind(first) for unit in units):
        return None
    maps, norms = [unit.linear for unit in units], [unit.norm for unit in units]
    weight = torch.cat([m.weight for m in maps])
    bias = None if maps[0].bias is None else torch.cat([m.bias for m in maps])
    if all(applies(tokens, m) for m in maps):
        current = product_rows(tokens, weight, bias)
    else:
        current = F.linear(tokens, weight, bias)
    batch, known = first.norm.training, None
    count = first.norm.check(current[..., : first.norm.num_features])
    if not batch:
        known = (
            torch.cat([n.running_mean for n in norms]),
            torch.cat([n.running_var for n in norms]),
        )
    scale, shift = torch.cat([n.weight for n in norms]), torch.cat([n.bias for n in norms])
    params = first.act.params()
    result = kernels.norm_lif(current, scale, shift, known, first.norm.eps, None, T, params)
    if result is None:
        return None
    spikes, last, mean, var = (x.unflatten(-1, (len(units), -1)) for x in result)
    for i, (unit, norm) in enumerate(zip(units, norms, strict=True)):
        if batch:
            norm.track(mean[i], var[i], count * (T // current.shape[0]))
        unit.act.keep(last[..., i, :])
        for hook in unit.act._forward_hooks.values():  # observers alone, see `hooked`
            hook(unit.act, (), spikes[..., i, :])
    out: Tensor = spikes
    return out


def _is_plain(unit: Any) -> bool:
    act, norm = unit.act, unit.norm
    return (
        type(unit) is LinearUnit
        and type(unit.linear) is nn.Linear
        and type(norm) is BatchNorm
        and norm.weight is not None
        and norm.running_mean is not None
        and type(act) is LIF
        and not isinstance(act.v, Tensor)
        and act.v == (act.v_reset or 0.0)
        and not act.store_v_seq
        and act.params() is not None
        and not any(hooked(part) for part in (unit, unit.linear, norm, act))
    )


def _kind(unit: Any) -> tuple[object, ...]:
    norm = unit.norm
    return (
        unit.linear.weight.shape,
        unit.linear.weight.dtype,
        unit.linear.bias is None,
        norm.training,
        norm.eps,
        norm.weight.dtype,
        unit.act.params(),
    )
