"""Spiking transformers: a stem, encoder blocks on its tokens, and a head on their mean."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.attention import EncoderBlock
from spikeformer_lt.layers.halting import HaltingNeuron, check_halting, run_halting, until_sure
from spikeformer_lt.layers.inputs import SpikingClassifier, at_least_one, finite
from spikeformer_lt.layers.neuron import (
    LIF,
    Heaviside,
    NeuronConfig,
    carried,
    carry,
    make_activation,
)
from spikeformer_lt.layers.patches import (
    PatchSelect,
    StagedSelect,
    check_needs,
    check_stages,
    check_stops,
    check_unhalted,
    gather_tokens,
    narrowed,
    through,
)
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.stems import SpikingStem, StemUnit, in_a_row, read_on, stem_stages
from spikeformer_lt.layers.units import Chain, ConvLayer, ConvUnit, Reads, chains_of_parts

log = logging.getLogger(__name__)


class CurrentStem(SpikingStem):
    """3x3 convolutions, each but the last followed by its neuron: the tokens are currents.

    Args:
        in_channels, dim: channels of the input; width D of maps of D/8, D/4, D/2, D channels.
        pools: which of the four maps are max-pooled.
        convs, activation, neuron: as of a :class:`ConvPEP`.
    """

    residuals = ()
    fired = 4
    """Of the four stages those that fire; the last convolution is the fourth, or one behind it."""

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        pools: Sequence[bool] = (False, False, True, True),
        convs: int = 4,
        activation: str = "lif",
        neuron: NeuronConfig | None = None,
    ) -> None:
        sizes = stem_stages(in_channels, dim, pools, convs)
        super().__init__(in_channels, dim, activation, "", neuron or NeuronConfig())
        self.stride = 2 ** sum(pools)
        self.stages = nn.ModuleList(
            ConvUnit(**size, activation=activation, neuron=self.neuron)
            for size in sizes[: len(sizes) - 4 + self.fired]
        )
        last = {"in_channels": dim, "stride": 1} if self.fired == 4 else sizes[-1]
        self.last = ConvLayer(last["in_channels"], dim, stride=last["stride"])

    def units(self) -> list[StemUnit]:
        """The units in the order of the data."""
        return in_a_row([*self.stages, self.last])

    def chains(self) -> list[Chain]:
        """All of them in a row."""
        return [Chain((*(f"stages.{i}" for i in range(len(self.stages))), "last"))]

    def emit(self) -> Reads:
        """Tell the units what they read; the tokens are real."""
        self.last.reads = read_on(self.stages, "real")
        return "real"

    def currents(self, images: Tensor, T: int) -> Tensor:
        """Currents of the last convolution, ``[T|1, B, H, W, D]``."""
        rows = images.permute(0, 1, 3, 4, 2).contiguous()
        for stage in self.stages:
            rows, _ = call(stage, rows, T)
        return call(self.last, rows, T)


class SpikingTransformer(SpikingClassifier):
    """Base of the transformers; a subclass calls `build` with its stem and blocks.

    Args:
        num_classes, T: as of :class:`SpikingClassifier`.
        embed_dim, num_heads, mlp_ratio: width D, heads h and hidden/D of the last blocks.
        attn_scale, attn_threshold: of the spiking self attention.
        options: input size, and constants of every LIF, of :class:`SpikingClassifier`.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.

    Raises:
        ConfigError: a size, head count or choice that cannot be built, or an input of another
            T, size, channel count or dtype than the model's.
    """

    stem: Any  # a `layers.stems.SpikingStem`
    keeps_tokens = ""  # why no token may leave; empty where they may
    stops_tokens = False  # whether they may stop before blocks all the same
    streams = 1  # copies of the stem's tokens that go through the blocks, side by side

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        *,
        embed_dim: int = 384,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        attn_scale: float = 0.125,
        attn_threshold: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, T, **options)
        at_least_one(embed_dim=embed_dim, num_heads=num_heads)
        numbers = {"mlp_ratio": mlp_ratio, "attn_scale": attn_scale}
        for field, value in {**numbers, "attn_threshold": attn_threshold}.items():
            check(finite(value), field, value, "a finite number")
        at_least_one(**{"embed_dim * mlp_ratio": int(embed_dim * mlp_ratio)})
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self._block: dict[str, Any] = {
            "mlp_ratio": mlp_ratio, "scale": attn_scale, "attn_threshold": attn_threshold,
            "neuron": self.neuron,
        }  # fmt: skip

    def make_blocks(
        self, count: int, kind: str, dim: int | None = None, **options: Any
    ) -> list[EncoderBlock]:
        """Blocks of this network's sizes, `dim` wide; `kind` is one of ATTENTIONS."""
        check(count <= 1000, "depth", count, "at most 1,000 blocks")
        return [
            EncoderBlock.of(kind, dim or self.embed_dim, self.num_heads, **self._block, **options)
            for _ in range(count)
        ]

    def build(
        self, blocks: Iterable[nn.Module], head_fires: bool = False, activation: str = "lif"
    ) -> None:
        """Add the blocks behind the stem, and the head, which `head_fires` puts neurons before."""
        self.stem.check_size(*self.image_size)
        self.patch: PatchSelect | None = None
        self.confidence = 0.0  # at which an image stops in evaluation; 0 runs all steps
        self.blocks: Any = nn.ModuleList(blocks)
        self.stem.feed(self.blocks)
        self.head_act = make_activation(activation, self.neuron) if head_fires else None
        acts = (getattr(block.attn, "attn_act", None) for block in self.encoder_blocks())
        if (act := next(filter(None, acts), None)) is not None:
            rest = getattr(act, "v_reset", None) or 0.0
            if isinstance(act, LIF | Heaviside) and act.v_threshold <= rest:
                told = (
                    "attn_threshold=%g is not above v_reset=%g: the attention fires at every step"
                )
                log.warning(told, act.v_threshold, rest)
        self.make_head(self.streams * self.embed_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the head anew from a normal distribution of deviation 0.02, cut at 2."""
        draw_linear(self.head)

    def chains(self) -> list[Chain]:
        """Units that one other unit reads: of the stem and of every MLP."""
        return chains_of_parts(self)

    @property
    def num_tokens(self) -> int:
        """Tokens N before any patch is removed."""
        height, width = self.image_size
        return (height // self.stem.stride) * (width // self.stem.stride)

    def set_patch(self, patch: PatchSelect | None) -> None:
        """Select tokens behind the stem, or all of them with None, in place.

        Raises:
            ConfigError: a score that reads what the stem does not give; a model whose tokens are
                all needed.
        """
        if patch is not None:
            check_needs(patch.score, self, self.stem)
            if patch.rescale:
                check_unhalted(self)
        self.patch = patch
        for block in self.encoder_blocks():
            block.stop = block.select = None
        self._rescale([patch] * len(self.blocks))

    def encoder_blocks(self) -> list[Any]:
        """All blocks in the order of the data, those inside of the stem first."""
        return [*self.stem.inner_blocks(), *self.blocks]

    def set_stops(self, stops: Sequence[PatchSelect]) -> None:
        """Let tokens stop before each block, in place: see :func:`layers.patches.through`.

        `stops` has one selection for each of `encoder_blocks`; none of tokens behind the stem
        stays.

        Raises:
            ConfigError: another count; a score that is none of STOPS, or pixel space; a block, or a
                model, that reads the neighbours of a token.
        """
        check_stops(self, stops)
        self.set_patch(None)
        for block, stop in zip(self.encoder_blocks(), stops, strict=True):
            block.stop = stop
        self._rescale(stops)

    def _rescale(self, selections: Sequence[PatchSelect | None]) -> None:
        """Let the last blocks, one for each selection, multiply their sums where that asks so."""
        blocks, count = self.encoder_blocks(), len(self.blocks)
        for i, own in enumerate(selections, len(blocks) - len(selections)):
            attn = blocks[i].attn
            if attn is None:
                continue
            asked, share = (False, 0.0) if own is None else (own.rescale, own.sparsity)
            fits = i >= len(blocks) - count and getattr(attn, "rescales", False)
            if asked and share > 0 and not fits:
                told = "rescale=True does nothing in block %d: its %s is no q k^T v behind the stem"
                log.warning(told, i, type(attn).__name__)
            attn.rescale_to = self.num_tokens if asked and fits else None

    def set_stages(self, stages: Mapping[int, StagedSelect]) -> None:
        """Let tokens leave before some of `blocks`, by their number, in place.

        None of tokens behind the stem stays.

        Raises:
            ConfigError: a number of no block; blocks of another attention than q k^T v.
        """
        check_stages(self, stages)
        self.set_patch(None)
        for i, stage in stages.items():
            self.blocks[i].select = stage

    def set_halting(self, halts: Sequence[HaltingNeuron] = (), confidence: float = 0.0) -> None:
        """Let tokens halt in `blocks`, and whole images at a time step, in place.

        Args:
            halts: one for each of `blocks`: see :func:`layers.halting.run_halting`; empty for none.
            confidence: see :func:`layers.halting.until_sure`; 0 for all steps.

        Raises:
            ConfigError: another count; blocks of an attention with neurons between tokens; a model
                that reads the neighbours of a token, or has another selection before its blocks.
        """
        count = len(self.blocks)
        check(len(halts) in (0, count), "halts", len(halts), f"one for each of {count} blocks")
        check_halting(self, len(halts) > 0, confidence)
        for i, block in enumerate(self.blocks):
            block.halt = halts[i] if halts else None
        self.confidence = confidence

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens behind the last block, ``[B, T|1, N, D]``, of images or frames."""
        images = self.time_first(x)
        return self._encoded(*self.stem_tokens(images), images).transpose(0, 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``[B, T, K]`` of those tokens, or what the head reads, ``[B, T, D]``."""
        mean = self._pooled(x.transpose(0, 1))
        found = mean if pre_logits else self.head(mean)
        return self._batch_first(found.expand(self.T, -1, -1))

    def classify(self, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of ``[T|1, B, C, H, W]``."""
        if self.confidence and not self.training and carried() is None:
            return until_sure(self, images)
        return self.classify_tokens(*self.stem_tokens(images), images)

    def stem_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens ``[T|1, B, N, D]`` of images, and what the selection reads beside them.

        For a selection in pixel or input space they are a measurement: no graph, no statistics
        moved.
        """
        if self.patch is not None and self.patch.space == "input":
            return self.patch.measure(images, self.T, self.num_tokens)
        inputs = (images, self.T, "" if self.patch is None else self.patch.score.needs)
        out: tuple[Tensor, Tensor]
        if self.training and self.patch is not None and self.patch.space == "pixel":
            buffers = {name: value.clone() for name, value in self.stem.named_buffers()}
            with torch.no_grad():
                out = functional_call(self.stem, buffers, inputs)
        else:
            out = self.stem(*inputs)
        return out

    def classify_tokens(self, tokens: Tensor, current: Tensor, images: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of the stem's outputs for `images`."""
        return self.classify_chosen(self._select(tokens, current, images), images)

    def classify_chosen(self, tokens: Tensor, images: Tensor | None = None) -> Tensor:
        """Logits ``[T, B, K]`` of the tokens that come to the blocks; `images` are for stops."""
        logits: Tensor = self.head(self._pooled(self._behind(tokens, images)))
        return logits.expand(self.T, -1, -1)

    def _encoded(self, tokens: Tensor, current: Tensor, images: Tensor) -> Tensor:
        return self._behind(self._select(tokens, current, images), images)

    def _behind(self, tokens: Tensor, images: Any) -> Tensor:
        tokens = tokens if self.streams == 1 else tokens.repeat(1, 1, 1, self.streams)
        if getattr(self.blocks[0], "halt", None) is not None:
            return run_halting(self.blocks, tokens, self.T)
        policy: Tensor | None = None
        for block in self.blocks:
            tokens, policy = narrowed(block, tokens, policy)
            tokens = through(block, tokens, self.T, images, policy)
        return tokens

    def _pooled(self, tokens: Tensor) -> Tensor:
        mean = tokens.mean(2)
        return mean if self.head_act is None else self.head_act(mean, self.T)

    def embed(self, images: Tensor) -> Tensor:
        """Stem and patch selection: ``[T|1, B, C, H, W]`` -> kept tokens ``[T|1, B, N', D]``.

        Raises:
            ConfigError: a selection that rescales the attention, not put in by `set_patch`.
        """
        return self._select(*self.stem_tokens(images), images)

    def _select(self, tokens: Tensor, current: Tensor, images: Tensor) -> Tensor:
        patch = self.patch
        if patch is None:
            return tokens
        if patch.rescale and self.blocks[0].attn.rescale_to is None:
            raise ConfigError(
                "a selection with rescale=True is put in by model.set_patch(selection)"
            )
        index, multiplier = patch(tokens, current, images, self.T)
        if patch.space != "token":
            with carry(None):
                masked = patch.mask_pixels(images, index, self.num_tokens)
                tokens = self.stem(masked, self.T)[0]
        tokens = gather_tokens(tokens, index)
        return tokens if multiplier is None else tokens * multiplier


def draw_linear(*parts: nn.Module) -> None:
    """Draw linear maps anew from a normal distribution of deviation 0.02, cut at 2; biases 0."""
    draw_normal(nn.Linear, *parts)


def draw_normal(kinds: Any, *parts: nn.Module) -> None:
    """The same of the layers of some kinds."""
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
