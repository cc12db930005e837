"""QKFormer (Zhou et al., NeurIPS 2024, arXiv 2403.16552): stages of token attention, then SSA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikeformer_lt.config import check
from spikeformer_lt.layers.inputs import at_least_one, listed
from spikeformer_lt.layers.stems import Embedding, HierarchicalStem
from spikeformer_lt.models.spikformer_convert import QKFORMER
from spikeformer_lt.models.spiking_transformer import SpikingTransformer
from spikeformer_lt.registry import register_model

Plan = tuple[tuple[float, bool], ...]  # width over that of the stage, and whether it is pooled
LAYOUTS: dict[str, tuple[Plan, int, Plan]] = {
    "cifar": (((1 / 2, False), (1, False)), 1, ((1, False), (1, True))),
    "dvs": (((1 / 8, False), (1 / 4, True), (1 / 2, True), (1, True)), 2, ((1, False), (1, True))),
    "imagenet": (((1 / 2, True), (1, True), (1, False)), 1, ((1, True), (1, False))),
}
"""For each data set: the first embedding, where its shortcut begins, and the later ones."""


class QKFormer(SpikingTransformer):
    """Stages of half the side and twice the width; all but the last have token attention.

    Args:
        num_classes, T, embed_dim, num_heads, mlp_ratio, attn_scale, attn_threshold, options: as of
            :class:`SpikingTransformer`; every stage has these heads, the last this width.
        depths: blocks of each stage.
        layout: convolutions and pools of the embeddings, one of LAYOUTS.
        attention: of the last stage: ``ssa``, or of the other kinds in layers.attention.
        activation, residual: of the embeddings.

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
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        check(layout in tuple(LAYOUTS), "layout", layout, f"one of {', '.join(LAYOUTS)}")
        listed(depths=depths)
        at_least_one(**{"len(depths)": len(depths)})
        for depth in depths:
            at_least_one(depths=depth)
        first, begin, later = LAYOUTS[layout]
        narrow = 2 ** (len(depths) - 1)
        parts = narrow * max(round(1 / share) for share, _ in first)
        rule = f"a multiple of {parts}, for {len(depths)} stages"
        check(self.embed_dim % parts == 0, "embed_dim", self.embed_dim, rule)
        kinds: dict[str, Any] = {"activation": activation, "neuron": self.neuron}
        channels, embeddings, stages = self.in_channels, [], []
        for i, depth in enumerate(depths):
            width = self.embed_dim // narrow * 2**i
            plan = [(int(share * width), pool) for share, pool in (later if i else first)]
            embeddings.append(Embedding(channels, plan, 0 if i else begin, **kinds))
            if i + 1 < len(depths):
                stages.append(self.make_blocks(depth, "qk", width))
            channels = width
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
