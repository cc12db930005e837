"""Linear maps of float32 rows on a CPU by the library that is fast there."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.layers import kernels
from spikeformer_lt.layers.kernels.choice import is_plain, mode
from spikeformer_lt.layers.norm import hooked

__all__ = ["applies", "linear_rows", "product_rows"]


def linear_rows(rows: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(rows)``, of ``[..., D]``.

    torch multiplies by MKL, which runs at half speed on processors of another maker than its own.
    There the map and its gradients are products of oneDNN (measured on AVX-512 cores of an AMD
    EPYC: 1.1 to 2.2 times faster). Only the order of the sums differs. Hooks, graphs and other
    dtypes get the module itself.
    """
    if not applies(rows, linear):
        return linear(rows)  # type: ignore[no-any-return]
    return product_rows(rows, linear.weight, linear.bias)


def applies(rows: Tensor, linear: nn.Linear) -> bool:
    """Whether the map of these rows is oneDNN's."""
    return (
        rows.dtype == linear.weight.dtype == torch.float32
        and bool(rows.numel())
        and mode() != "torch"
        and _slow_mkl()
        and type(linear) is nn.Linear
        and is_plain(rows)
        and is_plain(linear.weight)
        and not hooked(linear)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def product_rows(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``rows @ weight.T + bias`` by oneDNN, of plain float32 ``[..., D]`` and ``[D', D]``."""
    flat = rows.reshape(-1, rows.shape[-1])
    out: Tensor = _Product.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
    return out.view(*rows.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated in turn
            gx = grad @ weight if for_x else None
            gw = grad.t() @ x if for_weight else None
        else:
            grad = grad.contiguous()
            found = kernels.linear_back(x, weight, grad, (for_x, for_weight))
            if found is None:
                gx = _multiply(grad, weight.t()) if for_x else None
                gw = _multiply(grad.t(), x.t()) if for_weight else None
            else:
                gx, gw = found
        return gx, gw, grad.sum(0) if for_bias else None


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias``."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return out


@cache
def _slow_mkl() -> bool:
    """Whether torch multiplies by MKL on a processor that is not of MKL's maker."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        maker = platform.processor()
    return "GenuineIntel" not in maker and "AuthenticAMD" in maker
