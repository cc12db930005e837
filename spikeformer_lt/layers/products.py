"""Linear maps of float32 rows on a CPU by the library that is fast there."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.layers.kernels.choice import is_plain
from spikeformer_lt.layers.norm import hooked

__all__ = ["linear_rows"]


def linear_rows(rows: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(rows)``, of ``[..., D]``.

    torch multiplies by MKL, which runs at half speed on processors of another maker than its own.
    There the map is written as a 1x1 convolution of the same memory, which oneDNN computes (forward
    and backward 1.3 to 1.9 times faster, measured on two AVX-512 cores of an AMD EPYC). Only the
    order of the sums differs. Hooks, graphs and other dtypes get the module itself.
    """
    if rows.dtype != torch.float32 or not _slow_mkl() or not is_plain(rows) or hooked(linear):
        return linear(rows)  # type: ignore[no-any-return]
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not rows.numel():
        return linear(rows)  # type: ignore[no-any-return]
    weight = linear.weight
    flat = rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(flat, weight.view(*weight.shape, 1, 1), linear.bias)
    return out.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], weight.shape[0])


@cache
def _slow_mkl() -> bool:
    """Whether torch multiplies by MKL on a processor that is not of MKL's maker."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        maker = platform.processor()
    return "GenuineIntel" not in maker and "AuthenticAMD" in maker
