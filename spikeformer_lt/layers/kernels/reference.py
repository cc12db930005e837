"""The LIF neuron in plain torch operations: the definition that the kernels are held to.

    charge  h[t] = v[t-1] + (x[t] - (v[t-1] - r)) / tau      (decay_input)
            h[t] = v[t-1] - (v[t-1] - r) / tau + x[t]        (otherwise)
    fire    s[t] = 1 if h[t] >= v_threshold else 0
    reset   v[t] = h[t] (1 - s[t]) + v_reset s[t]            (hard, r = v_reset)
            v[t] = h[t] - v_threshold s[t]                   (soft, r = 0)

The derivative of s with respect to u = h - v_threshold is replaced by that of a smooth function:
sigmoid: a y (1 - y) with y = 1 / (1 + exp(-a u));  atan: (a / 2) / (1 + (pi / 2 a u)^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeformer_lt.errors import ConfigError, near

ALPHAS = {"sigmoid": 4.0, "atan": 2.0, "hardtanh": 1.0}  # steepness of each surrogate by default


@dataclass(frozen=True)
class NeuronConfig:
    """Constants of a layer of neurons.

    Args:
        tau: membrane time constant in time steps, above 1.
        v_threshold: firing voltage, dimensionless.
        v_reset: voltage after a spike; None subtracts `v_threshold` instead (soft reset).
        decay_input: whether the input, too, is divided by `tau`.
        surrogate: derivative that stands in for that of the threshold: "sigmoid", "atan", or of
            stateless activations "hardtanh".
        alpha: its steepness; None means 4.0, 2.0 and 1.0.
        detach_reset: whether gradients skip the path through the reset.

    Raises:
        ConfigError: a constant outside its range, or an unknown surrogate.
    """

    tau: float = 2.0
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    decay_input: bool = True
    surrogate: str = "sigmoid"
    alpha: float | None = None
    detach_reset: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau > 1.0):
            raise ConfigError(f"tau={self.tau!r} is not allowed: a finite number of steps above 1")
        for field in ("v_threshold", "v_reset"):
            value = getattr(self, field)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{field}={value!r} is not allowed: a finite number")
        check_surrogate(self.surrogate, tuple(ALPHAS))
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha={self.alpha!r} is not allowed: a finite number above 0")

    @property
    def v_rest(self) -> float:
        """Voltage a sequence starts from and leaks to."""
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def steepness(self) -> float:
        """`alpha`, or the default of the surrogate."""
        return ALPHAS[self.surrogate] if self.alpha is None else float(self.alpha)


def check_surrogate(name: str, allowed: tuple[str, ...]) -> None:
    """Refuse an unknown surrogate."""
    if name not in allowed:
        raise ConfigError(f"surrogate={name!r} is not one of {list(allowed)}{near(name, allowed)}")


def surrogate_derivative(u: Tensor, surrogate: str, alpha: float) -> Tensor:
    """Derivative of the smooth stand-in of the threshold at ``u = h - v_threshold``."""
    if surrogate == "sigmoid":
        y = (u * alpha).sigmoid()
        return (1.0 - y) * y * alpha
    if surrogate == "atan":
        a = alpha / 2
        return a / (1 + (math.pi * a * u).square())
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
    """1 where ``u >= 0``, else 0; differentiable (twice, too) through the surrogate."""
    if torch.is_grad_enabled() and u.requires_grad:
        out: Tensor = _Spike.apply(u, surrogate, alpha)  # type: ignore[no-untyped-call]
        return out
    return (u >= 0).to(u.dtype)


def charge(x: Tensor, v: Tensor | float, neuron: NeuronConfig) -> Tensor:
    """Membrane voltage before firing, in spikingjelly's order of operations: equal to the bit."""
    if neuron.decay_input:
        return v + (x - (v - neuron.v_rest)) / neuron.tau
    return v - (v - neuron.v_rest) / neuron.tau + x


def after_spike(h: Tensor, s: Tensor, neuron: NeuronConfig) -> Tensor:
    """Membrane voltage after the reset that the spikes `s` cause."""
    if neuron.detach_reset:
        s = s.detach()
    if neuron.v_reset is None:
        return h - s * neuron.v_threshold
    return h * (1.0 - s) + s * neuron.v_reset


def lif_loop(
    x: Tensor,
    v: Tensor | None,
    T: int,
    neuron: NeuronConfig,
    fire: Callable[[Tensor], Tensor] | None = None,
    trace: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `T` steps; every operation is one of torch's, so any tool that traces torch can follow.

    Args:
        x: input current, [T, ...], or [1, ...] for the same current at every step.
        v: voltage before the first step, shape ``x.shape[1:]``; None is rest.
        T: number of steps.
        neuron: constants.
        fire: the spike function, of ``h - v_threshold``; by default that of the constants.
        trace: a list that receives the voltage after each step.

    Returns:
        Spikes [T, ...] and the voltage after the last step.
    """
    static = x.shape[0] == 1
    v = x.new_full(x.shape[1:], neuron.v_rest) if v is None else v
    spikes = []
    for t in range(T):
        h = charge(x[0 if static else t], v, neuron)
        u = h - neuron.v_threshold
        s = spike(u, neuron.surrogate, neuron.steepness) if fire is None else fire(u)
        v = after_spike(h, s, neuron)
        spikes.append(s)
        if trace is not None:
            trace.append(v)
    return torch.stack(spikes), v
