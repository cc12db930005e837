"""QKFormer (Zhou et al., NeurIPS 2024, arXiv 2403.16552): stages of token attention, then SSA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.layers.attention import EncoderBlock, TokenAttention, join, joined
from spikeformer_lt.layers.inputs import at_least_one, listed
from spikeformer_lt.layers.neuron import NeuronConfig
from spikeformer_lt.layers.patches import through
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.stems import SpikingStem, StemUnit, in_a_row, read_on
from spikeformer_lt.layers.units import Chain, ConvLayer, ConvUnit, Reads
from spikeformer_lt.models.spikformer_convert import QKFORMER
from spikeformer_lt.models.spiking_transformer import SpikingTransformer
from spikeformer_lt.registry import register_model

Plan = tuple[tuple[float, str], ...]
"""Of each convolution its width over that of the stage, and "pool", "stride" or no halving."""
DVS: Plan = ((1 / 8, ""), (1 / 4, "pool"), (1 / 2, "pool"), (1, "pool"))
LAYOUTS: dict[str, tuple[Plan, int, Plan]] = {
    "cifar": (((1 / 2, ""), (1, "")), 1, ((1, ""), (1, "pool"))),
    "dvs": (DVS, 2, ((1, ""), (1, "pool"))),
    "imagenet": (((1 / 2, "pool"), (1, "pool"), (1, "")), 1, ((1, "pool"), (1, ""))),
}
"""For each data set: the first embedding, where its shortcut begins, and the later ones."""


def stage_plans(
    layouts: dict[str, tuple[Plan, int, Plan]],
    layout: str,
    depths: Sequence[int],
    dim: int,
    convs: int | None = None,
) -> list[tuple[list[tuple[int, str]], int, int]]:
    """Plan, begin and stride of the embedding of each stage, the last `dim` wide.

    With `convs` 1 each has one convolution, which strides over the pools of those left out.

    Raises:
        ConfigError: an unknown layout, sizes that it does not divide, or another `convs`.
    """
    rule = (
        "1, for one convolution in each embedding, or left out: each has 2 or more and a shortcut"
    )
    check(convs is None or (type(convs) is int and convs == 1), "stem_convs", convs, rule)
    check(layout in tuple(layouts), "layout", layout, f"one of {', '.join(layouts)}")
    listed(depths=depths)
    at_least_one(**{"len(depths)": len(depths)})
    for depth in depths:
        at_least_one(depths=depth)
    first, begin, later = layouts[layout]
    narrow = 2 ** (len(depths) - 1)
    parts = narrow * max(round(1 / share) for share, _ in first)
    rule = f"a multiple of {parts}, for {len(depths)} stages"
    check(dim % parts == 0, "embed_dim", dim, rule)
    widths = [dim // narrow * 2**i for i in range(len(depths))]
    plans = [
        (
            [(int(share * width), how) for share, how in (later if i else first)],
            0 if i else begin,
            1,
        )
        for i, width in enumerate(widths)
    ]
    if convs is None:
        return plans
    halves = [sum(how != "" for _, how in plan) for plan, _, _ in plans]
    return [
        ([(width, "pool" if n else "")], int(i == 0), 2 ** max(0, n - 1))
        for i, (width, n) in enumerate(zip(widths, halves, strict=True))
    ]


class Embedding(nn.Module):
    """3x3 convolutions, and a 1x1 shortcut around the last of them, whose spikes join theirs.

    A single convolution has no shortcut.

    Args:
        in_channels: of the maps.
        plan: width of each convolution, and "pool" where its current is max-pooled before the
            neuron.
        begin: convolutions before the shortcut begins.
        stride: of the first convolution.
        options: activation and neuron, as of a :class:`ConvUnit`.

    Shape: in ``[T|1, B, H, W, C]`` -> out ``[T|1, B, H', W', D]``.

    Source: Zhou et al., QKFormer, NeurIPS 2024, arXiv 2403.16552, section 3.4 (SPEDS).
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
        self.stages = nn.ModuleList(
            ConvUnit(
                *widths[i : i + 2], pool=how == "pool", pool_before_act=True,
                stride=1 if i else stride, **options,
            )
            for i, (_, how) in enumerate(plan)
        )  # fmt: skip
        around = 2 ** sum(how != "" for _, how in plan[begin:])
        sizes: dict[str, Any] = {"kernel_size": 1, "stride": around}
        shortcut = len(plan) > 1
        self.shortcut = (
            ConvLayer(widths[begin], widths[-1], **sizes, **options) if shortcut else None
        )
        self.dim, self.stride = widths[-1], stride * 2 ** sum(how != "" for _, how in plan)

    def chains(self) -> list[Chain]:
        """The convolutions before the shortcut, and those that it goes around."""
        names = [f"stages.{i}" for i in range(len(self.stages))]
        parts = names[: self.begin], names[self.begin :]
        return [Chain(tuple(part)) for part in parts if len(part) > 1]

    def emit(self, reads: Reads, residual: str) -> Reads:
        """Tell the units what they read; return the values of the output."""
        if self.shortcut is None:
            return read_on(self.stages, reads)
        self.shortcut.reads = reads = read_on(self.stages[: self.begin], reads)
        reads = read_on(self.stages[self.begin :], reads)
        return joined(reads, residual) if self.shortcut.fires else "real"

    def forward(
        self, rows: Tensor, T: int, residual: str, signed: bool, need_current: bool
    ) -> tuple[Tensor, Tensor]:
        """Spikes of both paths, joined; and the current of the last convolution, if asked for."""
        straight = current = rows
        for i, stage in enumerate(self.stages):
            straight = rows if i == self.begin else straight
            rows, current = call(stage, rows, T, need_current and i + 1 == len(self.stages))
        if self.shortcut is not None:
            rows = join(rows, call(self.shortcut, straight, T), residual, signed)
        return rows, current


class HierarchicalStem(SpikingStem):
    """Embeddings with encoder blocks between them: all of a network before its last stage.

    Args:
        in_channels: of the input.
        embeddings: one for each stage; each reads the maps of the stage before.
        stages: the blocks of each stage but the last, on the tokens of its maps.
        activation, residual, neuron: as of a :class:`ConvPEP`, of each embedding.
    """

    def __init__(
        self,
        in_channels: int,
        embeddings: Sequence[Any],
        stages: Sequence[Sequence[EncoderBlock]],
        *,
        activation: str = "lif",
        residual: str = "add",
        neuron: NeuronConfig | None = None,
    ) -> None:
        dim: int = embeddings[-1].dim
        super().__init__(in_channels, dim, activation, residual, neuron or NeuronConfig())
        self.embeddings = nn.ModuleList(embeddings)
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        for embedding in embeddings:
            self.stride *= embedding.stride
        last = stages[-1][-1] if stages and stages[-1] else None
        if last is not None and isinstance(last.attn, TokenAttention):
            self.gives = ("current", "gates")
        self.set_reads()

    def units(self) -> list[StemUnit]:
        """The units of the embeddings in the order of the data, each shortcut after its path."""
        found: list[StemUnit] = []
        for embedding in cast(Any, self.embeddings):
            found += in_a_row(embedding.stages, [] if found else ["first"])
            if embedding.shortcut is not None:
                found.append(StemUnit("shortcut", embedding.shortcut))
        return found

    def inner_blocks(self) -> list[EncoderBlock]:
        """Those of all stages but the last."""
        return [block for blocks in cast(Any, self.stages) for block in blocks]

    def emit(self) -> Reads:
        """Tell units and inner blocks what they read; return the values of the tokens."""
        reads: Reads = "real"
        for i, embedding in enumerate(cast(Any, self.embeddings)):
            reads = embedding.emit(reads, self.residual)
            for block in cast(Any, self.stages[i]) if i < len(self.stages) else ():
                reads = block.set_reads(reads)
        return reads

    def forward(self, images: Tensor, T: int, need: str = "") -> tuple[Tensor, Tensor]:
        """Return the tokens of the last stage, and what `need` names.

        Gates of the last token attention are summed over the places of each token.
        """
        rows = images.permute(0, 1, 3, 4, 2).contiguous()
        found, how = rows, (self.residual, self.activation == "sign")
        for i, embedding in enumerate(self.embeddings):
            last = i + 1 == len(self.embeddings)
            rows, current = embedding(rows, T, *how, last and need == "current")
            found = current if last and need == "current" else found
            if last:
                break
            size, blocks = rows.shape[2:4], cast(Any, self.stages[i])
            tokens = rows.flatten(2, 3)
            for block in blocks:
                if need == "gates" and i + 2 == len(self.embeddings) and block is blocks[-1]:
                    tokens, found = block.gated(tokens, T)
                    found = found.unflatten(2, size)
                else:
                    tokens = through(block, tokens, T, images)
            rows = tokens.unflatten(2, size)
        if need == "gates":
            height, width = rows.shape[2:4]
            found = found.unflatten(3, (width, -1)).unflatten(2, (height, -1)).sum((3, 5))
        return rows.flatten(2, 3), found.flatten(2, 3)


class QKFormer(SpikingTransformer):
    """Stages of half the side and twice the width; all but the last have token attention.

    Args:
        num_classes, T, embed_dim, num_heads, mlp_ratio, attn_scale, attn_threshold, options: as of
            :class:`SpikingTransformer`; every stage has these heads, the last this width.
        depths: blocks of each stage.
        layout: convolutions and pools of the embeddings, one of LAYOUTS.
        attention: of the last stage: ``ssa``, or of the other kinds in layers.attention.
        activation, residual: of the embeddings.
        stem_convs: 1 leaves one convolution in each embedding, and no shortcut: a control.

    Tokens can leave before the last stage. The stem is all before it: its units are those of the
    embeddings.
    """

    published = QKFORMER

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        depths: Sequence[int] = (1, 1, 2),
        layout: str = "cifar",
        attention: str = "ssa",
        activation: str = "lif",
        residual: str = "add",
        stem_convs: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        plans = stage_plans(LAYOUTS, layout, depths, self.embed_dim, stem_convs)
        kinds: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        channels, embeddings, stages = self.in_channels, [], []
        for i, (plan, begin, stride) in enumerate(plans):
            embeddings.append(Embedding(channels, plan, begin, stride, **kinds))
            channels = plan[-1][0]
            if i + 1 < len(depths):
                stages.append(self.make_blocks(depths[i], "qk", channels))
        self.stem = HierarchicalStem(
            self.in_channels, embeddings, stages, residual=residual, **kinds
        )
        self.build(self.make_blocks(depths[-1], attention))


def sized(defaults: dict[str, Any], kwargs: dict[str, Any]) -> QKFormer:
    """Make a QKFormer of a preset's sizes, but for what `kwargs` say."""
    return QKFormer(**{**defaults, **kwargs})


@register_model
def qkformer_cifar(**kwargs: Any) -> QKFormer:
    """QKFormer HST-4-384 for 32x32 RGB images, T 4 (6,706,234 parameters at 10 classes)."""
    return sized({"embed_dim": 384}, kwargs)


_DVS = {"embed_dim": 256, "depths": (1, 1), "num_heads": 16, "T": 16, "in_channels": 2,
        "image_size": 128, "layout": "dvs"}  # fmt: skip


@register_model
def qkformer_dvs(**kwargs: Any) -> QKFormer:
    """QKFormer HST-2-256 for 128x128 event frames of CIFAR10-DVS, T 16 (1,504,138 parameters)."""
    return sized({**_DVS, "mlp_ratio": 1.0}, kwargs)


@register_model
def qkformer_gesture(**kwargs: Any) -> QKFormer:
    """QKFormer HST-2-256 as coded for DVS128 Gesture, T 16 (1,999,371 parameters)."""
    return sized({**_DVS, "num_classes": 11}, kwargs)


def _imagenet(dim: int, heads: int, kwargs: dict[str, Any]) -> QKFormer:
    sizes = {"embed_dim": dim, "num_heads": heads, "depths": (1, 2, 7), "layout": "imagenet"}
    return sized({**sizes, "image_size": 224, "num_classes": 1000}, kwargs)


@register_model
def qkformer_imagenet_10_384(**kwargs: Any) -> QKFormer:
    """QKFormer HST-10-384 for 224x224 RGB images, T 4 (16,473,688 parameters)."""
    return _imagenet(384, 6, kwargs)


@register_model
def qkformer_imagenet_10_512(**kwargs: Any) -> QKFormer:
    """QKFormer HST-10-512 for 224x224 RGB images, T 4 (29,079,336 parameters)."""
    return _imagenet(512, 8, kwargs)


@register_model
def qkformer_imagenet_10_768(**kwargs: Any) -> QKFormer:
    """QKFormer HST-10-768 for 224x224 RGB images, T 4 (64,962,760 parameters)."""
    return _imagenet(768, 12, kwargs)


@register_model
def qkformer_toy(**kwargs: Any) -> QKFormer:
    """A QKFormer under 70 k weights for 32x32 images: documentation, tests, small machines."""
    return sized({"embed_dim": 32, "depths": (1, 1, 1), "num_heads": 2, "mlp_ratio": 2.0}, kwargs)


@register_model
def qkformer_digits(**kwargs: Any) -> QKFormer:
    """QKFormer of widths 16, 32, 64 for 16x16 images (16 tokens): digits on small machines."""
    sizes = {"embed_dim": 64, "depths": (1, 1, 1), "num_heads": 4, "mlp_ratio": 2.0}
    return sized({**sizes, "image_size": 16}, kwargs)
