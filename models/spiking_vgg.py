"""Spiking VGGs: 3x3 convolutions with BatchNorm and neurons, halved by pooling in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, shown
from spikeformer_lt.layers.inputs import at_least_one, finite, listed
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.units import Chain, ConvLayer, Reads, chain_of, map_rows
from spikeformer_lt.models.spiking_cnn import SpikingCNN, halved
from spikeformer_lt.registry import register_model

M = "M"
POOLS = ("max", "avg")
HALVING = (nn.MaxPool2d, nn.AvgPool2d)
VGG16: tuple[int | str, ...] = (64, 64, M, 128, 128, M, *[256] * 3, M, *[512] * 3, M, *[512] * 3, M)
VGG9: tuple[int | str, ...] = (64, 64, M, 128, 128, M, *[256] * 3, M)
TOY: tuple[int | str, ...] = (16, M, 32, 32, M, 48)


class SpikingVGG(SpikingCNN):
    """A spiking VGG.

    Args:
        num_classes: classes K.
        T: time steps.
        layers: widths of the convolutions, and ``"M"`` where the map is halved (odd maps are
            rounded up, so that 28 x 28 passes five halvings).
        pool: ``max`` (spikes stay spikes) or ``avg``.
        conv_bias: bias of the convolutions.
        pooled: side that the last map is averaged to before the classifier.
        hidden: neurons of the hidden layer, or None.
        hidden_norm: BatchNorm in the hidden layer.
        head_std: of the head's initial weights, as published; None draws them as those of the
            convolutions, so that no global pruning before training removes the whole head.
        options: of :class:`SpikingCNN`.

    Source: Simonyan and Zisserman, arXiv 1409.1556; as a spiking network: Kim et al., ECCV 2022,
    arXiv 2207.01382, whose code has the biases, the initial values and one linear layer.
    """

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        layers: Sequence[int | str] = VGG16,
        pool: str = "max",
        conv_bias: bool = True,
        pooled: int = 1,
        hidden: int | None = None,
        hidden_norm: bool = True,
        head_std: float | None = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        if pool not in POOLS:
            raise ConfigError(f"pool={shown(pool)} is not one of {', '.join(POOLS)}")
        listed(layers=layers)
        spread = head_std is None or (finite(head_std) and head_std >= 0)
        check(spread, "head_std", head_std, "a number from 0 on, or None")
        if not any(layer != M for layer in layers):
            raise ConfigError(f"layers={list(layers)} is not allowed: one width at least")
        self.layers = nn.ModuleList()
        width, size = self.in_channels, self.image_size
        for layer in layers:
            if layer == M:
                halve = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
                self.layers.append(halve(2, ceil_mode=True))
                size = halved(size)
                continue
            at_least_one(layers=layer)
            assert isinstance(layer, int)
            self.layers.append(self.spiking_layer(width, layer, bias=conv_bias))
            width = layer
        self.build_classifier(width, size, pooled, hidden, hidden_norm)
        self.head_std = head_std
        self.init_weights()

    def init_weights(self) -> None:
        """Draw convolutions and head anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.num_classes == 0:
            return
        if self.head_std is None:
            nn.init.kaiming_normal_(self.head.weight, nonlinearity="relu")
        else:
            nn.init.normal_(self.head.weight, std=self.head_std)
        nn.init.zeros_(self.head.bias)

    def chains(self) -> list[Chain]:
        """The convolutions up to the classifier, and the classifier."""
        own = [] if self.hidden is None else [chain_of(self, [self.hidden, self.head])]
        return [self.sequence(self.layers), *own]

    def set_reads(self) -> None:
        """Tell the units what values they read."""
        reads: Reads = "real"
        for layer in self.layers:
            if isinstance(layer, ConvLayer):
                layer.reads, reads = reads, "spikes" if layer.fires else "real"
            elif isinstance(layer, nn.AvgPool2d):
                reads = "real"
        self.set_last(reads)

    def features(self, rows: Tensor) -> Tensor:
        """Feature maps ``[T|1, B, H', W', C']`` of the input ``[T|1, B, H, W, C]``."""
        for layer in self.layers:
            halves = isinstance(layer, HALVING)
            rows = map_rows(rows, layer) if halves else call(layer, rows, self.T)
        return rows


@register_model
def spiking_vgg16(**kwargs: Any) -> SpikingVGG:
    """VGG16 of the ECCV 2022 paper for 32x32 RGB images, with one linear layer.

    14,728,266 parameters at 10 classes: every trainable number, so the 14,715,584 prunable weights
    of convolutions and head, 4,224 biases of convolutions, 8,448 of BatchNorm (scale and shift;
    running statistics are buffers and not counted) and 10 biases of the head.
    """
    return SpikingVGG(**{"layers": VGG16, **kwargs})


@register_model
def spiking_vgg9(**kwargs: Any) -> SpikingVGG:
    """VGG-9 for 32x32 RGB images: seven convolutions, a hidden layer of 512, the head.

    arXiv 2311.12060 does not list the layers of its VGG-9; these have its 2.26 M weights
    (2,263,744 at 10 classes). The hidden layer reads the last map averaged to 2 x 2.
    """
    sizes = {"layers": VGG9, "pooled": 2, "hidden": 512, "conv_bias": False, "head_std": None}
    return SpikingVGG(**{**sizes, **kwargs})


@register_model
def spiking_vgg_toy(**kwargs: Any) -> SpikingVGG:
    """A VGG of 30 k weights for 8x8 to 32x32 images: documentation, tests, small machines."""
    sizes = {"layers": TOY, "pooled": 2, "conv_bias": False, "head_std": None, "image_size": 16}
    return SpikingVGG(**{**sizes, **kwargs})
