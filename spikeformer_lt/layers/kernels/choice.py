"""Which path a tensor takes: the numba kernels or plain torch operations.

The environment variable SPIKEFORMER_KERNELS chooses: "auto" (default) takes the numba kernels for
plain float32 tensors on the CPU that are large enough to matter, "torch" never, "numba" for every
plain CPU tensor of float32 or float64, and then a kernel that fails is an error, not a warning.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from spikeformer_lt.errors import ConfigError

_LOG = logging.getLogger(__name__)
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
        _LOG.warning("LIF neurons run on torch, slower: the numba kernels failed (%s)", reason)
    _broken = True
