"""Stems: what turns images into tokens. ConvPEP is Spikformer's Spiking Patch Splitting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, shown
from spikeformer_lt.layers.inputs import listed
from spikeformer_lt.layers.neuron import NeuronConfig, make_activation
from spikeformer_lt.layers.units import Chain, ConvUnit, Integers, Reads, Unit, call, declared_part

RESIDUALS = ("add", "iand", "or")
ACTIVATIONS = ("lif", "heaviside", "sign", "relu")


class StemUnit(NamedTuple):
    """A unit of a stem and its place: the first, one of the main path, or on a shortcut."""

    role: Literal["first", "main", "shortcut"]
    unit: Unit


@runtime_checkable
class Stem(Protocol):
    """A patch embedding: images in, tokens ``[T|1, B, N, dim]`` out."""

    in_channels: int
    dim: int
    stride: int  # side of a patch in pixels

    def units(self) -> Sequence[StemUnit]:
        """The units in the order of the data."""

    def set_activation(self, kind: str, residual: str | None = None) -> None:
        """Replace the activation of every unit, and optionally the residual rule."""


def stem_of(model: nn.Module) -> Any:
    """The stem (a module) that a model declares, else its only one; None otherwise."""
    return declared_part(model, "stem", Stem)


class ConvPEP(nn.Module):
    """Four conv-BN-activation stages, a conv position encoding (RPE), tokens out.

    Args:
        in_channels, dim: channels of the input; width D of stages of D/8, D/4, D/2, D channels.
        pools: for each stage, whether its map is halved.
        activation: ``lif`` (stateful), ``heaviside`` {0,1}, ``sign`` {-1,+1} or ``relu``.
        residual: how the position encoding p joins the map x: ``add`` x+p (values {0,1,2}),
            ``iand`` x*(1-p), ``or`` x+p-x*p (both keep {0,1}).
        pool_before_act: pool before the neuron instead of after it.
        neuron: constants of the neurons; None means the defaults.

    Shape: in ``[T|1, B, C, H, W]`` -> tokens ``[T|1, B, N, D]``. A static image, T 1, is computed
    once: up to the first neuron with ``lif``, throughout when the activation is stateless.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 12-13; arXiv 2311.12060, section III (CPM).
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        pools: Sequence[bool] = (False, False, True, True),
        activation: str = "lif",
        residual: str = "add",
        pool_before_act: bool = False,
        neuron: NeuronConfig | None = None,
    ) -> None:
        super().__init__()
        if dim % 8:
            raise ConfigError(f"embed_dim={dim} must be a multiple of 8 (stage widths D/8 ... D)")
        listed(pools=pools)
        if len(pools) != 4:
            raise ConfigError(f"pools={shown(pools)} must have one entry for each of the 4 stages")
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("residual", residual, RESIDUALS)
        self.in_channels, self.dim = in_channels, dim
        self.activation, self.residual = activation, residual
        self.neuron = neuron or NeuronConfig()
        self.stride = 2 ** sum(pools)
        widths = [in_channels, dim // 8, dim // 4, dim // 2, dim]
        options: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        self.stages = nn.ModuleList(
            ConvUnit(*widths[i : i + 2], pool=pools[i], pool_before_act=pool_before_act, **options)
            for i in range(4)
        )
        self.rpe = ConvUnit(dim, dim, **options)
        self._readers: tuple[Any, ...] = ()
        self._set_reads()

    def set_activation(
        self, kind: str, residual: str | None = None, surrogate: str | None = None
    ) -> None:
        """Replace every activation of the stem (level 3), and on request the residual rule.

        `surrogate` is that of the new activations, by default that of the stem's neurons.
        """
        residual = residual or self.residual
        _check_choice("activation", kind, ACTIVATIONS)
        _check_choice("residual", residual, RESIDUALS)
        own = {} if surrogate is None else {"surrogate": surrogate, "alpha": None}
        for unit in (*self.stages, self.rpe):
            unit.act = make_activation(kind, self.neuron, **own)
        self.activation, self.residual = kind, residual
        self._set_reads()

    def units(self) -> list[StemUnit]:
        """The conv units in the order of the data: four stages, then the RPE."""
        first, *main = cast("list[ConvUnit]", list(self.stages))
        between = [StemUnit("main", unit) for unit in main]
        return [StemUnit("first", first), *between, StemUnit("shortcut", self.rpe)]

    def chains(self) -> list[Chain]:
        """The stages; the last of them is read by the residual sum as well."""
        return [Chain(tuple(f"stages.{i}" for i in range(len(self.stages))))]

    @property
    def emits(self) -> Reads:
        """Values of the tokens."""
        if not (self.stages[-1].fires and self.rpe.fires):
            return "real"
        return Integers(2) if self.residual == "add" else "spikes"

    def feed(self, blocks: Iterable[Any]) -> None:
        """Tell the blocks behind the stem what they read, now and after `set_activation`."""
        self._readers = tuple(blocks)
        self._set_reads()

    def _set_reads(self) -> None:
        reads: Reads = "real"
        for _, unit in self.units():
            unit.reads, reads = reads, "spikes" if unit.fires else "real"
        reads = self.emits
        for block in self._readers:
            reads = block.set_reads(reads)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the pools do not divide."""
        if height % self.stride or width % self.stride or min(height, width) < self.stride:
            raise ConfigError(
                f"image size {height}x{width} is not a multiple of the ConvPEP stride {self.stride}"
            )

    def forward(self, images: Tensor, T: int, need_current: bool = False) -> tuple[Tensor, Tensor]:
        """Return tokens and, if asked for, the BatchNorm output of the position encoding."""
        rows = images.permute(0, 1, 3, 4, 2).contiguous()
        for stage in self.stages:
            rows, _ = call(stage, rows, T)
        position, current = call(self.rpe, rows, T, need_current)
        tokens = self._join(rows, position)
        return tokens.flatten(2, 3), current.flatten(2, 3)

    def _join(self, x: Tensor, p: Tensor) -> Tensor:
        if self.residual == "add":
            return x + p
        if self.activation == "sign":  # {-1,+1}: True is +1
            return torch.minimum(x, -p) if self.residual == "iand" else torch.maximum(x, p)
        return x * (1 - p) if self.residual == "iand" else x + p - x * p


def _check_choice(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field}={shown(value)} is not one of {', '.join(allowed)}")
