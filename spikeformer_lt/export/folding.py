"""BatchNorm folded into the synapses before it, in float64, and binary weights kept as bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.export.forms import binary_gains
from spikeformer_lt.export.kept import Kept
from spikeformer_lt.export.product import has_byte_products, in_graph
from spikeformer_lt.layers.kernels.choice import is_plain
from spikeformer_lt.layers.norm import BatchNorm

__all__ = ["FoldedConv", "affine", "binary_linear", "can_fold", "fold_linear"]


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


def binary_linear(linear: nn.Linear, norm: Any) -> tuple[Tensor, Tensor] | None:
    """Signs and gain, its BatchNorm's scale included, of a binary float32 map; None of others."""
    plain = linear.weight.detach()
    gains = binary_gains(plain, plain != 0) if plain.dtype == torch.float32 else None
    if gains is None:
        return None
    return plain.sign().to(torch.int8), (gains.double() * affine(norm)[0]).float()


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
        self._kept = Kept()

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
        self._kept.clear()

    def _integer(self, maps: Tensor) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        ops = torch.ops.onednn
        zero = torch.zeros(len(self.gain), dtype=torch.int64)

        def pack() -> Tensor:
            signs, shape = self.signs.contiguous(), list(maps.shape)
            made: Tensor = ops.qconv_prepack(signs, self.gain, 1.0, 0, *geometry, shape)
            return made

        packed = self._kept.get("bytes", (self.signs, self.gain), pack)
        out: Tensor = ops.qconv2d_pointwise(
            maps.to(torch.uint8), 1.0, 0, packed, self.gain, zero, self.bias,
            *geometry, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._kept.clear()


def bytes_are_faster(maps: Tensor) -> bool:
    """Whether byte products run, and run faster, on this machine and this input.

    Measured on two cores with AVX-512 VNNI, conversion of the spikes included: 1.7 to 5 times
    faster than float32 from 48 input channels on; without VNNI nothing is gained.
    """
    return maps.shape[1] >= 16 and not in_graph() and is_plain(maps) and has_byte_products()
