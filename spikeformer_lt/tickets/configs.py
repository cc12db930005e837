"""Options of MultiSp; every choice that the papers leave open is a field with its default.

Published optimizers, by the name of the preset that asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from spikeformer_lt.config import check
from spikeformer_lt.layers.patches import SCORES
from spikeformer_lt.layers.stems import ACTIVATIONS, RESIDUALS
from spikeformer_lt.training.options import OptimConfig

METHODS = ("latent", "scores", "both", "magnitude", "random", "off")
SCHEDULES = ("joint", "sequential", "reverse")
MOVING = ("latent", "scores", "both")
"""Methods whose mask moves during the training."""
INITS = ("keep", "kaiming", "signed")


@dataclass(frozen=True)
class PatchConfig:
    """Level 1: patch-number sparsity."""

    sparsity: float = 0.314
    """Fraction of patches removed for each image, in [0, 1); 0 turns level 1 off."""
    score: str = "rate"
    """rate, l2, attention, tp, gumbel, or random (the control)."""
    space: str = "token"
    """token: gather after ConvPEP; pixel: also zero the removed pixels and embed again."""
    rescale: bool = False
    """Multiply attention sums by N/K for the keys that are gone."""
    selector_epochs: int = 5
    """Epochs of the attention selector; other scores need none."""

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 1, "patches.sparsity", self.sparsity, "in [0, 1)")
        _choice("patches.score", self.score, SCORES)
        _choice("patches.space", self.space, ("token", "pixel"))
        _count("patches.selector_epochs", self.selector_epochs)


@dataclass(frozen=True)
class WeightConfig:
    """Level 2: sparse and binary ConvPEP weights."""

    method: str = "latent"
    """latent: train weights through the straight-through estimator, mask the largest; scores:
    learn scores over frozen weights (the papers); both: scores over latent weights; magnitude:
    one mask from the start weights; random: the control mask; off: dense full precision."""
    sparsity: float = 0.5
    """Fraction of the prunable ConvPEP weights removed, in [0, 1)."""
    binary: bool = True
    """Binarize the kept weights to +-gain."""
    scope: str = "layer"
    """layer: the same sparsity in each convolution; global: one budget over the ConvPEP."""
    floor: float = 0.01
    """Least fraction that a global budget leaves in each layer."""
    ramp_epochs: float = 0.0
    """Epochs of a cubic ramp of the sparsity from ramp_from."""
    ramp_from: float = 0.0
    """Sparsity at which the ramp starts, in [0, 1); never above the final one."""
    gain: str = "layer"
    """One gain for each layer (biprop) or each output filter (XNOR-Net)."""
    first_conv: str = "auto"
    """auto: full precision for images, binary for event input; or binary, full. It is pruned
    in every case."""
    include_rpe: bool = True
    """Prune and binarize the position-encoding convolution (60 % of the ConvPEP) too."""
    init: str = "keep"
    """Start weights: keep what the model holds, kaiming (scaled by what is kept), or signed
    constants."""
    monotone: bool = False
    """Removed weights never return (Algorithm 1's line 10 read literally)."""
    anneal: float = 0.0
    """Final steepness of the score gradient's window around the threshold; 0 is edge-popup."""
    freeze_mask_at: float = 0.75
    """Fraction of the phase after which the mask stays as it is."""

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 1, "weights.sparsity", self.sparsity, "in [0, 1)")
        check(0 <= self.floor < 1, "weights.floor", self.floor, "in [0, 1)")
        check(0 <= self.anneal < 1e3, "weights.anneal", self.anneal, "in [0, 1000)")
        check(0 <= self.ramp_from < 1, "weights.ramp_from", self.ramp_from, "in [0, 1)")
        check(self.ramp_epochs >= 0, "weights.ramp_epochs", self.ramp_epochs, "at least 0")
        frozen = self.freeze_mask_at
        check(0 <= frozen <= 1, "weights.freeze_mask_at", frozen, "in [0, 1]")
        _choice("weights.method", self.method, METHODS)
        _choice("weights.scope", self.scope, ("layer", "global"))
        _choice("weights.gain", self.gain, ("layer", "filter"))
        _choice("weights.first_conv", self.first_conv, ("auto", "binary", "full"))
        _choice("weights.init", self.init, INITS)


@dataclass(frozen=True)
class ActivationConfig:
    """Level 3: binary ConvPEP activations."""

    kind: str = "lif"
    """lif (spiking), heaviside {0,1}, sign {-1,+1} or relu (full-precision reference)."""
    residual: str = "add"
    """add (tokens in {0,1,2}), iand or or (tokens stay {0,1})."""

    def __post_init__(self) -> None:
        _choice("activation.kind", self.kind, ACTIVATIONS)
        _choice("activation.residual", self.residual, RESIDUALS)


@dataclass(frozen=True)
class MultiSpConfig:
    """MultiSp: patches, ConvPEP weights and ConvPEP activations made sparse and binary.

    Source: arXiv 2309.13302 (abstract) and Algorithm 1 of arXiv 2311.12060. The full text of the
    first was not at hand: defaults are choices, and each run's report lists them.
    """

    preset: str = "default"
    """default: what measured best; literal: Algorithm 1 of arXiv 2311.12060, which fixes method
    scores, scope global, init kaiming, gain layer, schedule sequential, Adam at 0.1 for the
    scores and a frozen stem."""
    schedule: str = "joint"
    """joint: all levels in one training; sequential: ConvPEP ticket, patches, then encoder;
    reverse: patches with a dense ConvPEP, then its ticket."""
    dense_epochs: int = 0
    """Epochs of dense training before any level is on."""
    stem_epochs: int = 10
    """Epochs of the ConvPEP ticket search (sequential and reverse)."""
    epochs: int = 30
    """Epochs of the last training: joint, or encoder and head."""
    stem: str = "frozen"
    """After a sequential search the ConvPEP is frozen, or goes on training (finetune)."""
    distill: float = 0.0
    """Weight of distillation from the dense network, in [0, 1]; needs dense_epochs > 0."""
    patches: PatchConfig = field(default_factory=PatchConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    activation: ActivationConfig = field(default_factory=ActivationConfig)

    def __post_init__(self) -> None:
        _choice("preset", self.preset, ("default", "literal"))
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("stem", self.stem, ("frozen", "finetune"))
        for name in ("dense_epochs", "stem_epochs"):
            _count(name, getattr(self, name))
        check(self.epochs >= 1, "multisp.epochs", self.epochs, "at least 1")
        check(0 <= self.distill <= 1, "multisp.distill", self.distill, "in [0, 1]")
        if self.distill > 0 and self.dense_epochs == 0:
            check(False, "multisp.distill", self.distill, "0 unless dense_epochs > 0 (the teacher)")
        if self.preset == "default":
            self._check_ramp()

    def _check_ramp(self) -> None:
        """Refuse a ramp that the freezing of the mask would cut off below its sparsity."""
        weights = self.weights
        searched = self.epochs if self.schedule == "joint" else max(1, self.stem_epochs)
        whole = int(weights.freeze_mask_at * searched)
        check(
            weights.ramp_epochs <= whole or weights.method not in MOVING,
            "multisp.weights.ramp_epochs",
            weights.ramp_epochs,
            f"at most {whole}, as freeze_mask_at={weights.freeze_mask_at} of the {searched} epochs "
            "ends it: the mask would never reach its sparsity",
        )

    def resolved(self) -> MultiSpConfig:
        """The configuration that runs: the literal preset overrides what Algorithm 1 fixes."""
        if self.preset == "default":
            return self
        weights = replace(
            self.weights,
            method="scores",
            scope="global",
            init="kaiming",
            gain="layer",
            anneal=0.0,
            ramp_epochs=0.0,
            freeze_mask_at=1.0,
        )
        return replace(
            self, schedule="sequential", stem="frozen", dense_epochs=0, distill=0.0, weights=weights
        )


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    check(value in allowed, f"multisp.{name}", value, f"one of {', '.join(allowed)}")


def _count(name: str, value: int) -> None:
    check(value >= 0, f"multisp.{name}", value, "at least 0")


C = TypeVar("C")
ECCV22 = OptimConfig(
    opt="momentum", lr=0.3, weight_decay=5e-4, momentum=0.9, min_lr=0.0, clip_grad=0.0
)
"""SGD at 0.3, cosine to 0, batch 128: Kim et al., ECCV 2022 (arXiv 2207.01382), section 4.1."""
EDGE_POPUP = OptimConfig(
    opt="momentum", lr=0.1, score_lr=0.1, weight_decay=1e-4, momentum=0.9, min_lr=0.0, clip_grad=0.0
)
"""SGD at 0.1, cosine to 0, 100 epochs: the published settings of arXiv 1911.13299 on CIFAR-10 and
of arXiv 2103.09377 for binary weights."""
PRESETS = {
    "eccv22": ECCV22,
    "cvpr20": EDGE_POPUP,
    "iclr21": EDGE_POPUP,
    "iclr21-global": EDGE_POPUP,
}


def preset_optim(preset: str) -> OptimConfig | None:
    """Optimizer of a preset; None leaves the run's own."""
    return PRESETS.get(preset)


def with_preset(config: C, preset: str) -> C:
    """The configuration of a search with a preset by name; "default" leaves it as it is.

    Raises:
        ConfigError: the search has no such preset.
    """
    if preset == "default":
        return config
    given: Any = config
    made: C = replace(given, preset=preset)
    return made
