"""Which path a tensor takes: the numba kernels or plain torch operations.

The environment variable SPIKEFORMER_KERNELS chooses: "auto" (default) takes the numba kernels for
plain float32 tensors on the CPU that are large enough to matter, "torch" never, "numba" for every
plain CPU tensor of float32 or float64, and then a kernel that fails is an error, not a warning.

CPU kernels: LIF, BatchNorm and LIF, pools, convolutions, attention, gradients of linear maps.

Torch does it wherever they do not apply.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.kernels.reference import LIFParams, lif_loop, spike

__all__ = [
    "KernelError",
    "LIFParams",
    "attention",
    "conv",
    "give_up",
    "is_broken",
    "is_forced",
    "is_plain",
    "lif",
    "linear_back",
    "mode",
    "norm_lif",
    "pool",
    "takes_conv",
    "takes_numba",
]

log = logging.getLogger(__name__)
_VARIABLE = "SPIKEFORMER_KERNELS"
_SMALL = 4096  # spikes; below, loading numba costs more than it saves

_broken = False


class KernelError(RuntimeError):
    """A kernel could not be compiled, loaded or started; its cause is attached."""


def mode() -> str:
    """What SPIKEFORMER_KERNELS asks for: auto, torch or numba."""
    asked = os.environ.get(_VARIABLE, "auto")
    if asked not in ("auto", "torch", "numba"):
        raise ConfigError(f"{_VARIABLE}={asked!r} is not allowed: auto, torch or numba")
    return asked


def is_forced() -> bool:
    """Whether the kernels run wherever they can, faster or not."""
    return mode() == "numba"


def is_plain(x: Tensor) -> bool:
    """Whether `x` is numbers in memory, and nothing traces, transforms or counts operations."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def takes_numba(x: Tensor, spikes: int) -> bool:
    """Whether a call on `x` that gives this many spikes goes to the numba kernels."""
    if torch.compiler.is_compiling():
        return False
    asked = mode()
    if asked == "torch" or x.numel() == 0 or not is_plain(x):
        return False
    if asked == "numba":
        return x.dtype in (torch.float32, torch.float64)
    return not _broken and x.dtype == torch.float32 and spikes >= _SMALL


def is_broken() -> bool:
    """Whether a kernel failed in this process, so that torch does everything."""
    return _broken


def give_up(error: KernelError) -> None:
    """Go on with torch, saying so once; with SPIKEFORMER_KERNELS=numba, stop."""
    global _broken
    cause = error.__cause__
    reason = f"{type(cause).__name__}: {cause}"
    if mode() == "numba":
        raise ConfigError(
            f"{_VARIABLE}=numba, but its kernels failed ({reason}); use auto or torch"
        ) from error
    if not _broken:
        log.warning("LIF neurons run on torch, slower: the numba kernels failed (%s)", reason)
    _broken = True


def _load(name: str) -> ModuleType:
    try:
        return import_module(f"spikeformer_lt.layers.kernels.{name}")
    except Exception as error:
        raise KernelError("numba cannot be loaded") from error


def attention(x: Tensor, heads: int, scale: float) -> Tensor | None:
    """``scale q k^T v`` of spikes side by side; None where torch shall do it.

    Args:
        x: q, k and v, [T, B, N, 3, D].
        heads: the D columns of each are so many heads.
        scale: factor of the sums.

    Returns:
        [T, B, N, D].
    """
    if not takes_numba(x, x.numel()):
        return None
    try:
        module = _load("attention")
        if not module.fits(x, heads):
            return None
        out: Tensor = module.AttentionFunction.apply(x.contiguous(), heads, scale)
        return out
    except KernelError as error:
        give_up(error)
        return None


def conv(rows: Tensor, weight: Tensor) -> Tensor | None:
    """Convolution (3x3, stride 1, padding 1) of maps [T, B, H, W, C]; None where torch shall do it.

    Args:
        rows: [T, B, H, W, C].
        weight: [C', C, 3, 3].

    Returns:
        [T, B, H, W, C'], to the last bits but three or four of a direct convolution.
    """
    if not takes_conv(rows, weight):
        return None
    try:
        out: Tensor = _load("winograd").WinogradFunction.apply(rows.contiguous(), weight)
        return out
    except KernelError as error:
        give_up(error)
        return None


def takes_conv(rows: Tensor, weight: Tensor) -> bool:
    """Whether :func:`conv` takes these, which it does where that is faster."""
    if not takes_numba(rows, rows.numel()) or not is_plain(weight):
        return False
    try:
        winograd = _load("winograd")
    except KernelError as error:
        give_up(error)
        return False
    fits = weight.dtype == rows.dtype and winograd.fits(rows, weight)
    return bool(fits and (is_forced() or winograd.pays(rows)))


def linear_back(
    x: Tensor, weight: Tensor, grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None] | None:
    """Gradients of x [N, D] and weight [D', D] of ``x @ weight.T``; None where torch shall do it.

    Args:
        x: the input.
        weight: the weight.
        grad: gradient of the output, [N, D'].
        wanted: whether the gradient of x, and that of the weight, is asked for.
    """
    if not takes_numba(grad, grad.numel()):
        return None
    try:
        dense = _load("matmul")
        if not dense.fits(x, weight):
            return None
        gx = dense.inputs_back(grad, weight) if wanted[0] else None
        return gx, dense.weights_back(grad, x) if wanted[1] else None
    except KernelError as error:
        give_up(error)
        return None


def pool(x: Tensor) -> Tensor | None:
    """Max-pool (3x3, stride 2, padding 1) of maps [T, B, H, W, C]; None where torch shall do it."""
    if not takes_numba(x, x.numel()):
        return None
    try:
        out: Tensor = _load("pool").PoolFunction.apply(x.contiguous())
        return out
    except KernelError as error:
        give_up(error)
        return None


def lif(x: Tensor, v: Tensor | None, T: int, params: LIFParams) -> tuple[Tensor, Tensor]:
    """Run `T` steps of LIF neurons by the fastest path that applies.

    Args:
        x: input current, [T, ...], or [1, ...] for the same current at every step.
        v: voltage before the first step, shape ``x.shape[1:]``, without gradient; None is rest.
        T: number of steps.
        params: constants of the neuron.

    Returns:
        Spikes [T, ...] in {0, 1}, and the voltage after the last step.
    """
    if takes_numba(x, x.numel() // x.shape[0] * T):
        start = None if v is None else v.contiguous()
        try:
            spikes, last = _load("autograd").LIFFunction.apply(x.contiguous(), start, T, params)
            return spikes, last
        except KernelError as error:
            give_up(error)
    start = x.new_full(x.shape[1:], params.v_rest) if v is None else v
    return lif_loop(x, start, T, params, lambda u: spike(u, params.surrogate, params.alpha))


def norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    known: tuple[Tensor, Tensor] | None,
    eps: float,
    v: Tensor | None,
    T: int,
    params: LIFParams,
    pooled: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Batch normalisation over the last axis and `T` steps of LIF neurons in one operation.

    Args:
        x: [T, ..., C], or [1, ..., C] for the same values at every step.
        weight: scale per channel, or None.
        bias: shift per channel, or None.
        known: mean and variance to normalise with; None takes, and differentiates, those of `x`.
        eps: added to the variance.
        v: voltage before the first step, of the neurons' shape, without gradient; None is rest.
        T: number of steps.
        params: constants of the neuron.
        pooled: the neurons get a max-pool (3x3, stride 2, padding 1) of the normalised maps
            [T|1, B, H, W, C].

    Returns:
        Spikes [T, ..., C], the last voltage, and the mean and biased variance used; None where the
        fused kernel does not apply.
    """
    if not takes_numba(x, x.numel() // x.shape[0] * T):
        return None
    others = [o for o in (weight, bias, v, *(known or ())) if o is not None]
    if any(o.dtype != x.dtype or not is_plain(o) for o in others):
        return None
    try:
        functions = _load("autograd")
        x = x.contiguous()
        mean, var = functions.moments(x) if known is None else known
        start = None if v is None else v.contiguous()
        operation = _load("pool").NormPoolLIFFunction if pooled else functions.NormLIFFunction
        spikes, last = operation.apply(
            x, weight, bias, mean, var, known is None, eps, start, T, params
        )
        return spikes, last, mean, var
    except KernelError as error:
        give_up(error)
        return None
