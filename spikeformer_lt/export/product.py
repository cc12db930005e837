"""Linear maps of the compact network, by oneDNN in floats or in bytes, else as torch does them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.export.kept import Kept
from spikeformer_lt.layers.kernels.choice import is_plain, mode

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
        self._kept = Kept()

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """All outputs, or the first ones."""
        weight, bias = self.weight, self.bias
        if self.takes_bytes(x):
            return self._integer(x, len(bias) if outputs is None else outputs)
        if outputs is not None:
            weight, bias = weight[:outputs], bias[:outputs]
        if _has_onednn() and x.dtype == weight.dtype == torch.float32 and is_plain(x):
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
        self._kept.clear()

    def takes_bytes(self, x: Tensor) -> bool:
        """Whether this input is multiplied in bytes."""
        usable = self.as_bytes and x.dtype == torch.float32 and has_byte_products()
        large = x.shape[-1] >= 128 and x.numel() > 0
        return usable and large and mode() != "torch" and not in_graph() and is_plain(x)

    def panels(self) -> Tensor | None:
        """The weight in the order of the kernel that fires as well; None if it has none."""
        from spikeformer_lt.layers.kernels.fused import as_panels

        weight = self.weight
        made: Tensor | None = self._kept.get("panels", (weight,), lambda: as_panels(weight))
        return made

    def _integer(self, x: Tensor, outputs: int) -> Tensor:
        def pack() -> tuple[Tensor, Tensor]:
            signs = self.signs[:outputs].contiguous()
            return self.gain[:outputs].contiguous(), torch.ops.onednn.qlinear_prepack(signs, None)

        name = "bytes" if outputs == len(self.gain) else "some bytes"
        gain, packed = self._kept.get(name, (self.signs, self.gain), pack, outputs)
        zero = torch.zeros(outputs, dtype=torch.int64)
        flat = x.reshape(-1, x.shape[-1]).to(torch.uint8)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            flat, 1.0, 0, packed, gain, zero, self.bias[:outputs],
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out.view(*x.shape[:-1], outputs)

    def _in_order(self, weight: Tensor, outputs: int | None, rows: int) -> Tensor:
        def order() -> Tensor:
            made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
            return made

        name = "whole" if outputs is None else "part"
        found: Tensor = self._kept.get(name, (self.weight,), order, (outputs, rows))
        return found

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._kept.clear()


def _has_onednn() -> bool:
    return not in_graph() and mode() != "torch" and torch.backends.mkldnn.is_available()


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
