"""Stems: what turns images into tokens. ConvPEP is Spikformer's Spiking Patch Splitting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, shown
from spikeformer_lt.layers.attention import join, joined
from spikeformer_lt.layers.inputs import listed
from spikeformer_lt.layers.neuron import NeuronConfig, make_activation
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.units import Chain, ConvUnit, Reads, Unit, declared_part, emitted

RESIDUALS = ("add", "iand", "or")
ACTIVATIONS = ("lif", "heaviside", "sign", "relu", "ilif")


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


class SpikingStem(nn.Module):
    """What the stems share; a subclass gives `units`, `emit` and `forward`.

    ``forward(images, T, need)`` maps ``[T|1, B, C, H, W]`` to the tokens ``[T|1, B, N, D]`` and
    what `need` names: ``current``, that of the last unit, ``[T|1, B, N, D]``, or ``gates`` of
    token attentions, ``[T, B, N, h]``. A static image, T 1, is computed once: up to the first
    neuron with ``lif``, throughout when the activation is stateless.
    """

    residuals: tuple[str, ...] = RESIDUALS
    gives: tuple[str, ...] = ("current",)

    def __init__(
        self, in_channels: int, dim: int, activation: str, residual: str, neuron: NeuronConfig
    ) -> None:
        super().__init__()
        _check_choice("activation", activation, ACTIVATIONS)
        if self.residuals:
            _check_choice("residual", residual, self.residuals)
        self.in_channels, self.dim, self.stride = in_channels, dim, 1
        self.activation, self.residual, self.neuron = activation, residual, neuron
        self._readers: tuple[Any, ...] = ()

    def units(self) -> list[StemUnit]:
        """The units in the order of the data."""
        raise NotImplementedError

    def inner_blocks(self) -> list[Any]:
        """Encoder blocks inside of the stem, in the order of the data."""
        return []

    def emit(self) -> Reads:
        """Tell the units what they read; return the values of the tokens."""
        raise NotImplementedError

    def firing(self) -> list[Any]:
        """The parts of the stem that have an activation of their own in ``act``."""
        return [unit for _, unit in self.units() if unit.neuron is not None]

    def set_activation(
        self, kind: str, residual: str | None = None, surrogate: str | None = None
    ) -> None:
        """Replace every activation of the stem (level 3), and on request the residual rule.

        `surrogate` is that of the new activations, by default that of the stem's neurons.
        """
        residual = residual or self.residual
        _check_choice("activation", kind, ACTIVATIONS)
        if residual not in ("", "add") or self.residuals:  # without a sum there is no rule to set
            _check_choice("residual", residual, self.residuals)
            self.residual = residual
        own = {} if surrogate is None else {"surrogate": surrogate, "alpha": None}
        for part in self.firing():
            part.act = make_activation(kind, self.neuron, **own)
        self.activation = kind
        self.set_reads()

    def feed(self, blocks: Iterable[Any]) -> None:
        """Tell the blocks behind the stem what they read, now and after `set_activation`."""
        self._readers = tuple(blocks)
        self.set_reads()

    def set_reads(self) -> None:
        """Tell the units and the blocks behind them what values they read."""
        reads = self.emit()
        for block in self._readers:
            reads = block.set_reads(reads)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the pools do not divide."""
        if height % self.stride or width % self.stride or min(height, width) < self.stride:
            raise ConfigError(
                f"image size {height}x{width} is not a multiple of the {type(self).__name__} "
                f"stride {self.stride}"
            )


def stem_of(model: nn.Module) -> Any:
    """The stem (a module) that a model declares, else its only one; None otherwise."""
    return declared_part(model, "stem", Stem)


class ConvPEP(SpikingStem):
    """Four conv-BN-activation stages, a conv position encoding (RPE), tokens out.

    Args:
        in_channels, dim: channels of the input; width D of stages of D/8, D/4, D/2, D channels.
        pools: for each stage, whether its map is halved.
        convs: the last so many of the four stages are there, 1, 2 or 4; fewer are a control.
        activation: ``lif`` (stateful), ``heaviside`` {0,1}, ``sign`` {-1,+1}, ``relu`` or ``ilif``
            {0,...,4}.
        residual: how the position encoding p joins the map x: ``add`` x+p (values {0,1,2}),
            ``iand`` x*(1-p), ``or`` x+p-x*p (both keep {0,1}).
        pool_before_act: pool before the neuron instead of after it.
        neuron: constants of the neurons; None means the defaults.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 12-13; arXiv 2311.12060, section III (CPM).
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        pools: Sequence[bool] = (False, False, True, True),
        convs: int = 4,
        activation: str = "lif",
        residual: str = "add",
        pool_before_act: bool = False,
        neuron: NeuronConfig | None = None,
    ) -> None:
        sizes = stem_stages(in_channels, dim, pools, convs)
        super().__init__(in_channels, dim, activation, residual, neuron or NeuronConfig())
        self.stride = 2 ** sum(pools)
        options: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        self.stages = nn.ModuleList(
            ConvUnit(**size, pool_before_act=pool_before_act, **options) for size in sizes
        )
        self.rpe = ConvUnit(dim, dim, **options)
        self.set_reads()

    def units(self) -> list[StemUnit]:
        """The conv units in the order of the data: four stages, then the RPE."""
        return [*in_a_row(self.stages), StemUnit("shortcut", self.rpe)]

    def chains(self) -> list[Chain]:
        """The stages; the last of them is read by the residual sum as well."""
        return [Chain(tuple(f"stages.{i}" for i in range(len(self.stages))))]

    def emit(self) -> Reads:
        """Tell the units what they read; return the values of the tokens."""
        self.rpe.reads = reads = read_on(self.stages, "real")
        return joined(reads, self.residual) if self.rpe.fires else "real"

    def forward(self, images: Tensor, T: int, need: str = "") -> tuple[Tensor, Tensor]:
        """Return tokens and, if asked for, the BatchNorm output of the position encoding."""
        rows = images.permute(0, 1, 3, 4, 2).contiguous()
        for stage in self.stages:
            rows, _ = call(stage, rows, T)
        position, current = call(self.rpe, rows, T, bool(need))
        tokens = join(rows, position, self.residual, self.activation == "sign")
        return tokens.flatten(2, 3), current.flatten(2, 3)


def stem_stages(
    in_channels: int, dim: int, pools: Sequence[bool], convs: int = 4
) -> list[dict[str, Any]]:
    """Sizes of the last `convs` of four stages, each twice as wide as the one before, D at last.

    The first one strides over the pools of those that are left out.
    """
    check(type(convs) is int and convs in (1, 2, 4), "stem_convs", convs, "1, 2 or 4")
    if dim % 8:
        raise ConfigError(f"embed_dim={dim} must be a multiple of 8 (stage widths D/8 ... D)")
    listed(pools=pools)
    if len(pools) != 4:
        raise ConfigError(f"pools={shown(pools)} must have one entry for each of the 4 stages")
    widths = [in_channels, *(dim // part for part in (8, 4, 2, 1)[-convs:])]
    strides = [2 ** sum(map(bool, pools[:-convs])), 1, 1, 1]
    return [
        {
            "in_channels": widths[i],
            "out_channels": widths[i + 1],
            "pool": pool,
            "stride": strides[i],
        }
        for i, pool in enumerate(pools[-convs:])
    ]


def in_a_row(units: Iterable[Any], begin: Sequence[Any] = ("first",)) -> list[StemUnit]:
    """The units with their roles: `begin`, then main."""
    roles = chain(begin, repeat("main"))
    return [StemUnit(role, unit) for unit, role in zip(units, roles, strict=False)]


def read_on(units: Iterable[Any], reads: Reads) -> Reads:
    """Tell units in a row what they read, the first one `reads`; return what the last one fires."""
    for unit in units:
        unit.reads, reads = reads, emitted(unit.neuron)
    return reads


def _check_choice(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        rule = f"one of {', '.join(allowed)}" if allowed else "a choice: this stem adds no spikes"
        raise ConfigError(f"{field}={shown(value)} is not {rule}")
