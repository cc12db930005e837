"""Spiking CNNs: classifier, declared chains, and the swap of all neurons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import SpikingClassifier, at_least_one
from spikeformer_lt.layers.neuron import make_activation
from spikeformer_lt.layers.tracing import trace_chains
from spikeformer_lt.layers.units import Chain, ConvLayer, HiddenLayer, Reads, chain_of


class SpikingCNN(SpikingClassifier):
    """A convolutional spiking classifier; a subclass gives the feature maps.

    Args:
        num_classes, T: as of :class:`SpikingClassifier`.
        neuron: ``lif``, or ``relu``, ``heaviside`` or ``sign``: the same network without time, with
            the same names in its state_dict.
        tau, surrogate, options: constants of every LIF, and sizes, as of `SpikingClassifier`.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.

    Raises:
        ConfigError: a size or choice that cannot be built, or an input of another T, size,
            channel count or dtype than the model's.

    Source: neuron constants of Kim et al., ECCV 2022, arXiv 2207.01382 (its code: tau 4/3, ATan).
    """

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        neuron: str = "lif",
        tau: float = 4 / 3,
        surrogate: str = "atan",
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, tau=tau, surrogate=surrogate, **options)
        make_activation(neuron, self.neuron)  # refuses before anything is built
        self.activation = neuron

    def build_classifier(
        self, channels: int, maps: tuple[int, int], pooled: int, hidden: int | None, norm: bool
    ) -> None:
        """Add average pooling, the hidden layer and the head; called by the subclass.

        Args:
            channels, maps: channels, and height and width, of the last feature map.
            pooled: side that it is averaged to.
            hidden, norm: neurons of the hidden layer, or None for no such layer; its BatchNorm.

        Raises:
            ConfigError: a map smaller than `pooled`, or a number below 1.
        """
        at_least_one(pooled=pooled)
        if min(maps) < pooled:
            raise ConfigError(
                f"pooled={pooled} is not allowed: an input of {self.image_size[0]} x "
                f"{self.image_size[1]} leaves a map of {maps[0]} x {maps[1]}; use a larger "
                "image_size or less pooling"
            )
        self.pooled, width = pooled, channels * pooled**2
        self.averages = tuple(maps) != (pooled, pooled)
        self.hidden: HiddenLayer | None = None
        if hidden is not None:
            at_least_one(hidden=hidden)
            kind, constants = self.activation, self.neuron
            self.hidden = HiddenLayer(width, hidden, norm=norm, activation=kind, neuron=constants)
            width = hidden
        self.make_head(width)
        if self.activation == "lif":
            self.set_reads()
        else:  # of layers that a subclass made from `self.neuron` alone, too
            self.set_neuron(self.activation)

    def spiking_layer(self, in_channels: int, out_channels: int, **options: Any) -> ConvLayer:
        """A 3x3 :class:`ConvLayer` with this network's neurons."""
        neuron = {"activation": self.activation, "neuron": self.neuron}
        return ConvLayer(in_channels, out_channels, **{**neuron, **options})

    def chains(self) -> list[Chain]:
        """Units that one other unit or the head alone reads, found by one forward of zeros.

        A subclass without branches may return ``[self.sequence(layers)]``, which includes the
        classifier's first layer.
        """
        x = next(self.parameters()).new_zeros(1, self.in_channels, *self.image_size)
        return trace_chains(self, x)

    def sequence(self, layers: Iterable[nn.Module]) -> Chain:
        """Chain of all layers of a network without branches and its classifier's first one."""
        reader = self.head if self.hidden is None else self.hidden
        return chain_of(self, [*layers, reader], self.pooled**2)

    def set_reads(self) -> None:
        """Tell the units what values they read; a subclass that does not gets "real" for all."""

    def set_last(self, reads: Reads) -> None:
        """Tell the hidden layer what the last maps hold, which it may read averaged."""
        if self.hidden is not None:
            self.hidden.reads = "real" if self.averages else reads

    def features(self, rows: Tensor) -> Tensor:
        """Feature maps ``[T|1, B, H', W', C']`` of the input ``[T|1, B, H, W, C]``."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps of the last convolution, ``[B, T|1, C', H', W']``, of images or frames."""
        rows = self.time_first(x).permute(0, 1, 3, 4, 2).contiguous()
        return self.features(rows).permute(1, 0, 4, 2, 3)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``[B, T, K]`` of those maps, or what the head reads, ``[B, T, F]``."""
        values = self._pooled(x.permute(1, 0, 3, 4, 2))
        found = values if pre_logits else self.head(values)
        return self._batch_first(found.expand(self.T, -1, -1))

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of ``[T|1, B, C, H, W]``."""
        maps = self.features(images.permute(0, 1, 3, 4, 2).contiguous())
        logits: Tensor = self.head(self._pooled(maps))
        return logits.expand(self.T, -1, -1)

    def _pooled(self, maps: Tensor) -> Tensor:
        values = _average(maps, self.pooled).flatten(2)
        return values if self.hidden is None else self.hidden(values, self.T)

    def set_neuron(self, kind: str) -> None:
        """Replace every neuron in place, by the names of the argument `neuron`; weights stay.

        Raises:
            ConfigError: an unknown kind; nothing is changed then.
        """
        make_activation(kind, self.neuron)
        self.activation = kind
        for module in self.modules():
            if getattr(module, "act", None) is not None:
                module.act = make_activation(kind, self.neuron)
        self.set_reads()


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Size of a map after a stride of 2: an odd one is rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _average(maps: Tensor, side: int) -> Tensor:
    """Average ``[T, B, H, W, C]`` to ``[T, B, side, side, C]``; a map of that size stays."""
    if maps.shape[2:4] == (side, side):
        return maps
    if side == 1:
        return maps.mean((2, 3), keepdim=True)
    flat = maps.flatten(0, 1).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(flat, side).permute(0, 2, 3, 1)
    return pooled.unflatten(0, maps.shape[:2])
