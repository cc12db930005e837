"""What a model has: T, classes, constants of its neurons, the size of its input, time first."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, DataError, near, shown

# Steepness of each surrogate by default.
ALPHAS = {"sigmoid": 4.0, "atan": 2.0, "hardtanh": 1.0, "bireal": 1.0}
MOST = 100_000  # channels, classes, blocks, steps, pixels a side
_CALLER = threading.local()  # of a forward: whether it has checked the values itself
LARGEST = 1e6  # size of a pixel or count; normalised pixels are below 10, counts below 1e5


@dataclass(frozen=True)
class NeuronConfig:
    """Constants of a layer of neurons.

    Args:
        tau: membrane time constant in time steps, above 1.
        v_threshold: firing voltage, dimensionless.
        v_reset: voltage after a spike; None subtracts `v_threshold` instead (soft reset).
        decay_input: whether the input, too, is divided by `tau`.
        surrogate: derivative that stands in for that of the threshold: "sigmoid", "atan", or of
            stateless activations "hardtanh" and "bireal".
        alpha: its steepness; None means 4.0, 2.0, 1.0 and 1.0.
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
        rule = "a finite number"
        check(finite(self.tau) and self.tau > 1, "tau", self.tau, f"{rule} of steps above 1")
        check(finite(self.v_threshold), "v_threshold", self.v_threshold, rule)
        reset, alpha = self.v_reset, self.alpha
        check(reset is None or finite(reset), "v_reset", reset, rule)
        check_surrogate(self.surrogate, tuple(ALPHAS))
        check(alpha is None or (finite(alpha) and alpha > 0), "alpha", alpha, f"{rule} above 0")

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
        hint = near(name, allowed)
        raise ConfigError(f"surrogate={shown(name)} is not one of {list(allowed)}{hint}")


@runtime_checkable
class Stepwise(Protocol):
    """A network that runs in parts of a sequence: its neurons go on inside of `neuron.carry`."""

    T: int
    num_classes: int

    def time_first(self, x: Tensor) -> Tensor:
        """Check an input and put time first: ``[1, B, C, H, W]`` or ``[T, B, C, H, W]``."""

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of ``[T|1, B, C, H, W]``."""


@runtime_checkable
class SelectsTokens(Stepwise, Protocol):
    """A stepwise network whose tokens are selected over the whole sequence."""

    def stem_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, and current if the selection needs it, ``[T|1, B, N, D]`` of images."""

    def classify_tokens(self, tokens: Tensor, current: Tensor, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of the stem's outputs for `images`."""


class SpikingClassifier(nn.Module):
    """Base of the models: sizes, constants of the neurons, and the check of an input.

    Args:
        num_classes: classes K; 0 puts out the features in place of logits.
        T: time steps, which may be changed at any time. A static image is presented T times; event
            frames bring T themselves.
        in_channels: 3 for RGB, 1 for grey, 2 for events.
        image_size: side of the square input, or (H, W); other sizes are refused.
        compute_once: compute what is the same at every step of a static image once; the result is
            identical, only the time differs.
        tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset: of every LIF, as in
            :class:`NeuronConfig`.

    Raises:
        ConfigError: a size or constant that is not allowed.
    """

    head: Any  # a linear map, or with no classes the identity
    num_features: int  # that the head reads
    mean_over_time = False
    """Whether a forward gives the mean logits of the steps, ``[B, K]``, as timm's loops expect."""

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        compute_once: bool = True,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        surrogate: str = "sigmoid",
        alpha: float | None = None,
        detach_reset: bool = True,
    ) -> None:
        super().__init__()
        at_least_one(T=T, in_channels=in_channels)
        _check_classes(num_classes)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        sides = isinstance(size, list | tuple) and [s for s in size if whole(s)]
        rule = f"a side from 1 to {MOST:,} pixels, or (H, W)"
        check(bool(sides) and len(sides) == len(size) == 2, "image_size", image_size, rule)
        self.T, self.num_classes, self.compute_once = T, num_classes, compute_once
        self.in_channels, self.image_size = in_channels, (int(size[0]), int(size[1]))
        self.neuron = NeuronConfig(
            tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset
        )
        fires = max(0.0, self.neuron.v_rest)
        rule = "above 0 and above v_reset, else every neuron fires at every step"
        check(v_threshold > fires, "v_threshold", v_threshold, rule)

    def time_first(self, x: Tensor) -> Tensor:
        """Check an input and put time first: ``[1, B, C, H, W]`` or ``[T, B, C, H, W]``.

        In eval mode its values are checked, too, by :func:`check_values`.
        """
        if not self.training:
            check_values(x)
        return time_first(
            x,
            T=self.T,
            in_channels=self.in_channels,
            image_size=self.image_size,
            dtype=next(p.dtype for p in self.parameters() if p.is_floating_point()),
            compute_once=self.compute_once,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classify images or frames."""
        return self._batch_first(self.classify(self.time_first(x)))

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of ``[T|1, B, C, H, W]``."""
        raise NotImplementedError

    def _batch_first(self, values: Tensor) -> Tensor:
        return values.mean(0) if self.mean_over_time else values.transpose(0, 1)

    # What timm's scripts ask of a network, beside forward_features and forward_head.

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head in, with weights of deviation 0.02, or with 0 none.

        Raises:
            ConfigError: a wrong number, or another `global_pool` than "avg", the only one.
        """
        _check_classes(num_classes)
        check(global_pool in (None, "avg"), "global_pool", global_pool, "avg")
        like, self.num_classes = next(self.parameters()), num_classes
        self.make_head(self.num_features)
        if num_classes:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self.head.to(like.device, like.dtype)

    def make_head(self, num_features: int) -> None:
        """Add the head, a linear map of the features; the identity where there is no class."""
        self.num_features = num_features
        self.head = nn.Linear(num_features, self.num_classes) if self.num_classes else nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Names of weights that are not to decay, beside all of one axis: none."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of keeping their values."""
        parts: Any = self.modules()
        for part in parts:
            if hasattr(part, "recompute"):
                part.recompute = enable

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The input as timm describes it; mean and deviation only of a ticket that knows them."""
        known: Any = getattr(self, "preprocess", None)
        pixels = {} if known is None else {"mean": tuple(known.mean), "std": tuple(known.std)}
        size = {"input_size": (self.in_channels, *self.image_size), "fixed_input_size": True}
        names = {"classifier": "head", "pool_size": None, "crop_pct": 1.0}
        return {**size, **names, "num_classes": self.num_classes, **pixels}

    pretrained_cfg = default_cfg


def _check_classes(number: Any) -> None:
    if type(number) is not int or number != 0:
        at_least_one(num_classes=number)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`; the meta device knows none."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def safe_layout(maps: Tensor, layer: Any) -> Tensor:
    """Maps ``[N, C, H, W]`` for a layer, channels first where its gradients would corrupt memory.

    Those of a strided 1x1 convolution of fewer than 8 channels that lie last are written beyond
    their end by torch 2.13 (oneDNN) on processors that have AVX2 alone.
    """
    narrow = getattr(layer, "in_channels", 8) < 8
    strided = narrow and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    return maps.contiguous() if strided else maps


@cache
def slow_mkl() -> bool:
    """Whether torch multiplies by MKL on a processor that is not of MKL's maker."""
    known = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    cpu = Path("/proc/cpuinfo")
    other = cpu.exists() and "AuthenticAMD" in cpu.read_text("utf-8")
    return known and other and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def transformed(*tensors: Tensor | None) -> bool:
    """Whether torch.func transforms one of these, or the caller, or forward mode is on."""
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    for x in tensors:  # noqa: SIM110 - a generator costs more than the loop
        if x is not None and wrapped(x):
            return True
    return False


def backward_followed() -> bool:
    """Whether a backward pass is differentiated in turn, or takes several gradients at once."""
    batched = torch._C._dispatch_tls_is_dispatch_key_included("VmapMode")  # is_grads_batched
    return batched or torch.is_grad_enabled() or transformed()


@contextlib.contextmanager
def values_checked() -> Iterator[None]:
    """Spare the models that this thread calls inside a second look at the values of their input."""
    _CALLER.checked = True
    try:
        yield
    finally:
        _CALLER.checked = False


@contextlib.contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Give every module its training mode back after the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_values(x: Tensor) -> None:
    """Refuse numbers that no image has: spikes would hide them behind confident logits.

    Graphs, transforms and tensors without values pass unseen.

    Raises:
        DataError: names the first value that is not finite, or above 1e6 in size.
    """
    values = type(x) in (Tensor, nn.Parameter) and x.numel() > 0 and not x.is_meta
    followed = torch.jit.is_tracing() or torch.compiler.is_compiling() or transformed(x)
    followed = followed or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    if not values or followed or _get_current_dispatch_mode() is not None:
        return
    if getattr(_CALLER, "checked", False):
        return
    low, high = x.detach().aminmax()
    if not (float(low) >= -LARGEST and float(high) <= LARGEST):  # NaN is neither
        wrong = ~(x.detach().abs() <= LARGEST)
        place = wrong.nonzero()[0].tolist()
        raise DataError(
            f"input holds {float(x[tuple(place)])} at {place} of {list(x.shape)}; values must be "
            f"finite and at most {LARGEST:,.0f} in size: check the file and the normalisation"
        )


def finite(value: Any) -> bool:
    """Whether `value` is a real number, and below 1e30 in size."""
    real: bool = isinstance(value, Real) and not isinstance(value, bool)
    return real and bool(abs(value) < 1e30)


def listed(**values: Any) -> None:
    """Refuse, by a ConfigError with field and value, what is no list of up to 1,000 entries."""
    for field, value in values.items():
        fits = isinstance(value, list | tuple) and len(value) <= 1000
        check(fits, field, value, "a list of at most 1,000 entries")


def whole(value: object) -> bool:
    """Whether `value` is a whole number from 1 to 100,000, such as a count of channels."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


def at_least_one(**numbers: Any) -> None:
    """Refuse, by a ConfigError with field and value, what is no whole number from 1 on."""
    for field, value in numbers.items():
        if not whole(value):
            given = value if isinstance(value, str) and len(value) < 80 else shown(value)
            most = f", at most {MOST:,}" if isinstance(value, int) and value > 1 else ""
            raise ConfigError(f"{field}={given} is not allowed: a whole number, at least 1{most}")


def check_steps(x: Tensor, T: int) -> None:
    """Refuse frames ``[B, T, C, H, W]`` of another T, by a ConfigError."""
    if x.ndim == 5 and x.shape[1] != T:
        raise ConfigError(
            f"expected T={T} at dimension 1 of frames [B, T, C, H, W], "
            f"got {x.shape[1]} in {list(x.shape)}"
        )


def time_first(
    x: Tensor,
    *,
    T: int,
    in_channels: int,
    image_size: tuple[int, int],
    dtype: torch.dtype,
    compute_once: bool = True,
) -> Tensor:
    """Check images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` and put time first.

    Args:
        x: the input.
        T, in_channels, image_size: time steps of the model, its C and (H, W).
        dtype: of its weights; under autocast another one than float64 will do, too.
        compute_once: let ``[1, B, C, H, W]`` stand for T equal steps of static images.

    Raises:
        ConfigError: another dtype, T, channel count or size than the model's.
    """
    expected = f"[B, {in_channels}, {image_size[0]}, {image_size[1]}]"
    if not x.is_floating_point():
        raise ConfigError(f"input dtype {x.dtype} is not floating point; normalise images first")
    if x.dtype != dtype and not (autocasts(x) and x.dtype != torch.float64):
        raise ConfigError(f"input dtype {x.dtype} is not the model's {dtype}; convert one")
    if x.ndim not in (4, 5) or x.shape[-3:] != (in_channels, *image_size):
        raise ConfigError(
            f"input shape {list(x.shape)} is neither images {expected} nor frames "
            f"{expected.replace('[B,', f'[B, T={T},')}"
        )
    check_steps(x, T)
    if x.ndim == 5:
        return x.transpose(0, 1)
    images = x.unsqueeze(0)
    return images if compute_once else images.expand(T, -1, -1, -1, -1)
