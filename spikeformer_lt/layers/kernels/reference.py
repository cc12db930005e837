"""The LIF neuron in plain torch operations: the definition that the kernels are held to.

    charge  h[t] = v[t-1] + (x[t] - (v[t-1] - r)) / tau      (decay_input)
            h[t] = v[t-1] - (v[t-1] - r) / tau + x[t]        (otherwise)
    fire    s[t] = 1 if h[t] >= v_threshold else 0
    reset   v[t] = h[t] (1 - s[t]) + v_reset s[t]            (hard, r = v_reset)
            v[t] = h[t] - v_threshold s[t]                   (soft, r = 0)

The derivative of s with respect to u = h - v_threshold is replaced by that of a smooth function:
sigmoid: a y (1 - y) with y = 1 / (1 + exp(-a u));  atan: (a / 2) / (1 + (pi / 2 a u)^2);
of stateless activations hardtanh: a where |a u| <= 1;  bireal: 2 a max(0, 1 - |a u|), the slope of
the parabolas of Liu et al. 2018, arXiv:1808.00278, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.inputs import NeuronConfig, transformed


def surrogate_derivative(u: Tensor, surrogate: str, alpha: float) -> Tensor:
    """Derivative of the smooth stand-in of the threshold at ``u = h - v_threshold``."""
    if surrogate == "sigmoid":
        y = (u * alpha).sigmoid()
        return (1.0 - y) * y * alpha
    if surrogate == "atan":
        a = alpha / 2
        return a / (1 + (math.pi * a * u).square())
    if surrogate == "bireal":
        return (1 - u.abs() * alpha).clamp(min=0) * (2 * alpha)
    assert surrogate == "hardtanh", surrogate
    return (u.abs() * alpha <= 1).to(u.dtype) * alpha


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: str, alpha: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grad * surrogate_derivative(u, ctx.surrogate, ctx.alpha), None, None


def spike(u: Tensor, surrogate: str, alpha: float) -> Tensor:
    """1 where ``u >= 0``, else 0; differentiable through the surrogate, in every mode of torch."""
    if transformed(u):
        return straight_through((u >= 0).to(u.dtype), _smooth(u, surrogate, alpha))
    if torch.is_grad_enabled() and u.requires_grad:
        out: Tensor = _Spike.apply(u, surrogate, alpha)  # type: ignore[no-untyped-call]
        return out
    return (u >= 0).to(u.dtype)


def _smooth(u: Tensor, surrogate: str, alpha: float) -> Tensor:
    """A function with the derivative of `surrogate_derivative`."""
    if surrogate == "sigmoid":
        return (u * alpha).sigmoid()
    if surrogate == "atan":
        return (math.pi / 2 * alpha * u).atan() / math.pi
    inside = (u * alpha).clamp(-1, 1)
    return inside if surrogate == "hardtanh" else inside * (2 - inside.abs())


def straight_through(value: Tensor, smooth: Tensor) -> Tensor:
    """The value, to the bit, with the derivatives of `smooth`, in operations of torch."""
    return value + (smooth - smooth.detach())


def charge(x: Tensor, v: Tensor | float, neuron: NeuronConfig) -> Tensor:
    """Membrane voltage before firing, in spikingjelly's order of operations: equal to the bit."""
    if neuron.decay_input:
        return v + (x - (v - neuron.v_rest)) / neuron.tau
    return v - (v - neuron.v_rest) / neuron.tau + x


def lif_loop(
    x: Tensor,
    v: Tensor | None,
    T: int,
    neuron: NeuronConfig,
    fire: Callable[[Tensor], Tensor] | None = None,
    trace: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes [T, ...] and last voltage on a current x [T|1, ...], from `v`, or rest.

    Every operation is one of torch's, so any tool that traces torch can follow. `fire` is the spike
    function of ``h - v_threshold``, `trace` receives the voltage after each step.
    """
    static = x.shape[0] == 1
    v = x.new_full(x.shape[1:], neuron.v_rest) if v is None else v
    spikes = []
    for t in range(T):
        h = charge(x[0 if static else t], v, neuron)
        u = h - neuron.v_threshold
        s = spike(u, neuron.surrogate, neuron.steepness) if fire is None else fire(u)
        spikes.append(s)
        s = s.detach() if neuron.detach_reset else s
        reset = neuron.v_reset
        v = h - s * neuron.v_threshold if reset is None else h * (1.0 - s) + s * reset
        if trace is not None:
            trace.append(v)
    return torch.stack(spikes), v


def pool(x: Tensor) -> Tensor:
    """Max-pool (3x3, stride 2, padding 1) of maps ``[T, B, H, W, C]``."""
    maps = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 3, 2, 1)
    out: Tensor = maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return out


def norm_lif(
    x: Tensor,
    norm: Sequence[Tensor | None],
    batch: bool,
    eps: float,
    v: Tensor | None,
    T: int,
    neuron: NeuronConfig,
    pooled: bool = False,
) -> Tensor:
    """Spikes after a batch normalisation over the last axis, and a :func:`pool` where `pooled`.

    `norm`: mean, variance, weight and bias; with `batch` the first two are those of `x`. There is
    no normalisation where the mean is None.
    """
    mean, var, weight, bias = norm
    y, rows = x, (None, None) if batch else (mean, var)
    if mean is not None:
        y = F.batch_norm(x.reshape(-1, x.shape[-1]), *rows, weight, bias, batch, 0.0, eps)
        y = y.reshape(x.shape)
    return lif_loop(pool(y) if pooled else y, v, T, neuron)[0]
