"""Neurons, stateless activations, and the batch normalisation before them.

All take ``[T|1, ...]``, time first. A leading axis of size 1 stands for T equal steps: a LIF
expands it to T, a stateless activation keeps it. A forward starts from rest; only inside of
:func:`carry` does a sequence go on from one forward to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from spikingjelly.activation_based.base import MemoryModule
from spikingjelly.activation_based.functional import lif_multi_step, neuron_implementation
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as nn_module
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.errors import ConfigError, DataError, near, shown
from spikeformer_lt.layers.inputs import NeuronConfig as NeuronConfig
from spikeformer_lt.layers.inputs import check_surrogate, transformed
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.reference import lif_loop, spike, straight_through

Kind = Literal["lif", "heaviside", "sign", "relu", "ilif"]

_SURROGATES = {"sigmoid": sj_surrogate.Sigmoid, "atan": sj_surrogate.ATan}
_NAMES: dict[type, str] = {kind: name for name, kind in _SURROGATES.items()}
_CONSTANTS = [field.name for field in fields(NeuronConfig)]


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


def _configured(neuron: NeuronConfig | None, constants: dict[str, Any]) -> NeuronConfig:
    for name in constants:
        if name not in _CONSTANTS:
            hint = near(name, _CONSTANTS)
            raise ConfigError(f"{shown(name)} is not an option of a neuron{hint}; {_CONSTANTS}")
    return replace(neuron or NeuronConfig(), **constants)


class NeuronState:
    """Voltages of one sequence that arrives in parts, by neuron; see :func:`carry`.

    A neuron without an entry, or with one of another shape, starts from rest.
    """

    def __init__(self, voltages: Mapping[nn.Module, Tensor] | None = None) -> None:
        self.voltages = dict(voltages or {})

    def copy(self) -> NeuronState:
        """A state with the same voltages that changes apart from this one."""
        return NeuronState(self.voltages)


_CARRIED: ContextVar[NeuronState | None] = ContextVar("spikeformer_lt_neuron_state", default=None)


@contextmanager
def carry(state: NeuronState | None) -> Iterator[None]:
    """Let LIF neurons of this thread go on from `state` and write to it; None is rest."""
    token = _CARRIED.set(state)
    try:
        yield
    finally:
        _CARRIED.reset(token)


def carried() -> NeuronState | None:
    """The state that forwards of this thread carry; a compiled graph carries none."""
    return None if torch.compiler.is_compiling() else _CARRIED.get()


class Activation(nn.Module):
    """A stateless activation with the signature of the LIF: [T|1, ...] -> the same shape."""

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
        neuron: its threshold, surrogate and steepness are used.
        constants: fields of `neuron` that differ.
    """

    spiking: ClassVar[bool] = True

    def __init__(self, neuron: NeuronConfig | None = None, **constants: Any) -> None:
        super().__init__()
        neuron = _configured(neuron, constants)
        self.v_threshold = float(neuron.v_threshold)
        self.surrogate, self.alpha = neuron.surrogate, neuron.steepness
        self._known: tuple[Any, NeuronConfig | None] = (), None

    def params(self) -> NeuronConfig | None:
        """Constants of a LIF whose first step from rest is this; None if kernels know none."""
        own = self.v_threshold, self.surrogate, self.alpha
        known, made = self._known
        if known != own:
            start = 2.0, self.v_threshold, 0.0, False, self.surrogate, self.alpha, True
            made = NeuronConfig(*start) if self.surrogate in _SURROGATES else None
            self._known = own, made  # one write, as of a LIF
        return made

    def activate(self, x: Tensor) -> Tensor:
        """Spikes in {0, 1}."""
        return spike(x - self.v_threshold, self.surrogate, self.alpha)

    def extra_repr(self) -> str:
        """Constants for ``print(model)``."""
        return f"v_threshold={self.v_threshold}, surrogate={self.surrogate}, alpha={self.alpha}"


class Sign(Activation):
    """+1 where ``x >= 0``, else -1.

    The gradient passes where ``|x| <= 1`` (that of hard tanh), or is that of Bi-Real Net,
    ``2 - 2 |x|`` there.

    Args:
        neuron: its surrogate is used if it is "hardtanh", the default here, or "bireal".

    Source: Courbariaux et al. 2016, arXiv:1602.02830, section 2.3; Liu et al. 2018,
    arXiv:1808.00278, section 3.3.
    """

    def __init__(self, neuron: NeuronConfig | None = None) -> None:
        super().__init__()
        own = neuron is not None and neuron.surrogate == "bireal"
        self.surrogate = "bireal" if own else "hardtanh"

    def activate(self, x: Tensor) -> Tensor:
        """Values in {-1, +1}."""
        fired = spike(x, self.surrogate, 1.0)
        return fired + fired.detach() - 1.0

    def extra_repr(self) -> str:
        """Surrogate for ``print(model)``."""
        return f"surrogate={self.surrogate}"


class Relu(Activation):
    """max(x, 0): the full-precision reference."""

    def activate(self, x: Tensor) -> Tensor:
        """Values >= 0."""
        return torch.relu(x)


class Integer(Activation):
    """Whole numbers from 0 to 4, each for as many spikes of one step: round(x), cut at both ends.

    The gradient passes where 0 <= x <= 4.

    Source: Yao et al. 2025, arXiv:2411.16061, section 3 (spike firing approximation).
    """

    levels: ClassVar[int] = 4

    def activate(self, x: Tensor) -> Tensor:
        """Whole numbers."""
        inside = x.clamp(0, self.levels)
        return straight_through(inside.detach().round(), inside)


class LIF(LIFNode):  # type: ignore[misc]
    """Leaky integrate-and-fire neurons over a whole sequence; equations in kernels/reference.py.

    Shape: [T|1, ...] -> [T, ...], spikes in {0, 1}.

    Args:
        neuron: the constants; the surrogate is "sigmoid" or "atan".
        store_v_seq: record the voltage after every step in `v_seq`, [T, ...], detached, and the
            last one in `v`. A module that records is not for several threads.
        constants: fields of `neuron` that differ.

    Raises:
        ConfigError: a constant outside its range, or an unknown surrogate.
        DataError: (forward) a leading axis that is neither 1 nor T.

    Source: Zhou et al. 2023 (Spikformer), arXiv:2209.15425, section 3; spikingjelly 2.0 LIFNode.
    """

    stateful: ClassVar[bool] = True
    spiking: ClassVar[bool] = True

    def __init__(
        self, neuron: NeuronConfig | None = None, *, store_v_seq: bool = False, **constants: Any
    ) -> None:
        neuron = _configured(neuron, constants)
        check_surrogate(neuron.surrogate, tuple(_SURROGATES))
        super().__init__(
            tau=float(neuron.tau),
            decay_input=bool(neuron.decay_input),
            v_threshold=float(neuron.v_threshold),
            v_reset=None if neuron.v_reset is None else float(neuron.v_reset),
            surrogate_function=_SURROGATES[neuron.surrogate](alpha=neuron.steepness),
            detach_reset=bool(neuron.detach_reset),
            step_mode="m",
            store_v_seq=store_v_seq,
        )
        self._known: tuple[tuple[Any, ...], NeuronConfig] = ((), neuron)
        self.params()

    def supported_step_mode(self) -> tuple[str, ...]:
        """Multi-step only: a single step is a sequence with T = 1."""
        return ("m",)

    def params(self) -> NeuronConfig | None:
        """Constants for the kernels; None if they do not know the `surrogate_function`."""
        function = self.surrogate_function
        name = _NAMES.get(type(function))
        if name is None or not function.spiking:
            return None
        constants = self.tau, self.v_threshold, self.v_reset, self.decay_input
        own = (*constants, name, float(function.alpha), self.detach_reset)
        known, made = self._known
        if known != own:  # a constant was changed
            made = NeuronConfig(*own)
            self._known = own, made  # one write, so that another thread sees both or neither
        return made

    def start(self, x: Tensor) -> Tensor | None:
        """Voltage before the first step of `x`: the carried one, if it has that shape, or rest."""
        state = carried()
        v = None if state is None else state.voltages.get(self)
        if v is None or v.shape != x.shape[1:]:
            return None
        return v.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)

    def keep(self, v: Tensor) -> None:
        """Carry `v` to the next forward where a state is carried."""
        state = carried()
        if state is not None:
            state.voltages[self] = v.detach()

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Spikes [T, ...] of the current `x`, [T, ...], or [1, ...] for T equal steps."""
        steps = count_steps(x, T, "LIF")
        v = self.start(x)
        current = x if x.dtype == torch.float64 else x.float()
        params = self.params()
        if params is None or self.store_v_seq:  # the plain loop, for any surrogate
            trace: list[Tensor] = []
            known = (self.tau, self.v_threshold, self.v_reset, self.decay_input)
            neuron = NeuronConfig(*known, detach_reset=self.detach_reset)
            spikes, v = lif_loop(current, v, steps, neuron, self.surrogate_function, trace)
            if self.store_v_seq:
                self.v_seq = torch.stack(trace).detach()
                self.v = self.v_seq[-1]
        elif _takes_theirs(current):
            spikes, v = self.run_theirs(current, v, steps)
        else:
            spikes, v = dispatch.lif(current, v, steps, params)
        self.keep(v)
        return spikes.to(x.dtype)

    def run_theirs(self, x: Tensor, v: Tensor | None, T: int) -> tuple[Tensor, Tensor]:
        """As `dispatch.lif` of float32, by spikingjelly, which on CUDA runs its fused kernels."""
        start = x.new_full(x.shape[1:], self.v_reset or 0.0) if v is None else v
        constants = self.tau, self.decay_input, self.v_threshold, self.v_reset
        rest = self.surrogate_function, self.detach_reset
        spikes, last, _ = lif_multi_step(x.expand(T, *x.shape[1:]), start, *constants, *rest)
        return spikes, last


def _takes_theirs(x: Tensor) -> bool:
    """Whether spikingjelly's kernels run this: float32 on a CUDA device, outside of graphs."""
    return (
        x.device.type == "cuda"
        and x.dtype == torch.float32
        and dispatch.mode() != "torch"
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not transformed(x)
        and not dispatch.takes_triton("lif", x)
    )


def lif_path(device: torch.device) -> str:
    """Name of the kernel backend for float32 on this device, for the log."""
    if dispatch.mode() == "torch":
        return "torch (SPIKEFORMER_KERNELS)"
    if device.type == "cuda":
        theirs = f"spikingjelly's {neuron_implementation('lif', device)['implementation']}"
        choice = dispatch.triton_choice()
        return theirs if choice == "off" else f"{theirs}; Triton kernels {choice}"
    if device.type == "cpu":
        return "torch (the numba kernels failed)" if dispatch.is_broken() else "numba"
    return "torch"


def make_lif(**options: Any) -> LIF:
    """A :class:`LIF` from its keyword arguments."""
    return LIF(**options)


def make_activation(
    kind: Kind | str, neuron: NeuronConfig | None = None, **constants: Any
) -> LIF | Activation:
    """An activation by name, with the constants of the LIF that is or would be in its place.

    A stateless kind uses the constants that it has and ignores the others.

    Raises:
        ConfigError: an unknown kind, an option that no neuron has, or a value out of range.
    """
    kinds = {"lif": LIF, "heaviside": Heaviside, "sign": Sign, "relu": Relu, "ilif": Integer}
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"activation {shown(kind)} is not one of {list(kinds)}{near(kind, kinds)}"
        )
    neuron, made = _configured(neuron, constants), kinds[kind]
    return made() if made in (Relu, Integer) else made(neuron)


def reset_state(model: nn.Module) -> None:
    """Clear what neurons recorded, and states of spikingjelly and snntorch in a user's model.

    Networks of this package need none. spikingjelly's ``reset_net`` misses a neuron that was put in
    after its first call; snntorch's resets the neurons of every network of the process.
    """
    for module in model.modules():
        if isinstance(module, MemoryModule):
            module.reset()
        elif _of_snntorch(module):  # whose states are the buffers that state_dict leaves out
            for name in module._non_persistent_buffers_set:
                state: Any = module._buffers[name]
                module._buffers[name] = state.new_zeros(0)


def _of_snntorch(module: nn.Module) -> bool:
    return any(
        kind.__name__ == "SpikingNeuron" and kind.__module__.startswith("snntorch.")
        for kind in type(module).__mro__
    )


def foreign_neurons(model: nn.Module) -> dict[str, nn.Module]:
    """Spiking neurons of spikingjelly and snntorch in a model, by name; ours are not among them."""
    return {
        name: module
        for name, module in model.named_modules()
        if _of_snntorch(module)
        or (hasattr(module, "surrogate_function") and not isinstance(module, LIF))
    }


@torch.no_grad()
def make_linear(neuron: Any) -> None:
    """Let a foreign neuron pass on its positive voltage, without threshold and reset, in place."""
    if _of_snntorch(neuron):
        neuron.threshold.zero_()
        neuron.spike_grad, neuron.state_function = nn.ReLU(), neuron._base_int
    else:
        neuron.surrogate_function, neuron.v_threshold, neuron.v_reset = nn.ReLU(), 0.0, None


class BatchNorm(_BatchNorm):
    """Batch normalisation of rows: channels are the last axis, every other axis is samples.

    State names are those of ``torch.nn.BatchNorm2d``; it computes in float32 at least.

    Shape: [T|1, ..., C] -> the same.

    Raises:
        DataError: (forward) the last axis is not C; a training batch with one value per channel.
    """

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        """Normalise `x`, which represents `repeats` equal copies of itself along time."""
        count, dtype = self.check(x), x.dtype
        x = x if dtype == torch.float64 else x.float()
        if not (self.training or self.running_mean is None):
            assert self.running_mean is not None and self.running_var is not None
            return self._apply_rows(x, self.running_mean, self.running_var, False).to(dtype)
        mean, var = x.new_zeros(2, self.num_features)
        y = self._apply_rows(x, mean, var, True)  # which writes mean and unbiased variance
        self.track(mean, var * ((count - 1) / count), count * repeats)
        return y.to(dtype)

    def _apply_rows(self, x: Tensor, mean: Tensor, var: Tensor, batch: bool) -> Tensor:
        channels = x.shape[-1]
        if torch.compiler.is_compiling():  # rows have no strides, so that any batch size fits
            rows = x.reshape(-1, channels)
        else:  # an image [1, C, n, 1] with its channels innermost is torch's fast way
            rows = x.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)
        kind, momentum = x.dtype, 1.0 if batch else 0.0  # a module of 16 bits is widened, too
        scale, shift = (None if p is None else p.to(kind) for p in (self.weight, self.bias))
        mean, var = mean.to(kind), var.to(kind)
        y = F.batch_norm(rows, mean, var, scale, shift, batch, momentum, self.eps)
        return (y if y.dim() == 2 else y.permute(0, 2, 3, 1)).reshape(x.shape)

    def check(self, x: Tensor) -> int:
        """Number of values per channel, refused if they have no statistics."""
        if x.dim() < 2 or x.shape[-1] != self.num_features:
            raise DataError(
                f"BatchNorm got {list(x.shape)}; it must be [T|1, ..., {self.num_features}]"
            )
        count = x.numel() // self.num_features
        if (self.training or self.running_mean is None) and count < 2:
            raise DataError(
                f"BatchNorm got {list(x.shape)} in training: one value per channel has no "
                "variance; use a larger batch, or drop the last partial one"
            )
        return count

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics by a batch of `count` samples with this (biased) variance."""
        if not (self.training and self.track_running_stats) or self.running_mean is None:
            return
        assert self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = self.momentum
        if step is None:
            step = 1.0 / float(self.num_batches_tracked)
        unbiased = var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), step)


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, float64, that a BatchNorm is in eval mode.

    Raises:
        ConfigError: it has no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError("a BatchNorm without running statistics is no fixed affine map")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale.detach(), shift.detach()


def norm_act(
    norm: BatchNorm | None, act: LIF | Activation | None, x: Tensor, T: int | None = None
) -> Tensor:
    """``act(norm(x), T)``, as one operation where that is faster; either may be missing.

    The fused kernel bypasses both modules, so any hook on them disables it, except forward hooks of
    `act` with an attribute ``observes_output`` set, which are called with the spikes alone. Spikes
    of a LIF on x [T|1, ..., C] are [T, ..., C]; T None is ``x.shape[0]``.
    """
    fused = fused_norm_act(norm, act, x, T)
    if fused is not None:
        return fused
    current = x if norm is None else norm(x, (T or x.shape[0]) // x.shape[0])
    return current if act is None else act(current, T)


def fused_norm_act(
    norm: Any, act: Any, x: Tensor, T: int | None, pooled: bool = False
) -> Tensor | None:
    """Spikes by the fused kernel; None if it does not apply.

    With `pooled`, `norm` is followed by a max-pool (3x3, stride 2, padding 1) of [T|1, B, H, W, C].
    """
    kind = type(act)
    lif = kind is LIF and not act.store_v_seq
    if type(norm) is not BatchNorm or not (lif or kind is Heaviside) or hooked(norm, act):
        return None
    params = act.params()
    if params is None:
        return None
    steps, time, v = count_steps(x, T, kind.__name__), x.shape[0], None
    repeats, dtype = steps // time, x.dtype
    if x.element_size() == 2 and x.device.type == "cpu" and dispatch.mode() != "torch":
        x = x.float()  # as the kernel computes
    if lif:
        v = act.start(x[..., ::2, ::2, :] if pooled else x)
    else:  # every step is the first of a LIF
        steps, x = 1, x.flatten(0, 1)[None] if pooled else x[None]
    count = norm.check(x)
    batch = norm.training or norm.running_mean is None
    mean, var = (None, None) if batch else (norm.running_mean, norm.running_var)
    result = dispatch.norm_lif(
        x, norm.weight, norm.bias, mean, var, norm.eps, v, steps, params, pooled
    )
    if result is None:
        return None
    spikes, last, mean, var = result
    if batch:
        norm.track(mean, var, count * repeats)
    if lif:
        act.keep(last)
    else:
        spikes = spikes[0].unflatten(0, (time, -1)) if pooled else spikes[0]
    spikes = spikes.to(dtype)
    for hook in act._forward_hooks.values():  # observers alone: `hooked` refuses all others
        hook(act, (), spikes)
    return spikes


def hooked(*modules: nn.Module) -> bool:
    """Whether a hook, of one of the modules or a global one, expects to see a module called.

    Forward hooks with an attribute ``observes_output`` set do not count.
    """
    if (
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    ):
        return True
    for module in modules:
        if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return True
        if "forward" in module.__dict__:  # as accelerate's hooks replace it
            return True
        for hook in module._forward_hooks.values():  # generators would double a forward's calls
            if not getattr(hook, "observes_output", False):
                return True
    return False


def observed(module: nn.Module) -> bool:
    """Whether a hook may see what the module puts out."""
    return bool(module._forward_hooks) or hooked(module)


def plain_lif(act: Any) -> NeuronConfig | None:
    """Constants of a LIF that nothing observes; None for every other activation."""
    return act.params() if type(act) is LIF and not act.store_v_seq and not observed(act) else None


def constants_from_rest(act: Any) -> Any:
    """Constants of a neuron that nothing observes, as kernels of bits take them, or None."""
    if type(act) is Heaviside and not observed(act):
        return dispatch.load("bits").Neurons.stateless(act.v_threshold)
    constants = plain_lif(act)
    return None if constants is None else dispatch.load("bits").Neurons.of(constants)


def takes_bits(x: Any) -> bool:
    """Whether kernels of bits apply to `x`, a tensor or bits: not with gradients or states."""
    if dispatch.in_graph() or torch.is_grad_enabled() or carried() is not None:
        return False
    if isinstance(x, Tensor):
        return dispatch.takes_numba(x, x.numel())
    return dispatch.mode() != "torch" and not dispatch.is_broken()


@dispatch.or_none
def fire_bits(act: Any, current: Tensor, T: int) -> Any:
    """Spikes ``[T, ..., C]`` as bits of a current that `takes_bits`; None of other neurons."""
    neurons = constants_from_rest(act)
    return None if neurons is None else dispatch.load("bits").fires(current, T, neurons)
