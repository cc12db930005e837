"""Stateless activations with the signature of the LIF neuron.

They take ``[T|1, ...]``, time first, and keep its shape: a leading axis of size 1 stays of size 1.

The LIF neuron (spikingjelly's, over our kernels), and activations by name.

All take ``[T|1, ...]``, time first. A leading axis of size 1 stands for T equal steps; a LIF
expands it to T, a stateless activation leaves it as it is.

Neuron state: where it starts and that nothing of it is left behind.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar, Literal

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from spikingjelly.activation_based.functional import lif_multi_step, neuron_implementation
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, DataError, near
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.reference import LIFParams, lif_loop, spike, surrogate_derivative

__all__ = [
    "ALPHAS",
    "LIF",
    "Activation",
    "Heaviside",
    "Relu",
    "Sign",
    "lif_path",
    "make_activation",
    "make_lif",
    "reset_state",
]

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


Kind = Literal["lif", "heaviside", "sign", "relu"]

_SURROGATES = {"sigmoid": sj_surrogate.Sigmoid, "atan": sj_surrogate.ATan}


class LIF(LIFNode):  # type: ignore[misc]
    """Leaky integrate-and-fire neurons over a whole sequence; equations in kernels/reference.py.

    State is carried from one forward to the next (`v`, detached) until ``functional.reset_net``.

    Shape: [T|1, ...] -> [T, ...], spikes in {0, 1}.

    Args:
        tau: membrane time constant in steps, above 1.
        v_threshold: firing voltage.
        v_reset: voltage after a spike; None subtracts `v_threshold` instead (soft reset).
        decay_input: whether the input, too, is divided by `tau`.
        surrogate: "sigmoid" or "atan", the derivative used for the threshold.
        alpha: its steepness; None means 4.0 for sigmoid, 2.0 for atan.
        detach_reset: whether gradients skip the path through the reset.
        store_v_seq: keep the voltage after every step in `v_seq`, [T, ...], detached.

    Raises:
        ConfigError: a constant outside its range, or an unknown surrogate.
        DataError: (forward) a leading axis that is neither 1 nor T.

    Source: Zhou et al. 2023 (Spikformer), arXiv:2209.15425, section 3; spikingjelly 2.0 LIFNode.
    """

    stateful: ClassVar[bool] = True
    spiking: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        surrogate: str = "sigmoid",
        alpha: float | None = None,
        detach_reset: bool = True,
        store_v_seq: bool = False,
    ) -> None:
        if not (math.isfinite(tau) and tau > 1.0):
            raise ConfigError(f"tau={tau!r} is not allowed: a finite number of steps above 1")
        name, value = checked_surrogate(surrogate, alpha, tuple(_SURROGATES))
        super().__init__(
            tau=float(tau),
            decay_input=bool(decay_input),
            v_threshold=checked_number("v_threshold", v_threshold),
            v_reset=None if v_reset is None else checked_number("v_reset", v_reset),
            surrogate_function=_SURROGATES[name](alpha=value),
            detach_reset=bool(detach_reset),
            step_mode="m",
            store_v_seq=store_v_seq,
        )

    def supported_step_mode(self) -> tuple[str, ...]:
        """Multi-step only: a single step is a sequence with T = 1."""
        return ("m",)

    def params(self) -> LIFParams | None:
        """Constants for the kernels; None if they do not know the `surrogate_function`."""
        fn = self.surrogate_function
        for name, kind in _SURROGATES.items():
            if type(fn) is kind and fn.spiking:
                return self._params(name, float(fn.alpha))
        return None

    def _params(self, surrogate: str, alpha: float) -> LIFParams:
        return LIFParams(
            self.tau,
            self.v_threshold,
            self.v_reset,
            self.decay_input,
            self.detach_reset,
            surrogate,
            alpha,
        )

    def start(self, x: Tensor) -> Tensor | None:
        """Voltage before the first step of `x`: the state, if it has that shape; None is rest."""
        v = self.v
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if isinstance(v, Tensor):
            return v.detach().to(x.device, dtype) if v.shape == x.shape[1:] else None
        if v == (self.v_reset or 0.0):
            return None
        return torch.full(x.shape[1:], v, dtype=dtype, device=x.device)

    def keep(self, v: Tensor) -> None:
        """Carry `v` to the next forward; a graph that is traced is stateless."""
        if not (torch.jit.is_tracing() or torch.compiler.is_exporting()):
            self.v = v.detach()

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Spikes [T, ...] of the current `x`, [T, ...], or [1, ...] for T equal steps."""
        steps = count_steps(x, T, "LIF")
        v = self.start(x)
        current = x if x.dtype == torch.float64 else x.float()
        params = self.params()
        if params is not None and not self.store_v_seq:
            if _takes_theirs(current):
                spikes, v = self.run_theirs(current, v, steps)
            else:
                spikes, v = dispatch.lif(current, v, steps, params)
        else:
            spikes, v = self._record(current, v, steps)
        self.keep(v)
        return spikes.to(x.dtype)

    def run_theirs(self, x: Tensor, v: Tensor | None, T: int) -> tuple[Tensor, Tensor]:
        """The steps by spikingjelly's own function, which on CUDA runs its fused kernels.

        Args:
            x: [T|1, ...], float32.
            v: voltage before the first step, or None for rest.
            T: number of steps.

        Returns:
            Spikes [T, ...] and the voltage after the last step.
        """
        start = x.new_full(x.shape[1:], self.v_reset or 0.0) if v is None else v
        spikes, last, _ = lif_multi_step(
            x.expand(T, *x.shape[1:]),
            start,
            self.tau,
            self.decay_input,
            self.v_threshold,
            self.v_reset,
            self.surrogate_function,
            self.detach_reset,
        )
        return spikes, last

    def _record(self, x: Tensor, v: Tensor | None, T: int) -> tuple[Tensor, Tensor]:
        """The plain loop: for a surrogate of the user's, and to store the voltages of all steps."""
        params = self._params("sigmoid", 1.0)
        start = x.new_full(x.shape[1:], params.v_rest) if v is None else v
        trace: list[Tensor] = []
        spikes, last = lif_loop(x, start, T, params, self.surrogate_function, trace)
        if self.store_v_seq:
            self.v_seq = torch.stack(trace).detach()
        return spikes, last


def _takes_theirs(x: Tensor) -> bool:
    """Whether spikingjelly's kernels run this: float32 on a CUDA device, outside of graphs."""
    return (
        x.device.type == "cuda"
        and x.dtype == torch.float32
        and dispatch.mode() != "torch"
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def lif_path(device: torch.device) -> str:
    """Whose kernels run float32 on this device, above all its LIF neurons, for the log."""
    if dispatch.mode() == "torch":
        return "torch (SPIKEFORMER_KERNELS)"
    if device.type == "cuda":
        return f"spikingjelly's {neuron_implementation('lif', device)['implementation']}"
    if device.type == "cpu":
        return "torch (the numba kernels failed)" if dispatch.is_broken() else "numba"
    return "torch"


def make_lif(**kw: Any) -> LIF:
    """A :class:`LIF` from its keyword arguments."""
    lif: LIF = _make(LIF, kw)
    return lif


def _make(cls: type, kw: dict[str, Any]) -> Any:
    allowed = list(inspect.signature(LIF).parameters)
    for name in kw:
        if name not in allowed:
            raise ConfigError(
                f"{name!r} is not an option of a neuron{near(name, allowed)}; {allowed}"
            )
    known = inspect.signature(cls).parameters
    return cls(**{k: v for k, v in kw.items() if k in known})


def make_activation(kind: Kind | str, **lif_kw: Any) -> LIF | Activation:
    """An activation by name, from the options of the LIF that stands or would stand there.

    Args:
        kind: "lif", "heaviside", "sign" or "relu".
        lif_kw: options of :class:`LIF`; a stateless kind uses those it has and ignores the others.

    Raises:
        ConfigError: an unknown kind, or an option that no neuron has.
    """
    kinds: dict[str, type] = {"lif": LIF, "heaviside": Heaviside, "sign": Sign, "relu": Relu}
    if kind not in kinds:
        raise ConfigError(
            f"activation {kind!r} is not one of {list(kinds)}{near(kind, list(kinds))}"
        )
    out: LIF | Activation = _make(kinds[kind], lif_kw)
    return out


def reset_state(model: nn.Module) -> None:
    """Put every LIF of a model back to its start voltage.

    The modules are listed anew each time: spikingjelly's ``reset_net`` caches its list and would
    miss a neuron that was swapped in after the first reset. ``model.modules()`` takes three times
    as long (measured), which one image through a small network notices.
    """
    left = [model]
    while left:
        module = left.pop()
        if isinstance(module, LIF):
            module.reset()
        left.extend(child for child in module._modules.values() if child is not None)
