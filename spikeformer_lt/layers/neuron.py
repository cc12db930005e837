"""The LIF neuron (spikingjelly's, over our kernels), and activations by name.

All take ``[T|1, ...]``, time first. A leading axis of size 1 stands for T equal steps; a LIF
expands it to T, a stateless activation leaves it as it is.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar, Literal

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from spikingjelly.activation_based.functional import lif_multi_step, neuron_implementation
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor

from spikeformer_lt.errors import ConfigError, near
from spikeformer_lt.layers import kernels
from spikeformer_lt.layers.activation import (
    Activation,
    Heaviside,
    Relu,
    Sign,
    checked_number,
    checked_surrogate,
    count_steps,
)
from spikeformer_lt.layers.kernels import LIFParams, choice
from spikeformer_lt.layers.kernels.reference import lif_loop

__all__ = ["LIF", "Activation", "Heaviside", "Relu", "Sign"]
__all__ += ["lif_path", "make_activation", "make_lif"]

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
                spikes, v = kernels.lif(current, v, steps, params)
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
        and choice.mode() != "torch"
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def lif_path(device: torch.device) -> str:
    """Whose kernels run float32 on this device, above all its LIF neurons, for the log."""
    if choice.mode() == "torch":
        return "torch (SPIKEFORMER_KERNELS)"
    if device.type == "cuda":
        return f"spikingjelly's {neuron_implementation('lif', device)['implementation']}"
    if device.type == "cpu":
        return "torch (the numba kernels failed)" if choice.is_broken() else "numba"
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
