"""Which path a tensor takes: a numba kernel of this package, or plain torch operations.

The environment variable SPIKEFORMER_KERNELS chooses, once a process: "auto" (default) takes numba
for plain float32 tensors on the CPU that are large enough to matter, "torch" never, "numba" for
every plain CPU tensor of float32 or float64; a kernel that fails is then an error, not a warning.
SPIKEFORMER_SPARSE says likewise whether sparse weights are multiplied by lists of the kept ones,
SPIKEFORMER_EVENTS whether a compact network's linear maps add up the weights of inputs that fired.

SPIKEFORMER_TRITON chooses for CUDA tensors: "off" (default) leaves them to spikingjelly and torch,
"on" takes the Triton kernels wherever they apply, and the path of a table of measured times, which
`make gpu` writes, takes them where they were the faster ones on this device.

An operation here returns None if no kernel applies; the caller falls back to torch.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import NeuronConfig, transformed
from spikeformer_lt.layers.kernels import operators
from spikeformer_lt.layers.kernels.reference import lif_loop

log = logging.getLogger(__name__)
_VARIABLE = "SPIKEFORMER_KERNELS"
_SPARSE = "SPIKEFORMER_SPARSE"
_EVENTS = "SPIKEFORMER_EVENTS"
_SMALL = 4096  # spikes; below, loading numba costs more than it saves
_TYPES = (Tensor, torch.nn.Parameter)
_TRITON = "SPIKEFORMER_TRITON"

_mode = ""  # not read yet
_broken = False
_triton = os.environ.get(_TRITON, "off")

P = ParamSpec("P")
R = TypeVar("R")
Dense = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # a @ b.T + bias


class KernelError(RuntimeError):
    """A kernel could not be compiled, loaded or started; its cause is attached."""


class TritonError(KernelError):
    """The same of a Triton kernel."""


class ReplayError(RuntimeError):
    """A tape does not hold: a value chose what was recorded, or this input takes another way."""


OPEN_TAPES: list[Tape] = []
"""Those of all threads: a launch asks for its own where there is one."""


class Tape(TorchDispatchMode):
    """Records the kernels and operations of torch of a forward in `steps`, which run them again.

    They read and write the memory of the recording. What numpy computes outside of `jit.run` and
    `jit.repeat` is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        OPEN_TAPES.append(self)
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *fault: object) -> None:
        OPEN_TAPES.remove(self)
        super().__exit__(*fault)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and keep it unless it only looks at memory in another way.

        Raises:
            ReplayError: Python gets a value or a size that the input may change.
        """
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            raise ReplayError(f"{func} gives Python a value of the input")
        call = partial(func, *args, **(kwargs or {}))
        result = call()
        if func._schema.is_mutable:
            self.steps.append(call)
        elif "empty" not in func._schema.name and not memory(result) <= memory((args, kwargs)):
            self.steps.append(partial(_renew, result, call))
        return result


def memory(values: Any) -> set[int]:
    """Where the memory of the tensors among the values begins."""
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
    return {x.untyped_storage().data_ptr() for x in tensors if x.layout == torch.strided}


def _renew(old: Any, call: Callable[[], Any]) -> None:
    for x, new in zip(tree_leaves(old), tree_leaves(call()), strict=True):
        if isinstance(x, Tensor):
            x.copy_(new)


_MODES = (type(None), Tape)


def tape() -> Tape | None:
    """The tape that records this thread now."""
    found = _get_current_dispatch_mode()
    return found if isinstance(found, Tape) else None


def set_mode(asked: str | None = None) -> str:
    """Choose "auto", "torch" or "numba" for this process; None reads the environment again.

    Raises:
        ConfigError: another word.
    """
    global _mode
    asked = os.environ.get(_VARIABLE, "auto") if asked is None else asked
    if asked not in ("auto", "torch", "numba"):
        raise ConfigError(f"{_VARIABLE}={asked!r} is not allowed: auto, torch or numba")
    if _triton not in ("off", "on") and not torch.compiler.is_compiling():
        _read(_triton)
    _mode = asked
    return asked


def mode() -> str:
    """The choice: auto, torch or numba."""
    return _mode or set_mode()


def read_choice(variable: str = _SPARSE) -> str:
    """What a variable of the environment chooses: auto, always, never; else a ConfigError."""
    return check_choice(variable, os.environ.get(variable, "auto"))


def check_choice(name: str, asked: str) -> str:
    """A choice of this name; raises ConfigError unless it is auto, always or never."""
    if asked not in ("auto", "always", "never"):
        raise ConfigError(f"{name}={asked!r} is not allowed: auto, always or never")
    return asked


@cache  # each product of a training step asks
def sparse_mode() -> str:
    """Whether sparse weights are multiplied by lists: auto, always or never."""
    return read_choice(_SPARSE)


@cache
def event_mode() -> str:
    """Whether inputs are listed by their events: auto, always or never."""
    return read_choice(_EVENTS)


def is_forced() -> bool:
    """Whether the kernels run wherever they can, faster or not."""
    return mode() == "numba"


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether all are numbers in memory, and nothing traces, transforms or counts operations."""
    if torch.jit.is_tracing() or type(_get_current_dispatch_mode()) not in _MODES:
        return False
    # As `inputs.transformed`, without a call for each: every operation asks this.
    if not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    ):
        return False
    for x in tensors:
        if x is not None and not (
            type(x) in _TYPES
            and x.is_cpu
            and x.layout == torch.strided
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        ):
            return False
    return True


def in_graph() -> bool:
    """Whether torch traces or compiles: only its own operations are allowed in a graph."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def takes_numba(x: Tensor, spikes: int, *others: Tensor | None) -> bool:
    """Whether a call on `x`, which gives this many spikes, runs a numba kernel.

    The `others` are tensors of the same call; they must be plain and of the dtype of `x`.
    """
    if torch.compiler.is_compiling():
        return False
    asked, dtype = _mode or set_mode(), x.dtype
    if asked == "auto":
        fits = not _broken and dtype == torch.float32 and spikes >= _SMALL
    else:
        fits = asked == "numba" and dtype in (torch.float32, torch.float64)
    if not fits or x.numel() == 0 or not is_plain(x, *others):
        return False
    for other in others:  # noqa: SIM110 - a generator costs more than the loop
        if other is not None and other.dtype != dtype:
            return False
    return True


def compiles(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a graph that torch.compile makes takes the kernel's operator for a call on `x`.

    A program of torch.export takes plain operations, so that it needs no package of ours. The
    sizes of a graph may be symbols; what is small is not asked.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    allowed = {"auto": (torch.float32,), "numba": (torch.float32, torch.float64)}
    if _broken or x.device.type != "cpu" or x.dtype not in allowed.get(mode(), ()):
        return False
    return all(other is None or other.dtype == x.dtype for other in others)


def takes_triton(operation: str, x: Tensor, *others: Tensor | None) -> bool:
    """Whether an operation on `x`, with `others` on the same device, runs a Triton kernel."""
    if _triton == "off" or not (x.is_cuda or _interprets()) or x.numel() == 0:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed(x):
        return False
    if _get_current_dispatch_mode() is not None or mode() == "torch":
        return False
    for tensor in (x, *others):
        if tensor is not None and not (
            type(tensor) in _TYPES
            and tensor.device == x.device
            and tensor.is_floating_point()
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        ):
            return False
    name = f"{operation} {str(x.dtype).removeprefix('torch.')}"
    return _triton == "on" or x.numel() >= _faster(_triton, x.device).get(name, float("inf"))


def triton_choice() -> str:
    """The choice for CUDA tensors: off, on or the path of a table."""
    return _triton


def _interprets() -> bool:
    """Whether Triton runs on the CPU, in its interpreter: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _read(path: str) -> tuple[str, dict[str, float]]:
    """The device of a table of times, and from how many elements on each operation was faster."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        return str(found["device"]), {k: float(v) for k, v in found["faster"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{_TRITON}={path!r} is not allowed: off, on, or a table of times, written by "
            f"benchmarks/triton_clock.py ({reason})"
        ) from None


@cache
def _faster(path: str, device: torch.device) -> dict[str, float]:
    """From how many elements on each operation was measured faster; nothing of another device."""
    made_on, table = _read(path)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if made_on != name:
        log.warning("%s was measured on %s, not on %s: it is not used", path, made_on, name)
        return {}
    return table


def is_broken() -> bool:
    """Whether a kernel failed in this process, so that torch does everything."""
    return _broken


def give_up(error: KernelError) -> None:
    """Go on with torch, saying so once; with SPIKEFORMER_KERNELS=numba, stop."""
    global _broken, _triton
    cause = error.__cause__
    reason = f"{type(cause).__name__}: {cause}"
    if isinstance(error, TritonError):
        if _triton == "on":
            raise ConfigError(f"{_TRITON}=on, but {error} ({reason}); use off") from error
        log.warning("Triton's kernels are off: %s (%s)", error, reason)
        _triton = "off"
        return
    if mode() == "numba":
        raise ConfigError(
            f"{_VARIABLE}=numba, but its kernels failed ({reason}); use auto or torch"
        ) from error
    if not _broken:
        log.warning("all runs on torch, slower: the numba kernels failed (%s)", reason)
    _broken = True


@cache
def load(name: str) -> ModuleType:
    """A module of kernels; raises `KernelError`."""
    try:
        return import_module(f"spikeformer_lt.layers.kernels.{name}")
    except Exception as error:
        if name == "triton_kernels":
            raise TritonError("Triton cannot be loaded") from error
        raise KernelError("numba cannot be loaded") from error


def or_none(operation: Callable[P, R]) -> Callable[P, R | None]:
    """Return None, and give the kernels up, if one fails."""

    @wraps(operation)
    def guarded(*args: P.args, **keywords: P.kwargs) -> R | None:
        try:
            return operation(*args, **keywords)
        except KernelError as error:
            give_up(error)
            return None

    return guarded


@or_none
def attention(x: Tensor, heads: int, scale: float, spikes: bool = True) -> Tensor | None:
    """``scale q k^T v``, [T, B, N, D], of q, k and v [T, B, N, 3, D], which are `spikes` or not."""
    if spikes and _triton != "off" and takes_triton("attention", x) and x.shape[-1] // heads <= 64:
        found: Tensor = load("triton_kernels").attention(x, heads, scale)
        return found
    if not takes_numba(x, x.numel()):
        fits = compiles(x) and x.shape[-1] % (heads * 16) == 0  # whole vectors of any processor
        return operators.attention(x, heads, scale) if fits else None
    module = load("matmul")
    if not module.heads_fit(x, heads):
        return None
    out: Tensor = module.AttentionFunction.apply(x.contiguous(), heads, scale)
    return out


@or_none
def conv(rows: Tensor, weight: Tensor) -> Tensor | None:
    """Convolution (3x3, stride 1, padding 1) of maps [T, B, H, W, C] by weights [C', C, 3, 3].

    All but the last three or four bits are those of a direct convolution.
    """
    if not takes_conv(rows, weight):
        fits = compiles(rows, weight)
        return operators.conv(rows, weight, False) if fits else None
    out: Tensor = load("winograd").WinogradFunction.apply(rows.contiguous(), weight)
    return out


@or_none
def takes_conv(rows: Tensor, weight: Tensor) -> bool:
    """Whether :func:`conv` applies to these, and is faster than a direct convolution."""
    if not takes_numba(rows, rows.numel(), weight):
        return False
    fits, pays = load("winograd").suits(rows.shape, weight.shape, rows.element_size())
    return bool(fits and (pays or _mode == "numba"))


class Kept:
    """The entries of a weight that a mask (bool, on the CPU) keeps; lists are made of them once.

    With `whole`, removed ones get gradients, too.
    """

    def __init__(self, mask: Tensor, whole: bool = False) -> None:
        self.mask, self.whole = mask, whole
        self.lists: dict[Any, Any] = {}  # by outputs; with True, or a tile's places, by inputs
        self.chosen: Sequence[bool] = (False, False, False)  # of the last step's products
        self.parts: Sequence[Kept] = ()  # the others that :meth:`beside` put behind a first one
        self.density = int(np.count_nonzero(mask.numpy())) / max(1, mask.numel())
        self._joined: tuple[tuple[Kept, ...], Kept] | None = None

    def beside(self, others: Sequence[Kept]) -> Kept:
        """Entries of this weight and then of `others`, output by output."""
        if self._joined is None or self._joined[0] != tuple(others):
            made = Kept(torch.cat([self.mask, *(other.mask for other in others)]))
            made.parts = others
            self._joined = tuple(others), made
        return self._joined[1]


@dataclass(frozen=True)
class Costs:
    """Times for 256 columns on one thread, of no unit: only their ratios are read.

    ``lists`` has them for each weight kept, output and input: "fused" has neurons behind, and finds
    bits. ``digit`` is each digit of whole numbers above the second, for a weight kept: few are set.
    """

    dense: float  # of a dense product or direct convolution, for each weight
    winograd: float  # of a 3x3 convolution
    digit: float
    lists: Mapping[str, tuple[float, float, float]]


_COSTS = {
    "avx512": Costs(3.71, 1.59, 1.4, {  # ns of an Emerald Rapids: masks and sums share a port
        "fused": (6.2, 29.7, 24.9), "forward": (7.5, 262.0, 60.6),
        "weights": (9.1, 134.0, 17.4), "numbers": (11.2, 84.0, 264.0), "maps": (11.3, 0.0, 738.0),
    }),
    "zen4": Costs(4.94, 1.68, 1.1, {  # ns of a Zen 4 (benchmarks/costs.py), which halves vectors
        "fused": (4.7, 34.0, 24.0), "forward": (5.0, 127.0, 107.0),
        "weights": (7.4, 215.0, 32.0), "numbers": (10.4, 97.0, 97.0),
        "maps": (11.0, 60.0, 60.0),  # a Zen 5's share of "numbers"
    }),
    "zen5": Costs(2.14, 0.8, 0.7, {  # ns of a Zen 5; a digit's share is a Zen 4's
        "fused": (3.0, 18.8, 9.1), "forward": (3.4, 50.0, 38.0),
        "weights": (5.6, 54.0, 8.0), "numbers": (5.7, 54.0, 60.0), "maps": (6.2, 30.0, 30.0),
    }),
    "avx2": Costs(6.6, 2.6, 3.0, {  # ns of a Zen 3
        "fused": (11.5, 80.0, 0.0), "forward": (12.0, 130.0, 130.0),
        "weights": (26.0, 140.0, 140.0), "numbers": (19.5, 145.0, 145.0),
        "maps": (21.0, 82.0, 82.0),  # a Zen 5's share of "numbers"
    }),
}  # fmt: skip
WORTH = 1.15  # a gain that is taken: estimates err
BYTES_GAIN = {2: 2.5, 4: 1.6}  # over linear maps, and over Winograd's convolutions, of floats
EVENTS_GAIN = 2.5  # times as fast as a dense product, where one input in six fires


def list_gain(weight: Sequence[int], density: float, digits: int, part: str) -> float:
    """Estimated time of a dense product over that of lists, for weights of a shape.

    `digits` are those of the inputs, whole numbers; `part` is a key of `Costs.lists`. 0 on a
    processor that was not measured.
    """
    costs = _COSTS.get(load("simd").PROCESSOR)
    if costs is None:
        return 0.0
    entry, output, line = costs.lists[part]
    entry = entry * min(digits, 2) + costs.digit * max(0, digits - 2)
    size, fast = math.prod(weight), tuple(weight[2:]) == (3, 3)
    lists = size * density * entry + weight[0] * output + weight[1] * line
    return size * (costs.winograd if fast else costs.dense) / lists


@contextmanager
def kept_weights(kept: Mapping[Tensor, Kept]) -> Iterator[None]:
    """Within, weights are 0 where they are not kept, and need no gradient there."""
    before = [(weight, getattr(weight, "kept", None)) for weight in kept]
    try:
        for weight, own in kept.items():
            weight.kept = own  # type: ignore[attr-defined]
        yield
    finally:
        for weight, outer in before:
            weight.kept = outer  # type: ignore[attr-defined]
            if outer is None:
                del weight.kept  # type: ignore[attr-defined]


@or_none
def sparse(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Kept,
    dense: Dense,
) -> Tensor | None:
    """``dense(x, weight, bias)``, or a 3x3 convolution, by lists of the weights that are kept.

    Removed ones get no gradient. None as well where the dense products are faster.
    """
    if sparse_mode() == "never" or not takes_numba(x, x.numel(), weight, bias):
        return None
    out: Tensor | None = load("sparse").product(x.contiguous(), weight, bias, kept, dense)
    return out


@or_none
def lists_events(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x @ weight.T`` of whole numbers x [..., in] is the faster by their events."""
    asked = event_mode()
    if asked == "never" or not takes_numba(x, x.numel(), weight):
        return False
    return asked == "always" or is_forced() or bool(load("events").suits(x, len(weight)))


@or_none
def linear_back(
    x: Tensor, weight: Tensor, grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None] | None:
    """Gradients of x [N, D] and weight [D', D] of ``x @ weight.T`` from that of its output.

    `wanted` says whether the first and the second are asked for.
    """
    if not takes_numba(grad, grad.numel()):
        return None
    matmul = load("matmul")
    if not matmul.fits(x, weight):
        return None
    gx = matmul.inputs_back(grad, weight) if wanted[0] else None
    return gx, matmul.weights_back(grad, x) if wanted[1] else None


@or_none
def pool(x: Tensor) -> Tensor | None:
    """Max-pool (3x3, stride 2, padding 1) of maps [T, B, H, W, C]."""
    if not takes_numba(x, x.numel()):
        return operators.pool(x)[0] if compiles(x) else None
    out: Tensor = load("lif").PoolFunction.apply(x.contiguous())
    return out


def lif(x: Tensor, v: Tensor | None, T: int, neuron: NeuronConfig) -> tuple[Tensor, Tensor]:
    """Spikes [T, ...] and last voltage of LIF neurons on the current x [T|1, ...].

    They start from `v`, which takes no gradient; None is rest.
    """
    triton = _triton != "off" and takes_triton("lif", x, v)
    if triton and (found := _lif_triton(x, v, T, neuron)) is not None:
        return found
    if takes_numba(x, x.numel() // x.shape[0] * T, v):
        x, v = x.contiguous(), None if v is None else v.contiguous()
        try:
            if not torch.is_grad_enabled():
                return load("lif").Work(x, v, T, neuron).forward()  # type: ignore[no-any-return]
            norm = None, None, None, None, False, 0.0
            spikes, last = load("lif").LIFFunction.apply(x, *norm, v, T, neuron, False)
            return spikes, last
        except KernelError as error:
            give_up(error)
    if compiles(x, v):
        spikes, last = operators.lif(x, v, T, operators.written(neuron))
        return spikes, last
    return lif_loop(x, v, T, neuron)


@or_none
def _lif_triton(x: Tensor, v: Tensor | None, T: int, neuron: NeuronConfig) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = load("triton_kernels").lif(x, v, T, neuron)
    return found


@or_none
def norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    v: Tensor | None,
    T: int,
    neuron: NeuronConfig,
    pooled: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """As :func:`lif` on x [T|1, ..., C] behind its batch normalisation, in one operation.

    It normalises with `mean` and `var`, or with those of `x`, through which it differentiates, and
    returns them, too, the variance biased. With `pooled` the neurons get a max-pool (3x3, stride 2,
    padding 1) of the maps [T|1, B, H, W, C].
    """
    if not pooled and _triton != "off" and takes_triton("norm_lif", x, weight, bias, v, mean, var):
        norm = weight, bias, mean, var, eps
        found: tuple[Tensor, Tensor, Tensor, Tensor]
        found = load("triton_kernels").norm_lif(x, *norm, v, T, neuron)
        return found
    if not takes_numba(x, x.numel() // x.shape[0] * T, weight, bias, v, mean, var):
        if pooled or not compiles(x, weight, bias, v, mean, var):
            return None
        of_x = mean is None or var is None
        mean, var = operators.moments(x.detach()) if of_x else (mean, var)
        given = (x, weight, bias, mean, var, of_x, eps, v, T, operators.written(neuron))
        return *operators.norm_lif(*given), mean, var
    kernels, x, batch = load("lif"), x.contiguous(), mean is None
    v = None if v is None else v.contiguous()
    if mean is None or var is None:
        mean, var = kernels.moments(x)
    if not pooled and not torch.is_grad_enabled():
        rows, _ = kernels.norm_rows(weight, bias, mean, var, eps)
        return *kernels.Work(x, v, T, neuron, rows).forward(), mean, var
    own = weight, bias, mean, var, batch, eps
    spikes, last = kernels.LIFFunction.apply(x, *own, v, T, neuron, pooled)
    return spikes, last, mean, var
