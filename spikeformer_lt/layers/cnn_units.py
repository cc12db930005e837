"""Layers of spiking CNNs: convolution or linear map, BatchNorm, and mostly a neuron."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spikeformer_lt.layers.neuron import make_activation
from spikeformer_lt.layers.norm import BatchNorm, norm_act
from spikeformer_lt.layers.units import map_rows


class ConvLayer(nn.Module):
    """Convolution, BatchNorm and, unless it ends before a sum, the neuron.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: odd; the map keeps its size but for the stride.
        stride: of the convolution; an odd map is rounded up.
        bias: bias of the convolution, which BatchNorm makes idle: published VGGs count it.
        neuron: options of :func:`make_activation` with its ``kind``, or None for no neuron.

    Shape: in ``[T|1, B, H, W, C]`` -> out ``[T|1, B, H', W', C']``; a LIF puts out T steps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = False,
        neuron: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.norm = BatchNorm(out_channels)
        self.act = None if neuron is None else make_activation(**neuron)
        self.recompute = False

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Spikes, or the current where there is no neuron."""
        rows = map_rows(rows, self.conv)
        repeats = T // rows.shape[0]
        if self.act is None:
            current: Tensor = self.norm(rows, repeats)
            return current
        return norm_act(self.norm, self.act, rows, T, repeats)


class HiddenLayer(nn.Module):
    """Linear map with a bias, BatchNorm on request, and the neuron.

    Without BatchNorm the biases start where the neurons just reach their threshold: from torch's
    own start no neuron would fire, and the head would get no gradient at all. Larger weights would
    do, too, but a global pruning by magnitude would then spare this layer and empty others.

    Shape: in ``[T|1, B, F]`` -> out ``[T|1, B, F']``; a LIF puts out T steps.
    """

    def __init__(
        self, in_features: int, out_features: int, *, norm: bool, neuron: dict[str, Any]
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.norm = BatchNorm(out_features) if norm else None
        if not norm:
            rise = neuron["v_threshold"] - (neuron["v_reset"] or 0.0)
            gain = neuron["tau"] if neuron["decay_input"] else 1.0
            nn.init.constant_(self.linear.bias, rise * gain)
        self.act = make_activation(**neuron)

    def forward(self, values: Tensor, T: int) -> Tensor:
        """Spikes of the hidden neurons."""
        current = self.linear(values)
        if self.norm is None:
            spikes: Tensor = self.act(current, T)
            return spikes
        return norm_act(self.norm, self.act, current, T, T // current.shape[0])
