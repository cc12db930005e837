"""Convolutions of channels-last rows by our own kernel, where it is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeformer_lt.layers import kernels
from spikeformer_lt.layers.norm import hooked
from spikeformer_lt.layers.subnet import SubnetConv2d

__all__ = ["conv_rows"]


def conv_rows(rows: Tensor, conv: nn.Conv2d) -> Tensor | None:
    """``conv`` of rows ``[T, B, H, W, C]``, or None where its own forward shall do it.

    Only a 3x3 convolution of stride 1 that keeps the size of its maps is taken, plain or on a part
    of its weights; hooks, graphs, autocast and other kinds are left alone.
    """
    if type(conv) not in (nn.Conv2d, SubnetConv2d) or hooked(conv) or rows.dim() != 5:
        return None
    same = (conv.stride, conv.padding, conv.dilation) == ((1, 1),) * 3 and conv.groups == 1
    if not same or conv.padding_mode != "zeros" or conv.kernel_size != (3, 3):
        return None
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(rows.device.type):
        return None
    if not kernels.takes_conv(rows, conv.weight):
        return None
    weight = conv.effective_weight() if isinstance(conv, SubnetConv2d) else conv.weight
    out = kernels.conv(rows, weight)
    if out is None:  # the kernels failed just now
        return None
    return out if conv.bias is None else out + conv.bias
