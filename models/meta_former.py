"""Spike-Driven Transformers v2 and v3 (Yao et al., arXiv 2404.03663 and 2411.16061)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.config import check
from spikeformer_lt.layers.attention import (
    AttentionCount,
    SpikingAttention,
    SpikingSelfAttention,
    spiking_attention,
)
from spikeformer_lt.layers.inputs import at_least_one, listed
from spikeformer_lt.layers.neuron import (
    LIF,
    BatchNorm,
    Integer,
    NeuronConfig,
    affine,
    make_activation,
    norm_act,
)
from spikeformer_lt.layers.patches import gather_tokens, put_tokens, through
from spikeformer_lt.layers.stems import SpikingStem, StemUnit, in_a_row, read_on
from spikeformer_lt.layers.units import (
    Chain,
    ConvLayer,
    Firing,
    Folded,
    LinearUnit,
    Reads,
    emitted,
    map_rows,
)
from spikeformer_lt.models.spikformer_convert import E_SPIKEFORMER, META_SPIKEFORMER
from spikeformer_lt.models.spiking_transformer import SpikingTransformer
from spikeformer_lt.registry import register_model

log = logging.getLogger(__name__)
_RING = 0, 0, 1, 1, 1, 1  # one place more on each side of maps [..., H, W, C]
_CONSTANTS = {field.name for field in fields(NeuronConfig)}

BEFORE = (7, 3, 3, 3, 3)  # sides of the convolutions that make the maps of the stages
STRIDES = (2, 2, 2, 2, 1)


class Branch(nn.Module):
    """A neuron, and units in a row, each read by the next one; the last puts out a current.

    Shape: in ``[T|1, B, H, W, C]`` -> out ``[T|1, B, H', W', C']``.
    """

    def __init__(self, act: Any, units: Iterable[nn.Module]) -> None:
        super().__init__()
        self.act, self.units = act, nn.ModuleList(units)

    def set_reads(self) -> None:
        """Tell the units what they read: the first one the neuron, if there is one."""
        reads: Reads = "real" if self.act is None else emitted(self.act)
        first: Any = self.units[0]
        first = first.attn if isinstance(first, Attended) else first
        if isinstance(first, SpikingAttention):
            first.set_reads(reads)
        else:
            read_on(self.units, reads)

    def chains(self) -> list[Chain]:
        """Neighbours of which each output may read every input."""
        units = [
            (f"units.{i}", getattr(unit, "synapse", None)) for i, unit in enumerate(self.units)
        ]
        return [
            Chain((name, after))
            for (name, layer), (after, reader) in pairwise(units)
            if getattr(layer, "groups", 1) == getattr(reader, "groups", 1) == 1
        ]

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """The current of the last unit."""
        rows = rows if self.act is None else self.act(rows, T)
        for unit in self.units:
            rows = unit(rows, T)
        return rows


class Attended(nn.Module):
    """An attention between the places of maps."""

    def __init__(self, attn: SpikingSelfAttention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Attend between all places of each step."""
        return self.attn(rows.flatten(2, 3), T).unflatten(2, rows.shape[2:4])


class WideAttention(SpikingSelfAttention):
    """Self attention whose v is wider than q and k.

    Source: Yao et al., arXiv 2411.16061, section 4 (E-SDSA).
    """

    def operations(self, *spikes: Tensor) -> AttentionCount:
        """As of a :class:`SpikingSelfAttention`, of another width of v."""
        q, k, v = (self._heads(part.double()) for part in spikes)
        tokens, width = q.shape[-2:]
        dense = (q.numel() + v.numel()) * tokens
        if self.linear or tokens >= width:
            first = k.transpose(-2, -1) @ v
            met = float(first.sum() + (q.sum(-2) * (first != 0).sum(-1)).sum())
            return AttentionCount(2 * v.numel() * width, dense, met)
        first = q @ k.transpose(-2, -1)
        met = float(first.sum() + ((first != 0).sum(-2) * v.sum(-1)).sum())
        return AttentionCount(dense, dense, met)


class RepConv(Firing, nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions with normalisations between: one 3x3 when folded.

    Maps are padded by what the first normalisation makes of 0.

    Args:
        dim: width D.
        neuron: constants of the neurons after it; None for none.

    Shape: in ``[T|1, B, H, W, D]`` -> out the same; a LIF puts out T steps.

    Source: Yao et al., arXiv 2404.03663, section 3; Ding et al., RepVGG, arXiv 2101.03697.
    """

    def __init__(self, dim: int, neuron: NeuronConfig | None = None) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(dim, dim, 1, bias=False), BatchNorm(dim)
        self.depthwise = nn.Conv2d(dim, dim, 3, groups=dim, bias=False)
        self.second, self.second_norm = nn.Conv2d(dim, dim, 1, bias=False), BatchNorm(dim)
        self.norm = BatchNorm(dim)
        self.act = None if neuron is None else LIF(neuron)

    @property
    def synapse(self) -> nn.Conv2d:
        """The geometry of the folded convolution, without values."""
        dim, kind = self.first.in_channels, self.first.weight.dtype
        return nn.Conv2d(dim, dim, 3, padding=1, device="meta", dtype=kind)

    def folded(self) -> Folded:
        """The 3x3 convolution that all of it is in eval mode."""
        (s1, t1), (s2, t2), (s3, t3) = map(affine, (self.first_norm, self.second_norm, self.norm))
        first, middle, last = (
            conv.weight.detach().double() for conv in (self.first, self.depthwise, self.second)
        )
        first, middle, last = first[:, :, 0, 0] * s1[:, None], middle[:, 0], last[:, :, 0, 0]
        last = last * (s2 * s3)[:, None]
        weight = torch.einsum("om,myx,mi->oiyx", last, middle, first)
        return Folded(weight, last @ (middle.sum((1, 2)) * t1) + s3 * t2 + t3, self.act)

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Spikes, or the current where there is no neuron."""
        repeats = T // rows.shape[0]
        inner = self.first_norm(map_rows(rows, self.first), repeats)
        edge = affine(self.first_norm)[1].to(inner.dtype)
        border = inner.new_zeros(*inner.shape[2:4], 1, dtype=torch.bool)
        border, padded = F.pad(border, _RING, value=True), F.pad(inner, _RING)
        padded = torch.where(border, edge, padded)
        rows = self.second_norm(map_rows(map_rows(padded, self.depthwise), self.second), repeats)
        return norm_act(self.norm, self.act, rows, T)


class RepAttention(SpikingSelfAttention):
    """Self attention on maps ``[T|1, B, H, W, D]`` whose maps of q, k, v and its own are RepConvs.

    Source: Yao et al., arXiv 2404.03663, section 3 (SDSA-3).
    """

    rescales = False

    def __init__(self, dim: int, num_heads: int, neuron: NeuronConfig, **options: Any) -> None:
        super().__init__(dim, num_heads, neuron=neuron, **options)
        for role in self.roles:
            setattr(self, role, RepConv(dim, neuron))
        self.proj: Any = RepConv(dim)
        self.proj.reads = "spikes"

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Attend between all places of each step."""
        parts = (getattr(self, role)(rows, T).flatten(2, 3) for role in self.roles)
        q, k, v = map(self._heads, parts)
        summed = spiking_attention(q, k, v, self.linear) * self.scale
        current = rearrange(summed, "t b h n d -> t b n (h d)").unflatten(2, rows.shape[2:4])
        out: Tensor = self.proj(self.attn_act(current, T), T)
        return out

    def operations(self, *spikes: Tensor) -> AttentionCount:
        """As of a :class:`SpikingSelfAttention`, of maps."""
        return super().operations(*(part.flatten(2, 3) for part in spikes))


class MetaBlock(nn.Module):
    """Branches whose currents are added to the stream, one after the other.

    Shape: tokens ``[T|1, B, N, D]`` of a map, `grid` its rows and columns -> the same.
    """

    convolves = True  # before its attention, so that tokens can stop behind that alone

    def __init__(self, branches: Iterable[Branch], grid: tuple[int, int]) -> None:
        super().__init__()
        self.branches, self.grid, self.recompute = nn.ModuleList(branches), grid, False
        inside = [any(isinstance(m, SpikingAttention) for m in b.modules()) for b in self.branches]
        self._attends = inside.index(True) if True in inside else len(inside)
        self.stop: Any = None  # a `layers.patches.PatchSelect` of those that go on

    @property
    def attn(self) -> Any:
        """The attention."""
        return next(part for part in self.modules() if isinstance(part, SpikingAttention))

    def set_reads(self, reads: Reads) -> Reads:
        """Tell the units what they read; the stream is real."""
        for branch in cast(Any, self.branches):
            branch.set_reads()
        return "real"

    def forward(self, tokens: Tensor, T: int, index: Tensor | None = None) -> Tensor:
        """Run the block; from its attention on, the tokens at `index` ``[B, K]`` alone."""
        rows, whole = tokens.unflatten(2, self.grid), None
        for i, branch in enumerate(self.branches):
            if index is not None and i == self._attends:
                whole = rows.flatten(2, 3)
                rows = gather_tokens(whole, index)[:, :, None]
            rows = rows + branch(rows, T)
        rows = rows.flatten(2, 3)
        return rows if index is None or whole is None else put_tokens(whole, index, rows)


class MetaStem(SpikingStem):
    """Convolutions that make maps of half the side, with blocks of convolutions and attention.

    Args:
        in_channels: of the input.
        downs: a branch for each of five stages, the last without a stride.
        stages: the blocks behind each of them but the last.
        activation, neuron: as of a :class:`ConvPEP`, of all but the blocks with attention.

    Its units are those of `downs` and of the blocks of convolutions, the first three stages.
    """

    residuals = ()

    def __init__(
        self,
        in_channels: int,
        downs: Sequence[Branch],
        stages: Sequence[Sequence[MetaBlock]],
        *,
        activation: str,
        neuron: NeuronConfig,
    ) -> None:
        dim = cast(Any, downs[-1]).units[0].conv.out_channels
        super().__init__(in_channels, dim, activation, "", neuron)
        self.stride = 16
        self.downs = nn.ModuleList(downs)
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.set_reads()

    def _branches(self) -> list[Any]:
        """The branches of convolutions, in the order of the data."""
        found: list[Any] = []
        for i, down in enumerate(self.downs):
            blocks = cast(Any, self.stages[i]) if i < 3 else ()
            found += [down, *(branch for block in blocks for branch in block.branches)]
        return found

    def units(self) -> list[StemUnit]:
        """The convolutions, in the order of the data."""
        return in_a_row(unit for branch in self._branches() for unit in branch.units)

    def inner_blocks(self) -> list[Any]:
        """The blocks with attention."""
        return list(cast(Any, self.stages[3]))

    def firing(self) -> list[Any]:
        """The units with an activation, and the branches, whose own is before them."""
        return [*super().firing(), *(b for b in self._branches() if b.act is not None)]

    def emit(self) -> Reads:
        """Tell the units what they read; the tokens are real."""
        for part in self.modules():
            if isinstance(part, Branch):
                part.set_reads()
        return "real"

    def forward(self, images: Tensor, T: int, need: str = "") -> tuple[Tensor, Tensor]:
        """Return tokens, twice: they are currents themselves."""
        rows = images.permute(0, 1, 3, 4, 2).contiguous()
        for i, down in enumerate(self.downs):
            rows = down(rows, T)
            for block in cast(Any, self.stages[i]) if i < len(self.stages) else ():
                rows = through(block, rows.flatten(2, 3), T, images).unflatten(2, rows.shape[2:4])
        tokens = rows.flatten(2, 3)
        return tokens, tokens


class MetaFormer(SpikingTransformer):
    """Three stages of convolutions, then two of attention, whose width grows at each.

    A subclass gives `separable` and `attending`, and calls `assemble`. No token can leave.
    """

    keeps_tokens = "with its convolutions"

    def separable(self, dim: int, side: int, own: dict[str, Any]) -> Branch:
        """1x1, depthwise and 1x1 convolutions."""
        raise NotImplementedError

    def attending(self, dim: int, own: dict[str, Any]) -> list[Branch]:
        """The branches of a block with attention."""
        raise NotImplementedError

    def assemble(
        self, widths: Sequence[int], depths: Sequence[int], activation: str, kind: str
    ) -> None:
        """Add stem, blocks and head.

        Args:
            widths: of the first stages; the maps of the first one are half as wide before.
            depths: blocks of the last two stages.
            activation: of the stem's convolutions.
            kind: neurons of the blocks with attention, and before the head.
        """
        listed(widths=widths, depths=depths)
        check(len(widths) == 3, "widths", widths, "three widths")
        check(len(depths) == 2, "depths", depths, "two depths")
        for width in widths:
            at_least_one(widths=width)
        for depth in depths:
            at_least_one(depths=depth)
        check(widths[0] % 2 == 0, "widths", widths[0], "an even first width")
        check(max(depths) <= 1000, "depths", max(depths), "at most 1,000 blocks")
        dims = [widths[0] // 2, *widths, self.embed_dim]
        own: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        inner: dict[str, Any] = {**own, "activation": kind}
        downs = [
            Branch(
                make_activation(activation, self.neuron) if i else None,
                [ConvLayer(before, dim, kernel_size=side, stride=stride, bias=True)],
            )
            for i, (before, dim, side, stride) in enumerate(
                zip([self.in_channels, *dims], dims, BEFORE, STRIDES, strict=False)
            )
        ]
        grids = [(self.image_size[0] // 2**i, self.image_size[1] // 2**i) for i in range(1, 5)]
        stages = [
            [MetaBlock(self._convolving(dim, own), grids[i]) for _ in range(2 if i == 2 else 1)]
            for i, dim in enumerate(dims[:3])
        ]
        last = [
            [MetaBlock(self.attending(dim, inner), grids[3]) for _ in range(depth)]
            for dim, depth in zip(dims[3:], depths, strict=True)
        ]
        self.stem = MetaStem(self.in_channels, downs, [*stages, last[0]], **own)
        self.build(last[1], head_fires=True, activation=kind)

    def _convolving(self, dim: int, own: dict[str, Any]) -> list[Branch]:
        hidden = self._hidden(dim)
        wide = [ConvLayer(dim, hidden, **own), ConvLayer(hidden, dim)]
        return [self.separable(dim, 7, own), Branch(make_activation(**_by(own)), wide)]

    def mlp(self, dim: int, own: dict[str, Any]) -> Branch:
        """The MLP of a block with attention."""
        hidden = self._hidden(dim)
        units = [LinearUnit(dim, hidden, **own), LinearUnit(hidden, dim, current=True)]
        return Branch(make_activation(**_by(own)), units)

    def _hidden(self, dim: int) -> int:
        hidden = int(dim * self._block["mlp_ratio"])
        at_least_one(mlp_ratio=hidden)
        return hidden


def _by(own: dict[str, Any]) -> dict[str, Any]:
    return {"kind": own["activation"], "neuron": own["neuron"]}


class MetaSpikeFormer(MetaFormer):
    """Spike-Driven Transformer v2: attention whose linear maps are RepConvs.

    Args:
        num_classes, T, mlp_ratio, attn_scale, attn_threshold, options: as of
            :class:`SpikingTransformer`.
        embed_dim, num_heads: width of the last stage; heads of the last two.
        widths: of the first stages; the maps of the first one are half as wide before.
        depths: blocks of the last two stages.
        activation: of the stem's convolutions.

    No token can leave: convolutions read its neighbours.

    Source: Yao et al., ICLR 2024, arXiv 2404.03663; sizes and scales from the published code.
    """

    published = META_SPIKEFORMER

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        widths: Sequence[int] = (96, 192, 384),
        depths: Sequence[int] = (6, 2),
        activation: str = "lif",
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        self.assemble(widths, depths, activation, "lif")

    def separable(self, dim: int, side: int, own: dict[str, Any]) -> Branch:
        """1x1, depthwise and 1x1 convolutions, no neuron between the last two."""
        inner = 2 * dim
        units = [
            ConvLayer(dim, inner, kernel_size=1, **own),
            ConvLayer(inner, inner, kernel_size=side, groups=inner, norm=False),
            ConvLayer(inner, dim, kernel_size=1),
        ]
        return Branch(make_activation(**_by(own)), units)

    def attending(self, dim: int, own: dict[str, Any]) -> list[Branch]:
        """Attention and MLP."""
        sizes = {name: self._block[name] for name in ("scale", "attn_threshold")}
        attn = RepAttention(dim, self.num_heads, self.neuron, **sizes)
        return [Branch(make_activation(**_by(own)), [attn]), self.mlp(dim, own)]


class ESpikeFormer(MetaFormer):
    """Spike-Driven Transformer v3: its neurons put out whole numbers from 0 to 4.

    Args:
        num_classes, T, mlp_ratio, options: as of :class:`SpikingTransformer`.
        embed_dim, num_heads, widths, depths: as of a :class:`MetaSpikeFormer`.
        v_ratio: width of v over that of q and k.
        activation: of the stem's convolutions; the blocks with attention keep ``ilif``.

    Neurons have no state, and a number stands for as many spikes: every step is computed by itself,
    and that of an image once. Numbers are 4 times those of the published code, which divides them
    by 4: the epsilon of every normalisation behind them is 16 times its own, with the same result.
    No token can leave, as convolutions read its neighbours; behind those of a block it can stop.

    Source: Yao et al., TPAMI 2025, arXiv 2411.16061; sizes and scales from the published code.
    """

    published = E_SPIKEFORMER
    stops_tokens = True

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 1,
        *,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (6, 2),
        v_ratio: int = 4,
        activation: str = "ilif",
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        for field in {"attn_scale", "attn_threshold"} & options.keys():
            check(False, field, options[field], "left out: it follows from the width of a head")
        if activation == "ilif" and (unread := _CONSTANTS & options.keys()):
            log.warning("neurons of whole numbers do not read %s", ", ".join(sorted(unread)))
        at_least_one(v_ratio=v_ratio)
        self._v_ratio = v_ratio
        self.assemble(widths, depths, activation, "ilif")
        for name, unit in self.named_modules():
            if isinstance(unit, ConvLayer | LinearUnit) and name != "stem.downs.0.units.0":
                unit.norm.eps *= Integer.levels**2

    def separable(self, dim: int, side: int, own: dict[str, Any]) -> Branch:
        """1x1, depthwise and 1x1 convolutions, a neuron before each."""
        inner = 2 * dim
        units = [
            ConvLayer(dim, inner, kernel_size=1, **own),
            ConvLayer(inner, inner, kernel_size=side, groups=inner, **own),
            ConvLayer(inner, dim, kernel_size=1),
        ]
        return Branch(make_activation(**_by(own)), units)

    def attending(self, dim: int, own: dict[str, Any]) -> list[Branch]:
        """Convolutions, attention and MLP."""
        scale = 2 * (dim / self.num_heads) ** -0.5 / Integer.levels**3
        sizes: dict[str, Any] = {"scale": scale, "v_ratio": self._v_ratio, "bias": False}
        attn = WideAttention(dim, self.num_heads, current=True, **sizes, **own)
        attended = Branch(make_activation(**_by(own)), [Attended(attn)])
        return [self.separable(dim, 3, own), attended, self.mlp(dim, own)]


TOY = {"widths": (8, 16, 24), "embed_dim": 32, "depths": (1, 1), "num_heads": 2, "mlp_ratio": 2.0}


def _imagenet(widths: tuple[int, ...], dim: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    sizes = {"widths": widths, "embed_dim": dim, "image_size": 224, "num_classes": 1000}
    return {**sizes, **kwargs}


@register_model
def sdt2_imagenet_8_384(**kwargs: Any) -> MetaSpikeFormer:
    """Meta-SpikeFormer-8-384 for 224x224 RGB images, T 4 (31,333,864 parameters)."""
    return MetaSpikeFormer(**_imagenet((96, 192, 384), 480, kwargs))


@register_model
def sdt2_imagenet_8_512(**kwargs: Any) -> MetaSpikeFormer:
    """Meta-SpikeFormer-8-512 for 224x224 RGB images, T 4 (55,350,248 parameters)."""
    return MetaSpikeFormer(**_imagenet((128, 256, 512), 640, kwargs))


@register_model
def sdt2_imagenet_8_768(**kwargs: Any) -> MetaSpikeFormer:
    """Meta-SpikeFormer-8-768 for 224x224 RGB images, T 4 (123,741,160 parameters)."""
    return MetaSpikeFormer(**_imagenet((192, 384, 768), 960, kwargs))


@register_model
def sdt2_toy(**kwargs: Any) -> MetaSpikeFormer:
    """A Meta-SpikeFormer under 60 k weights for 32x32 images: documentation, tests."""
    return MetaSpikeFormer(**{**TOY, **kwargs})


@register_model
def sdt3_imagenet_t(**kwargs: Any) -> ESpikeFormer:
    """E-SpikeFormer-T for 224x224 RGB images, T 1 (2,702,048 parameters)."""
    return ESpikeFormer(**_imagenet((24, 48, 96), 128, kwargs))


@register_model
def sdt3_imagenet_s(**kwargs: Any) -> ESpikeFormer:
    """E-SpikeFormer-S for 224x224 RGB images, T 1 (5,105,608 parameters)."""
    return ESpikeFormer(**_imagenet((32, 64, 128), 192, kwargs))


@register_model
def sdt3_imagenet_m(**kwargs: Any) -> ESpikeFormer:
    """E-SpikeFormer-M for 224x224 RGB images, T 1 (10,023,112 parameters)."""
    return ESpikeFormer(**_imagenet((48, 96, 192), 240, kwargs))


@register_model
def sdt3_imagenet_l(**kwargs: Any) -> ESpikeFormer:
    """E-SpikeFormer-L for 224x224 RGB images, T 1 (18,987,504 parameters)."""
    return ESpikeFormer(**_imagenet((64, 128, 256), 360, kwargs))


@register_model
def sdt3_toy(**kwargs: Any) -> ESpikeFormer:
    """An E-SpikeFormer under 75 k weights for 32x32 images: documentation, tests."""
    return ESpikeFormer(**{**TOY, **kwargs})
