"""BatchNorm folded into the synapses before it, in float64, and binary weights kept as bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.export.forms import binary_gains
from spikeformer_lt.layers.norm import BatchNorm

__all__ = ["FoldedConv", "Product", "affine", "can_fold", "fold_linear"]


def can_fold(norm: nn.Module) -> bool:
    """Whether a normalisation is a fixed affine map in eval mode."""
    return isinstance(norm, BatchNorm) and norm.running_mean is not None


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel that a BatchNorm is in eval mode, both float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale.detach(), shift.detach()


def fold_linear(linear: nn.Linear, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a linear map with its BatchNorm in them."""
    scale, shift = affine(norm)
    weight = linear.weight.detach().double() * scale[:, None]
    if linear.bias is not None:
        shift = shift + scale * linear.bias.detach().double()
    return weight.to(linear.weight.dtype), shift.to(linear.weight.dtype)


class Product(nn.Module):
    """``x @ weight.T + bias``, of float32 on a CPU by oneDNN, of anything else as torch does it.

    torch asks MKL, which on processors of another maker than its own was measured at half of
    oneDNN's speed (384 to 1536 columns, 176 to 5632 rows, two AVX-512 cores: 1.4 to 3.3x). The
    weight is kept in oneDNN's own order as well, that for the last number of rows, because putting
    it there anew takes 5 to 50 % of the time of 176 rows (measured); the result is the same.

    Shape: ``[..., in]`` -> ``[..., out]``.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self._ordered: dict[int | None, tuple[Any, Tensor]] = {}

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """All outputs, or the first ones."""
        weight, bias = self.weight, self.bias
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

    def _in_order(self, weight: Tensor, outputs: int | None, rows: int) -> Tensor:
        version = 0 if weight.is_inference() else weight._version
        key = (rows, weight.data_ptr(), version)
        known = self._ordered.get(outputs)
        if known is None or known[0] != key:
            made = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
            known = self._ordered[outputs] = key, made
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ordered": {}}  # oneDNN's own memory cannot be copied


def _has_onednn() -> bool:
    return not _in_graph() and torch.backends.mkldnn.is_available()


def _in_graph() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class FoldedConv(nn.Module):
    """A convolution with its BatchNorm, and where it pays with its weights as bytes.

    Binary weights times spikes are summed in int32, which is exact, and scaled once by gain times
    BatchNorm scale. That path is for float32 on CPUs with byte dot products (oneDNN); everywhere
    else the folded weights run as they are.

    Args:
        conv: 3x3 or any other plain convolution.
        norm: the BatchNorm after it.
        spikes_in: the input is made of whole numbers from 0 to 255.

    Shape: ``[N, C, H, W]`` -> ``[N, C', H', W']``.
    """

    weight: Tensor
    bias: Tensor
    signs: Tensor
    gain: Tensor

    def __init__(self, conv: nn.Conv2d, norm: Any, spikes_in: bool = False) -> None:
        super().__init__()
        scale, shift = affine(norm)
        plain = conv.weight.detach()
        dtype = plain.dtype
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups
        if conv.bias is not None:
            shift = shift + scale * conv.bias.detach().double()
        folded = (plain.double() * scale.view(-1, 1, 1, 1)).to(dtype)
        self.register_buffer("weight", folded.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", shift.to(dtype))
        gains = binary_gains(plain, plain != 0) if dtype == torch.float32 else None
        usable = spikes_in and isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"
        self.as_bytes = usable and gains is not None
        if self.as_bytes:
            assert gains is not None
            self.register_buffer("signs", plain.sign().to(torch.int8))
            self.register_buffer("gain", (gains.double() * scale).float())
        self._packed: Tensor | None = None

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, scale and shift."""
        if self.as_bytes and maps.dtype == torch.float32 and bytes_are_faster(maps):
            return self._integer(maps)
        bias = self.bias
        return F.conv2d(
            maps, self.weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def select(self, outputs: Tensor, inputs: Tensor) -> None:
        """Keep these output filters and input channels only."""
        assert self.groups == 1
        kept = self.weight[outputs][:, inputs]
        self.weight = kept.contiguous(memory_format=torch.channels_last)
        self.bias = self.bias[outputs]
        if self.as_bytes:
            self.signs, self.gain = self.signs[outputs][:, inputs], self.gain[outputs]
        self._packed = None

    def _integer(self, maps: Tensor) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        ops = torch.ops.onednn
        zero = torch.zeros(len(self.gain), dtype=torch.int64)
        if self._packed is None:
            shape = list(maps.shape)
            signs = self.signs.contiguous()
            self._packed = ops.qconv_prepack(signs, self.gain, 1.0, 0, *geometry, shape)
        out: Tensor = ops.qconv2d_pointwise(
            maps.to(torch.uint8), 1.0, 0, self._packed, self.gain, zero, self.bias,
            *geometry, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # oneDNN's own memory cannot be copied


def bytes_are_faster(maps: Tensor) -> bool:
    """Whether byte products run, and run faster, on this machine and this input.

    Measured on two cores with AVX-512 VNNI, conversion of the spikes included: 1.7 to 5 times
    faster than float32 from 48 input channels on; without VNNI nothing is gained.
    """
    return (
        maps.device.type == "cpu"
        and maps.shape[1] >= 16
        and not _in_graph()
        and _has_byte_products()
    )


def _has_byte_products() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    vnni = known.get("avx512_vnni") or getattr(torch.cpu, "_is_vnni_supported", bool)()
    return bool(vnni) and hasattr(torch.ops.onednn, "qconv2d_pointwise")
