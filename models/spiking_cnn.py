"""What spiking CNNs share: the door, the classifier, and the state between two inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import time_first
from spikeformer_lt.layers.neuron import make_activation, reset_state
from spikeformer_lt.layers.units import Chain, HiddenLayer, chain_of, chains_of_parts


class SpikingCNN(nn.Module):
    """A convolutional spiking classifier; a subclass gives the feature maps.

    Args:
        num_classes: classes K.
        T: time steps. A static image is presented T times; event frames bring T themselves. The
            attribute may be changed at any time.
        in_channels: 3 for RGB, 1 for grey, 2 for events.
        image_size: side of the square input, or (H, W); other sizes are refused.
        neuron: ``lif``, or ``relu``, ``heaviside`` or ``sign``: the same network without time, with
            the same names in its state_dict, so that weights go from one to the other.
        tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset: of every LIF.
        compute_once: compute what is the same at every step of a static image once; the result is
            identical, only the time differs.

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
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        neuron: str = "lif",
        tau: float = 4 / 3,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        surrogate: str = "atan",
        alpha: float | None = None,
        detach_reset: bool = True,
        compute_once: bool = True,
    ) -> None:
        super().__init__()
        for field, value in {
            "T": T,
            "num_classes": num_classes,
            "in_channels": in_channels,
        }.items():
            at_least_one(field, value)
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"image_size={image_size} is not allowed: a side, or (H, W)")
        self.T, self.num_classes, self.compute_once = T, num_classes, compute_once
        self.in_channels, self.image_size = in_channels, (int(size[0]), int(size[1]))
        self.neuron: dict[str, Any] = {
            "tau": tau,
            "v_threshold": v_threshold,
            "v_reset": v_reset,
            "decay_input": decay_input,
            "surrogate": surrogate,
            "alpha": alpha,
            "detach_reset": detach_reset,
        }
        make_activation(neuron, **self.neuron)  # refuses before anything is built
        self.neuron["kind"] = neuron

    def build_classifier(
        self, channels: int, maps: tuple[int, int], pooled: int, hidden: int | None, norm: bool
    ) -> None:
        """Add average pooling, the hidden layer and the head; called by the subclass.

        Args:
            channels: of the last feature map.
            maps: height and width of that map.
            pooled: side that it is averaged to.
            hidden: neurons of the hidden layer, or None for no such layer.
            norm: BatchNorm in the hidden layer.

        Raises:
            ConfigError: a map smaller than `pooled`, or a number below 1.
        """
        at_least_one("pooled", pooled)
        if min(maps) < pooled:
            raise ConfigError(
                f"pooled={pooled} is not allowed: an input of {self.image_size[0]} x "
                f"{self.image_size[1]} leaves a map of {maps[0]} x {maps[1]}; use a larger "
                "image_size or less pooling"
            )
        self.pooled, width = pooled, channels * pooled**2
        self.hidden: HiddenLayer | None = None
        if hidden is not None:
            at_least_one("hidden", hidden)
            self.hidden = HiddenLayer(width, hidden, norm=norm, neuron=self.neuron)
            width = hidden
        self.head = nn.Linear(width, self.num_classes)
        self.set_reads()

    def chains(self) -> list[Chain]:
        """Units that one other unit or the head alone reads.

        A subclass whose layers follow each other adds ``self.sequence(layers)``.
        """
        own = [] if self.hidden is None else [chain_of(self, [self.hidden, self.head])]
        return [*chains_of_parts(self), *own]

    def sequence(self, layers: Iterable[nn.Module]) -> Chain:
        """Chain of all layers of a network without branches and its classifier's first one."""
        reader = self.head if self.hidden is None else self.hidden
        return chain_of(self, [*layers, reader], self.pooled**2)

    def set_reads(self) -> None:
        """Tell the units what values they read; without a subclass's own word, real numbers."""

    def features(self, rows: Tensor) -> Tensor:
        """Feature maps ``[T|1, B, H', W', C']`` of the input ``[T|1, B, H, W, C]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Classify images or frames; neuron state is clean before and after."""
        reset_state(self)
        try:
            return self.classify(self.time_first(x)).transpose(0, 1)
        finally:
            if not torch.compiler.is_compiling():
                reset_state(self)

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of ``[T|1, B, C, H, W]``; neurons go on from the state they have."""
        maps = self.features(images.permute(0, 1, 3, 4, 2).contiguous())
        values = _average(maps, self.pooled).flatten(2)
        if self.hidden is not None:
            values = self.hidden(values, self.T)
        logits: Tensor = self.head(values)
        return logits.expand(self.T, -1, -1)

    def time_first(self, x: Tensor) -> Tensor:
        """Check the door and put time first: ``[1, B, C, H, W]`` or ``[T, B, C, H, W]``."""
        return time_first(
            x,
            T=self.T,
            in_channels=self.in_channels,
            image_size=self.image_size,
            dtype=self.head.weight.dtype,
            compute_once=self.compute_once,
        )

    def set_neuron(self, kind: str) -> None:
        """Swap every neuron in place, by the names of the argument `neuron`; weights stay.

        Raises:
            ConfigError: an unknown kind; nothing is changed then.
        """
        options = {**self.neuron, "kind": kind}
        make_activation(**options)
        self.neuron = options
        for module in self.modules():
            if getattr(module, "act", None) is not None:
                module.act = make_activation(**options)
        self.set_reads()


def at_least_one(field: str, value: Any) -> None:
    """Refuse what is no whole number from 1 on.

    Raises:
        ConfigError: with field and value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{field}={value} is not allowed: a whole number, at least 1")


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
