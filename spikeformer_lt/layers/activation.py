"""Stateless activations with the signature of the LIF neuron.

They take ``[T|1, ...]``, time first, and keep its shape: a leading axis of size 1 stays of size 1.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, DataError, near
from spikeformer_lt.layers.kernels.reference import LIFParams, spike, surrogate_derivative

__all__ = ["ALPHAS", "Activation", "Heaviside", "Relu", "Sign"]

ALPHAS = {"sigmoid": 4.0, "atan": 2.0, "hardtanh": 1.0}  # steepness of each surrogate by default


def count_steps(x: Tensor, T: int | None, who: str) -> int:
    """Number of steps that `x` stands for, refused unless its leading axis is 1 or T."""
    if x.dim() == 0 or not x.is_floating_point():
        raise DataError(f"{who} got {x.dtype} {list(x.shape)}; it must be floats [T|1, ...]")
    size = x.shape[0]
    steps = size if T is None else T
    if steps < 1 or size not in (1, steps):
        raise DataError(
            f"{who} got a leading axis of size {size} for T={T}; it must be 1 or T, at least 1"
        )
    return steps


def checked_surrogate(
    name: str, alpha: float | None, allowed: tuple[str, ...]
) -> tuple[str, float]:
    """A surrogate and its steepness, by default that of its name."""
    if name not in allowed:
        raise ConfigError(f"surrogate={name!r} is not one of {list(allowed)}{near(name, allowed)}")
    value = ALPHAS[name] if alpha is None else float(alpha)
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"alpha={alpha!r} is not allowed: a finite number above 0")
    return name, value


def checked_number(field: str, value: float) -> float:
    """The value as a float, refused unless it is finite."""
    if not math.isfinite(value):
        raise ConfigError(f"{field}={value!r} is not allowed: a finite number")
    return float(value)


class _SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * surrogate_derivative(x, "hardtanh", ctx.alpha), None


class Activation(nn.Module):
    """A stateless activation behind the LIF's signature: [T|1, ...] -> the same shape."""

    stateful: ClassVar[bool] = False
    spiking: ClassVar[bool] = False

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Activation of `x`; a leading axis of size 1 stays of size 1."""
        count_steps(x, T, type(self).__name__)
        return self.activate(x)

    def activate(self, x: Tensor) -> Tensor:
        """Element-wise function of `x`."""
        raise NotImplementedError


class Heaviside(Activation):
    """1 where ``x >= v_threshold``, else 0, with a surrogate derivative.

    Args:
        v_threshold: the threshold.
        surrogate: "sigmoid", "atan" or "hardtanh" (`alpha` where ``|u| <= 1 / alpha``).
        alpha: its steepness; None means 4.0, 2.0 and 1.0.
    """

    spiking: ClassVar[bool] = True

    def __init__(
        self, *, v_threshold: float = 1.0, surrogate: str = "sigmoid", alpha: float | None = None
    ) -> None:
        super().__init__()
        self.v_threshold = checked_number("v_threshold", v_threshold)
        self.surrogate, self.alpha = checked_surrogate(surrogate, alpha, tuple(ALPHAS))

    def activate(self, x: Tensor) -> Tensor:
        """Spikes in {0, 1}."""
        return spike(x - self.v_threshold, self.surrogate, self.alpha)

    def as_lif(self) -> LIFParams | None:
        """A LIF whose first step from rest is this activation; None if the kernels have none."""
        if self.surrogate == "hardtanh":
            return None
        return LIFParams(2.0, self.v_threshold, 0.0, False, True, self.surrogate, self.alpha)

    def extra_repr(self) -> str:
        """Constants for ``print(model)``."""
        return f"v_threshold={self.v_threshold}, surrogate={self.surrogate}, alpha={self.alpha}"


class Sign(Activation):
    """+1 where ``x >= 0``, else -1; the gradient passes where ``|x| <= 1`` (that of hard tanh).

    Source: Courbariaux et al. 2016, arXiv:1602.02830, section 2.3.
    """

    def activate(self, x: Tensor) -> Tensor:
        """Values in {-1, +1}."""
        if torch.is_grad_enabled() and x.requires_grad:
            out: Tensor = _SignSTE.apply(x, 1.0)  # type: ignore[no-untyped-call]
            return out
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class Relu(Activation):
    """max(x, 0): the full-precision reference."""

    def activate(self, x: Tensor) -> Tensor:
        """Values >= 0."""
        return torch.relu(x)
