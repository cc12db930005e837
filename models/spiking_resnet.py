"""Spiking ResNet-19: residual blocks whose sum of currents, not of spikes, drives the neuron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import at_least_one, listed
from spikeformer_lt.layers.neuron import NeuronConfig, make_activation
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.units import Chain, ConvLayer, Reads
from spikeformer_lt.models.spiking_cnn import SpikingCNN, halved
from spikeformer_lt.registry import register_model


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; their current and that of the shortcut add before the last neuron.

    The shortcut is the input itself, or a 1x1 convolution with BatchNorm where the sizes differ.

    Shape: in ``[T|1, B, H, W, C]`` -> out ``[T|1, B, H', W', C']``; a LIF puts out T steps.

    Source: Zheng et al., AAAI 2021, arXiv 2011.05280, figure 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, kind: str, neuron: NeuronConfig
    ) -> None:
        super().__init__()
        self.conv1 = ConvLayer(
            in_channels, out_channels, stride=stride, activation=kind, neuron=neuron
        )
        self.conv2 = ConvLayer(out_channels, out_channels)
        self.shortcut: ConvLayer | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvLayer(in_channels, out_channels, kernel_size=1, stride=stride)
        self.act = make_activation(kind, neuron)
        self.recompute = False

    def chains(self) -> list[Chain]:
        """The first convolution, which the second alone reads."""
        return [Chain(("conv1", "conv2"))]

    @property
    def neuron(self) -> Any:
        """The neuron after the sum."""
        return self.act

    def branch(self) -> tuple[ConvLayer, ConvLayer]:
        """The two convolutions."""
        return self.conv1, self.conv2

    def set_reads(self, reads: Reads) -> Reads:
        """Tell the convolutions what values the block reads; return those of its output."""
        self.conv1.reads, self.conv2.reads = reads, "spikes" if self.conv1.fires else "real"
        if self.shortcut is not None:
            self.shortcut.reads = reads
        return "spikes" if getattr(self.act, "spiking", False) else "real"

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Spikes of the block."""
        current = self.conv2(self.conv1(rows, T), T)
        straight = rows if self.shortcut is None else self.shortcut(rows, T)
        spikes: Tensor = self.act(current + straight, T)
        return spikes


class SpikingResNet(SpikingCNN):
    """A spiking ResNet for small images.

    Args:
        num_classes: classes K.
        T: time steps.
        stem: channels of the first convolution, which keeps the size.
        widths: channels of each stage.
        depths: blocks of each stage.
        strides: stride of the first block of each stage, 1 or 2.
        hidden: neurons of the hidden layer after global average pooling, or None.
        hidden_norm: BatchNorm in the hidden layer. The published network has none.
        options: of :class:`SpikingCNN`.

    Source: as for :class:`ResidualBlock`; strides and the hidden layer are those of the code of Kim
    et al., ECCV 2022, arXiv 2207.01382.
    """

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        stem: int = 64,
        widths: Sequence[int] = (128, 256, 512),
        depths: Sequence[int] = (3, 3, 2),
        strides: Sequence[int] = (2, 2, 2),
        hidden: int | None = 256,
        hidden_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        listed(widths=widths, depths=depths, strides=strides)
        if not (len(widths) == len(depths) == len(strides) >= 1):
            raise ConfigError(
                f"widths={list(widths)}, depths={list(depths)}, strides={list(strides)} must have "
                "one entry for each stage"
            )
        at_least_one(stem=stem)
        for width, depth in zip(widths, depths, strict=True):
            at_least_one(widths=width, depths=depth)
            check(depth <= 1000, "depths", depth, "at most 1,000 blocks a stage")
        if any(stride not in (1, 2) for stride in strides):
            raise ConfigError(f"strides={list(strides)} is not allowed: each 1 or 2")
        self.stem = self.spiking_layer(self.in_channels, stem)
        self.blocks: Any = nn.ModuleList()
        width, size = stem, self.image_size
        for out, depth, stride in zip(widths, depths, strides, strict=True):
            size = halved(size) if stride == 2 else size
            for step in [stride, *[1] * (depth - 1)]:
                self.blocks.append(ResidualBlock(width, out, step, self.activation, self.neuron))
                width = out
        self.build_classifier(width, size, 1, hidden, hidden_norm)

    def set_reads(self) -> None:
        """Tell the units what values they read."""
        reads: Reads = "spikes" if self.stem.fires else "real"
        for block in self.blocks:
            reads = block.set_reads(reads)
        self.set_last(reads)

    def features(self, rows: Tensor) -> Tensor:
        """Feature maps ``[T|1, B, H', W', C']`` of the input ``[T|1, B, H, W, C]``."""
        for part in (self.stem, *self.blocks):
            rows = call(part, rows, self.T)
        return rows


@register_model
def spiking_resnet19(**kwargs: Any) -> SpikingResNet:
    """ResNet-19 of the ECCV 2022 paper for 32x32 RGB images: stages of 128, 256 and 512 channels.

    12,630,858 parameters at 10 classes: every trainable number, so the 12,619,968 prunable weights
    of convolutions and linear maps, 10,624 of BatchNorm (scale and shift; running statistics are
    buffers and not counted) and 266 biases of the two linear maps. Convolutions have no bias.
    """
    return SpikingResNet(**kwargs)


@register_model
def spiking_resnet_toy(**kwargs: Any) -> SpikingResNet:
    """A residual network of 20 k weights for 8x8 to 32x32 images: documentation, tests."""
    sizes: dict[str, Any] = {"stem": 16, "widths": (16, 32), "depths": (1, 1), "strides": (2, 2)}
    return SpikingResNet(**{**sizes, "hidden": None, "image_size": 16, **kwargs})
