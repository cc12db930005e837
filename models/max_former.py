"""Max-Former (Fang et al., NeurIPS 2025, arXiv 2505.18608): maxima and convolutions, then SSA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.layers.attention import EncoderBlock, SpikingMLP
from spikeformer_lt.layers.inputs import listed
from spikeformer_lt.layers.neuron import make_activation
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.stems import read_on
from spikeformer_lt.layers.units import Chain, ConvLayer, ConvUnit, Reads, emitted, map_rows
from spikeformer_lt.models.qkformer import DVS, HierarchicalStem, Plan, stage_plans
from spikeformer_lt.models.spikformer_convert import MAX_FORMER
from spikeformer_lt.models.spiking_transformer import SpikingTransformer
from spikeformer_lt.registry import register_model

LATER: Plan = ((1, "pool"), (1, ""))
LAYOUTS: dict[str, tuple[Plan, int, Plan]] = {
    "cifar": (((1 / 2, ""), (1, "")), 1, LATER),
    "dvs": (DVS, 2, LATER),
    "imagenet": (((1 / 2, "stride"), (1, "stride"), (1, "")), 1, LATER),
}
"""As of a QKFormer; shortcuts of the later embeddings are max-pooled."""


class MembraneEmbedding(nn.Module):
    """3x3 convolutions of spikes, and a 1x1 shortcut around the last of them; currents are added.

    A single convolution has no shortcut.

    Args:
        in_channels: of the maps.
        plan: width of each convolution, and "pool" or "stride" where it halves the map.
        begin: convolutions before the shortcut begins; 0 of a stream of currents, which a neuron
            fires first.
        stride: of a single convolution.
        options: activation and neuron, as of a :class:`ConvUnit`.

    Shape: in ``[T|1, B, H, W, C]`` -> out ``[T|1, B, H', W', D]``.

    Source: Fang et al., arXiv 2505.18608, section 4 and the published code (Embed-Orig, -Max).
    """

    def __init__(
        self,
        in_channels: int,
        plan: Sequence[tuple[int, str]],
        begin: int,
        stride: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        widths, self.begin = [in_channels, *(width for width, _ in plan)], begin
        halves = [how != "" for _, how in plan]
        self.act = None if begin else make_activation(options["activation"], options["neuron"])
        ways: list[dict[str, Any]] = [
            {"pool": how == "pool", "stride": 2 if how == "stride" else 1} for _, how in plan
        ]
        before: Any = {"pool_before_act": True, **options}
        self.stages = nn.ModuleList(
            ConvUnit(widths[i], widths[i + 1], **way, **before) for i, way in enumerate(ways[:-1])
        )
        self.stages.append(ConvLayer(widths[-2], widths[-1], stride=ways[-1]["stride"] * stride))
        sizes: dict[str, Any] = {
            "kernel_size": 1,
            "stride": 2 ** sum(halves[begin:]) if begin else 1,
        }
        shortcut = len(plan) > 1
        self.shortcut = ConvLayer(widths[begin], widths[-1], **sizes) if shortcut else None
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.pools = ways[-1]["pool"], not begin  # of the last convolution, of the shortcut
        self.dim, self.stride = widths[-1], stride * 2 ** sum(halves)

    def chains(self) -> list[Chain]:
        """The convolutions before the shortcut, and those that it goes around."""
        names = [f"stages.{i}" for i in range(len(self.stages))]
        parts = names[: self.begin], names[self.begin :]
        return [Chain(tuple(part)) for part in parts if len(part) > 1]

    def emit(self, reads: Reads, residual: str) -> Reads:
        """Tell the units what they read; the output is real."""
        if self.act is not None:
            reads = emitted(self.act)
        reads = read_on(self.stages[: self.begin], reads)
        if self.shortcut is not None:
            self.shortcut.reads = reads
        read_on(self.stages[self.begin :], reads)
        return "real"

    def forward(self, rows: Tensor, T: int, *how: Any) -> tuple[Tensor, Tensor]:
        """The sum of the currents of both paths, twice: tokens are currents themselves."""
        straight = rows = rows if self.act is None else self.act(rows, T)
        for i, stage in enumerate(self.stages):
            straight = rows if i == self.begin else straight
            found = call(stage, rows, T)
            rows = found if i + 1 == len(self.stages) else found[0]
        tokens = map_rows(rows, self.pool) if self.pools[0] else rows
        if self.shortcut is not None:
            around = call(self.shortcut, straight, T)
            tokens = tokens + (map_rows(around, self.pool) if self.pools[1] else around)
        return tokens, tokens


class MembraneStages(HierarchicalStem):
    """Embeddings that add currents, with blocks between them."""

    residuals = ()

    def firing(self) -> list[Any]:
        """The units with an activation, and the embeddings whose own is before them."""
        own: list[Any] = [e for e in self.embeddings if e.act is not None]
        return [*super().firing(), *own]


class DepthwiseMixer(nn.Module):
    """A depthwise convolution over the places of tokens.

    Args:
        dim, kernel_size: width D and odd side of the kernels.
        grid: rows and columns of the tokens.

    Shape: spikes ``[T|1, B, N, D]`` -> currents of the same shape.
    """

    def __init__(self, dim: int, kernel_size: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.proj = ConvLayer(dim, dim, kernel_size=kernel_size, groups=dim, bias=True)

    def set_reads(self, reads: Reads) -> None:
        """Tell the convolution what values it reads."""
        self.proj.reads = reads

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Convolve the map of the tokens."""
        return self.proj(tokens.unflatten(2, self.grid), T).flatten(2, 3)


class MaxFormer(SpikingTransformer):
    """Stages of half the side and twice the width: early ones convolve, the last has SSA.

    Args:
        num_classes, T, embed_dim, num_heads, mlp_ratio, attn_scale, attn_threshold, options: as of
            :class:`SpikingTransformer`; the last stage has these heads and this width.
        depths: blocks of each stage.
        layout: convolutions and pools of the embeddings, one of LAYOUTS.
        mixers: side of the depthwise kernels of each stage but the last, 0 for none.
        attention: of the last stage: ``ssa``, or of the other kinds in layers.attention.
        activation: of the embeddings.
        stem_convs: 1 leaves one convolution in each embedding, and no shortcut: a control.

    The stream is real, and a LIF fires before the head. Tokens can leave before the last stage. The
    stem is all before it: its units are those of the embeddings.
    """

    published = MAX_FORMER

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        depths: Sequence[int] = (1, 1, 2),
        layout: str = "cifar",
        mixers: Sequence[int] = (0, 3),
        attention: str = "ssa",
        activation: str = "lif",
        stem_convs: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        plans = stage_plans(LAYOUTS, layout, depths, self.embed_dim, stem_convs)
        listed(mixers=mixers)
        odd = all(side == 0 or (side in range(1, 100, 2) and side is not True) for side in mixers)
        rule = "0 or an odd side below 100 for each of the stages in depths but the last"
        check(odd and len(mixers) + 1 == len(depths), "mixers", mixers, rule)
        kinds: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        channels, embeddings, stages, stride = self.in_channels, [], [], 1
        for i, (plan, begin, step) in enumerate(plans):
            embeddings.append(MembraneEmbedding(channels, plan, begin, step, **kinds))
            channels, stride = plan[-1][0], stride * embeddings[-1].stride
            if i + 1 < len(depths):
                stages.append(self._mixing(depths[i], channels, mixers[i], stride))
        self.stem = MembraneStages(self.in_channels, embeddings, stages, **kinds)
        self.build(self.make_blocks(depths[-1], attention, residual="ms"), head_fires=True)

    def _mixing(self, depth: int, dim: int, side: int, stride: int) -> list[EncoderBlock]:
        """Blocks of an early stage."""
        check(depth <= 1000, "depths", depth, "at most 1,000 blocks")
        height, width = (size // stride for size in self.image_size)
        own: dict[str, Any] = {"neuron": self.neuron}
        return [
            EncoderBlock(
                DepthwiseMixer(dim, side, (height, width)) if side else None,
                SpikingMLP(dim, int(dim * self._block["mlp_ratio"]), current=True, **own),
                "ms",
                **own,
            )
            for _ in range(depth)
        ]


def sized(defaults: dict[str, Any], kwargs: dict[str, Any]) -> MaxFormer:
    """Make a Max-Former of a preset's sizes, but for what `kwargs` say."""
    return MaxFormer(**{**defaults, **kwargs})


@register_model
def maxformer_cifar(**kwargs: Any) -> MaxFormer:
    """Max-Former-4-384 for 32x32 RGB images, T 4 (6,568,282 parameters at 10 classes)."""
    return sized({"embed_dim": 384}, kwargs)


@register_model
def maxformer_dvs(**kwargs: Any) -> MaxFormer:
    """Max-Former-2-256 for 128x128 event frames, T 16 (1,950,602 parameters at 10 classes)."""
    sizes = {"embed_dim": 256, "depths": (1, 1), "num_heads": 16, "T": 16, "in_channels": 2}
    return sized({**sizes, "image_size": 128, "layout": "dvs", "mixers": (3,)}, kwargs)


def _imagenet(dim: int, kwargs: dict[str, Any]) -> MaxFormer:
    sizes = {"embed_dim": dim, "num_heads": dim // 64, "depths": (1, 2, 7), "mixers": (7, 5)}
    return sized({**sizes, "layout": "imagenet", "image_size": 224, "num_classes": 1000}, kwargs)


@register_model
def maxformer_imagenet_10_384(**kwargs: Any) -> MaxFormer:
    """Max-Former-10-384 for 224x224 RGB images, T 4 (16,237,240 parameters)."""
    return _imagenet(384, kwargs)


@register_model
def maxformer_imagenet_10_512(**kwargs: Any) -> MaxFormer:
    """Max-Former-10-512 for 224x224 RGB images, T 4 (28,653,480 parameters)."""
    return _imagenet(512, kwargs)


@register_model
def maxformer_imagenet_10_768(**kwargs: Any) -> MaxFormer:
    """Max-Former-10-768 for 224x224 RGB images, T 4 (63,992,200 parameters)."""
    return _imagenet(768, kwargs)


@register_model
def maxformer_toy(**kwargs: Any) -> MaxFormer:
    """A Max-Former under 60 k weights for 32x32 images: documentation, tests, small machines."""
    return sized({"embed_dim": 32, "depths": (1, 1, 1), "num_heads": 2, "mlp_ratio": 2.0}, kwargs)


@register_model
def maxformer_digits(**kwargs: Any) -> MaxFormer:
    """Max-Former of widths 16, 32, 64 for 16x16 images (16 tokens): digits on small machines."""
    sizes = {"embed_dim": 64, "depths": (1, 1, 1), "num_heads": 4, "mlp_ratio": 2.0}
    return sized({**sizes, "image_size": 16}, kwargs)
