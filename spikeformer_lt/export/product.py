"""Linear maps of the compact network, by oneDNN in floats or in bytes, else as torch does them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Product", "has_byte_products", "in_graph"]


class Product(nn.Module):
    """``x @ weight.T + bias``, of float32 on a CPU by oneDNN, of anything else as torch does it.

    torch asks MKL, which on processors of another maker than its own was measured at half of
    oneDNN's speed (384 to 1536 columns, 176 to 5632 rows, two AVX-512 cores: 1.4 to 3.3x). The
    weight is kept in oneDNN's own order as well, that for the last number of rows, because putting
    it there anew takes 5 to 50 % of the time of 176 rows (measured); the result is the same.

    Binary weights times whole numbers are summed in int32, which is exact, where that is faster
    (measured on AVX-512 VNNI, conversion included: 1.9 to 3.2 times from 128 columns on).

    Args:
        weight, bias: ``[out, in]`` and ``[out]``.
        binary: signs ``[out, in]`` int8 and gain ``[out]`` with ``weight = gain * signs``, where
            all inputs are whole numbers from 0 to 255.

    Shape: ``[..., in]`` -> ``[..., out]``.
    """

    weight: Tensor
    bias: Tensor
    signs: Tensor
    gain: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, binary: tuple[Tensor, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.as_bytes = binary is not None
        if binary is not None:
            self.register_buffer("signs", binary[0])
            self.register_buffer("gain", binary[1])
        self._ordered: dict[Any, tuple[Any, Tensor]] = {}
        self._panels: tuple[Any, Tensor | None] | None = None

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """All outputs, or the first ones."""
        weight, bias = self.weight, self.bias
        if self.takes_bytes(x):
            return self._integer(x, len(bias) if outputs is None else outputs)
        if outputs is not None:
            weight, bias = weight[:outputs], bias[:outputs]
        if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and _has_onednn():
            rows = x.numel() // x.shape[-1]
            if rows:
                ordered = self._in_order(weight, outputs, rows)
                out: Tensor = torch.ops.mkldnn._linear_pointwise(
                    x.contiguous(), ordered, bias, "none", [], ""
                )
                return out
        return F.linear(x, weight, bias)

    def select(self, keep: Tensor, dim: int) -> None:
        """Keep these outputs (dim 0) or inputs (dim 1) only."""
        places = keep.nonzero().flatten()
        self.weight = self.weight.index_select(dim, places.to(self.weight.device))
        if self.as_bytes:
            self.signs = self.signs.index_select(dim, places.to(self.signs.device))
        if dim == 0:
            self.bias = self.bias[keep]
            if self.as_bytes:
                self.gain = self.gain[keep]
        self._ordered, self._panels = {}, None

    def takes_bytes(self, x: Tensor) -> bool:
        """Whether this input is multiplied in bytes."""
        usable = self.as_bytes and x.dtype == torch.float32 and x.device.type == "cpu"
        large = x.shape[-1] >= 128 and x.numel() > 0
        return usable and large and not in_graph() and has_byte_products()

    def panels(self) -> Tensor | None:
        """The weight in the order of the kernel that fires as well; None if it has none."""
        weight = self.weight
        key = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._panels is None or self._panels[0] != key:
            from spikeformer_lt.layers.kernels.fused import as_panels

            self._panels = key, as_panels(weight)
        return self._panels[1]

    def _integer(self, x: Tensor, outputs: int) -> Tensor:
        known = self._ordered.get(("bytes", outputs))
        if known is None:
            gain = self.gain[:outputs].contiguous()
            signs = self.signs[:outputs].contiguous()
            known = gain, torch.ops.onednn.qlinear_prepack(signs, None)
            self._ordered["bytes", outputs] = known
        gain, packed = known
        zero = torch.zeros(outputs, dtype=torch.int64)
        flat = x.reshape(-1, x.shape[-1]).to(torch.uint8)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            flat, 1.0, 0, packed, gain, zero, self.bias[:outputs],
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out.view(*x.shape[:-1], outputs)

    def _in_order(self, weight: Tensor, outputs: int | None, rows: int) -> Tensor:
        version = 0 if weight.is_inference() else weight._version
        key = (rows, weight.data_ptr(), version)
        known = self._ordered.get(outputs)
        if known is None or known[0] != key:
            made = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
            known = self._ordered[outputs] = key, made
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's own memory cannot be copied, and what is made of the weight need not be
        return {**self.__dict__, "_ordered": {}, "_panels": None}


def _has_onednn() -> bool:
    return not in_graph() and torch.backends.mkldnn.is_available()


def in_graph() -> bool:
    """Whether operations are traced or compiled: oneDNN's own have no place in a graph."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def has_byte_products() -> bool:
    """Whether this processor multiplies bytes, and torch offers it."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    vnni = known.get("avx512_vnni") or getattr(torch.cpu, "_is_vnni_supported", bool)()
    return bool(vnni) and all(
        hasattr(torch.ops.onednn, name) for name in ("qconv2d_pointwise", "qlinear_pointwise")
    )
