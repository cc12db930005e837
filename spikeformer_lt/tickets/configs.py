"""Configurations of the built-in searches.

Nothing here imports torch, so that ``--help`` and errors need not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from spikeformer_lt.config import check
from spikeformer_lt.tickets.levels import (
    MOVING,
    ActivationConfig,
    Checked,
    EncoderConfig,
    HaltingConfig,
    PatchConfig,
    WeightConfig,
)
from spikeformer_lt.training.options import Step

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spikeformer_lt.mask import Mask


@dataclass(frozen=True)
class PruneConfig:
    """Which weights may be removed: of convolutions and linear maps, never of biases or norms."""

    first_conv: bool = True
    """Prune the first convolution, which sees the image."""
    head: bool = True
    """Prune the last linear map, which gives the logits."""
    inside: tuple[str, ...] = ()
    """Only layers whose name starts with one of these; all where none is given."""
    silence: bool = False
    """Also remove BatchNorm's scale and shift where all weights of an output are gone, which would
    fire at the shift's pace; not in searches that end trained."""

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """See `tickets.prunable`."""
        from spikeformer_lt.tickets.base import prunable

        return prunable(model, self)


@dataclass(frozen=True)
class Pruning(Checked):
    """Base of searches whose ticket is trained again."""

    prune: PruneConfig = field(default_factory=PruneConfig, kw_only=True)
    control: str = field(default="none", kw_only=True)
    """none, or what the ticket is compared with: random (as many weights of each layer, at random
    places), shuffle (start weights permuted within each layer) or fresh (drawn anew)."""


@dataclass(frozen=True)
class TrainedPruning(Pruning):
    """Base of searches that end trained; under a control their mask is trained again."""

    control: str = field(default="none", kw_only=True)
    """none; start: the found mask is trained again from the weights that the search began with; or
    what that is compared with: random (as many weights of each layer, at random places), shuffle
    (start weights permuted within each layer) or fresh (drawn anew)."""
    OWN: ClassVar = {"control": ("none", "start", "random", "shuffle", "fresh")}


@dataclass(frozen=True)
class OneShotConfig(Pruning):
    """A mask by one ranking of all prunable weights."""

    sparsity: float = 0.9
    """Fraction of the prunable weights removed, in [0, 1): exactly round(sparsity * n) of n."""
    scope: str = "global"
    """global ranks all layers together; layer removes the same fraction of each."""
    floor: float = 0.0
    """Least fraction of each layer that stays, in [0, 1]."""

    def mask(self, scores: Mapping[str, Tensor], within: Mask | None = None) -> Mask:
        """Remove the lowest scores."""
        from spikeformer_lt.mask import Mask

        return Mask.from_scores(scores, self.sparsity, self.scope, within, self.floor)


@dataclass(frozen=True)
class SnipConfig(OneShotConfig):
    """Rank the initial weights by |gradient times weight|."""

    images: int = 128
    """Training images that the gradient is taken on."""


@dataclass(frozen=True)
class GraspConfig(SnipConfig):
    """Rank the initial weights by what their removal does to the gradient's norm."""

    step: float = 1e-2
    """Length of the finite difference, over that of the weights."""


@dataclass(frozen=True)
class SynflowConfig(OneShotConfig):
    """Rank the initial weights by the flow through them, again and again as they go."""

    rounds: int = 100
    """Rounds; after round i a fraction (1 - sparsity)^(i / rounds) is left."""


@dataclass(frozen=True)
class MagnitudeConfig(OneShotConfig):
    """Remove the smallest weights at once."""

    epochs: int = 0
    """Epochs of dense training before the removal; 0 ranks the initial weights."""
    start: str = "init"
    """Start weights of the ticket: init, or trained (fine-tuning, as compression does)."""
    OWN: ClassVar = {"epochs": 0}


@dataclass(frozen=True)
class RandomConfig(Pruning):
    """Random places at a given sparsity."""

    sparsity: float = 0.9
    """Fraction of the prunable weights removed, in [0, 1): exactly round(sparsity * n) of n."""
    distribution: str = "uniform"
    """uniform: the same density in each layer; erk: denser where a layer is small."""


@dataclass(frozen=True)
class NmConfig(Pruning):
    """Keep the n largest of every m weights along the input channels."""

    n: int = 2
    """Weights kept of each group."""
    m: int = 4
    """Weights of a group: neighbours along the input channels, at one kernel position."""
    epochs: int = 0
    """Epochs of dense training before the removal; 0 ranks the initial weights."""
    start: str = "init"
    """Start weights of the ticket: init, or trained."""
    OWN: ClassVar = {"epochs": 0, "control": ("none", "shuffle", "fresh")}

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.n < self.m, "n", self.n, f"from 1 to m - 1 = {self.m - 1}")


@dataclass(frozen=True)
class ImpConfig(Pruning):
    """Train, remove the smallest weights, go back to an early point, again and again.

    After round i exactly ``round((1 - (1 - fraction)^i) * n)`` of the n prunable weights are gone.
    """

    preset: str = "default"
    """default, or eccv22: 14 rounds of 25 %, 300 epochs, back to epoch 21, SGD at 0.3."""
    rounds: int = 8
    """Rounds of removal, where neither sparsity nor levels say; the dense training before them is
    not counted."""
    fraction: float = 0.25
    """Fraction of the weights still there that a round removes, in (0, 1)."""
    sparsity: float = 0.0
    """Where above 0: stop at exactly this sparsity, after as many rounds as that takes."""
    levels: tuple[float, ...] = ()
    """Sparsity after each round, rising; overrides rounds, fraction and sparsity."""
    scope: str = "global"
    """global ranks all layers together; layer removes the same fraction of each."""
    floor: float = 0.0
    """Least fraction of each layer that stays, in [0, 1]."""
    epochs: int = 30
    """Epochs of the dense training."""
    round_epochs: int = 0
    """Epochs of training between two removals; 0 takes what the rewind point leaves of epochs."""
    rewind: str = "2ep"
    """Point of the dense training to go back to: 2ep, 500it; 0it is the initialisation. Epochs of
    it are part of those of the tested network, steps come on top."""
    buffers: str = "rewind"
    """BatchNorm statistics: rewind with the weights, keep what training left, or reset."""
    lr: str = "restart"
    """Learning rate of later rounds and of the training from the ticket: restart its schedule, or
    resume it at the rewind point."""
    published_epochs: ClassVar[int] = 280  # of training from the ticket, under a preset
    PRESETS: ClassVar = {
        "eccv22": dict(
            rounds=14, fraction=0.25, sparsity=0.0, levels=(), scope="global", floor=0.0,
            epochs=300, round_epochs=280, rewind="21ep", buffers="keep", lr="restart",
        )
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in zip((0.0, *self.levels), (*self.levels, 1.0), strict=True))
        check(rising, "levels", self.levels, "rising, in (0, 1)")
        self.rewind_step  # noqa: B018 - refuses what is no step

    @cached_property
    def rewind_step(self) -> Step:
        """The point to go back to."""
        return Step.parse(self.rewind, "rewind")


@dataclass(frozen=True)
class EarlyBirdConfig(Pruning):
    """Watch the mask of the dense network at the start of each epoch."""

    preset: str = "default"
    """default; eccv22: the SNN form, 300 epochs, SGD at 0.3, twice that for the search."""
    kind: str = "weights"
    """weights: unstructured, by |w|; channels: by the scale of the BatchNorm, whole channels."""
    sparsity: float = 0.9
    """Fraction removed, in [0, 1): of the prunable weights, or of the removable channels."""
    scope: str = "global"
    """global ranks all layers together; layer removes the same fraction of each."""
    floor: float = 0.0
    """Least fraction of each layer that stays, in [0, 1]; channels: at least one always does."""
    epochs: int = 30
    """Most epochs of the search; the mask of the last one is taken if none stood still."""
    window: int = 5
    """Masks compared: the newest with all others."""
    tolerance: float = -1.0
    """Largest distance that counts as standing still; below 0: 0.02 (weights), 0.1 (channels)."""
    lr_factor: float = 2.0
    """Learning rate of the search over the run's own."""
    l1: float = 1e-4
    """Penalty on the BatchNorm scales while channels are searched."""
    published_epochs: ClassVar[int] = 300
    PRESETS: ClassVar = {
        "eccv22": dict(
            kind="weights", scope="global", floor=0.0, epochs=300, window=5, tolerance=0.02,
            lr_factor=2.0,
        )
    }  # fmt: skip
    OWN: ClassVar = {"kind": ("weights", "channels")}

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.tolerance <= 1, "tolerance", self.tolerance, "at most 1")
        check(0 < self.lr_factor <= 1000, "lr_factor", self.lr_factor, "in (0, 1000]")
        whole = self.kind == "channels" and self.control == "random"
        rule = "shuffle or fresh with kind=channels, whose mask is of whole channels"
        check(not whole, "control", self.control, rule)


@dataclass(frozen=True)
class EarlyTimeConfig(Checked):
    """Find the fewest time steps whose output is near that of all T."""

    preset: str = "default"
    """default, or eccv22: 2 epochs, 1000 images, threshold 0.6, SGD at 0.3."""
    epochs: int = 2
    """Epochs of dense training before the probe; its weights are thrown away."""
    images: int = 1000
    """Training images of the probe."""
    threshold: float = 0.6
    """Normalised divergence below which a number of steps will do, in [0, 1]."""
    order: str = "paper"
    """paper: KL(P_t || P_T) over that of t = 2; code: KL(P_T || P_t) over the largest."""
    search: str = "imp"
    """The search that runs with the steps found, of `spikeformer-lt ls searches`."""
    published_epochs: ClassVar[int] = 300
    PRESETS: ClassVar = {"eccv22": {"epochs": 2, "images": 1000, "threshold": 0.6}}
    OWN: ClassVar = {"epochs": 0, "images": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        other = self.search.replace("-", "_") != "early_time"
        check(other, "early_time.search", self.search, "another search than early_time itself")


_FROZEN: dict[str, Any] = {"epochs": 100, "learn_norm": False}


def check_ramp(config: Any, epochs: int, where: str = "") -> None:
    """Refuse a ramp of the sparsity that a training of some epochs would not see to its end."""
    frozen = config.freeze_mask_at
    whole = min(int(frozen * epochs), epochs - 1) if config.ramp_epochs else 0
    rule = f"at most {whole}, as freeze_mask_at={frozen} of the {epochs} epochs ends it: the mask "
    rule += "would never reach its sparsity"
    check(config.ramp_epochs <= whole, f"{where}ramp_epochs", config.ramp_epochs, rule)


@dataclass(frozen=True)
class EdgePopupConfig(TrainedPruning):
    """Learn which of the frozen initial weights to keep."""

    preset: str = "default"
    """default, or cvpr20: half of each layer, signed constants, SGD at 0.1, 100 epochs."""
    sparsity: float = 0.5
    """Fraction of the prunable weights removed, in [0, 1): exactly round(sparsity * n) of n."""
    scope: str = "layer"
    """layer: the same sparsity in each layer; global: one threshold over all scores."""
    floor: float = 0.005
    """Least fraction of each layer that a global threshold leaves; a layer without any ends it."""
    epochs: int = 30
    """Epochs of score learning."""
    ramp_epochs: float = 0.0
    """Epochs of a cubic ramp of the sparsity from ramp_from."""
    ramp_from: float = 0.5
    """Sparsity at which the ramp starts."""
    init: str = "keep"
    """Frozen weights: keep the model's, kaiming (scaled by what is kept), or signed constants."""
    learn_norm: bool = True
    """Train what has no scores: norms, biases, layers that prune leaves out; the papers do not."""
    freeze_mask_at: float = 1.0
    """Fraction of the training after which the mask stays as it is."""
    PRESETS: ClassVar = {
        "cvpr20": dict(_FROZEN, sparsity=0.5, scope="layer", ramp_epochs=0.0, init="signed")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset == "default":
            check_ramp(self, self.epochs)


@dataclass(frozen=True)
class BipropConfig(EdgePopupConfig):
    """Learn which signs of the frozen initial weights to keep; one gain for each layer."""

    preset: str = "default"
    """default; iclr21: layer-wise, kaiming, SGD at 0.1, 100 epochs; iclr21-global: one threshold,
    a ramp from 50 % over 10 epochs. Both leave the sparsity as given."""
    PRESETS: ClassVar = {
        "iclr21": dict(_FROZEN, scope="layer", ramp_epochs=0.0, init="kaiming"),
        "iclr21-global": dict(
            _FROZEN, scope="global", ramp_epochs=10.0, ramp_from=0.5, init="kaiming"
        ),
    }


@dataclass(frozen=True)
class SparseTrainingConfig(TrainedPruning):
    """Train sparse from the start; now and then drop the smallest weights and grow others."""

    preset: str = "rigl"
    """set (grows at random), rigl (where the gradient is largest), granet (rigl that begins at
    50 % and prunes on), or default, which leaves the fields as given."""
    sparsity: float = 0.9
    """Final fraction removed, in [0, 1): exactly round(sparsity * n) of n."""
    start_sparsity: float = -1.0
    """Sparsity at the start; below 0: the final one, kept all along."""
    grow: str = "gradient"
    """gradient or random."""
    distribution: str = "erk"
    """Start densities over the layers: uniform or erk."""
    drop: float = 0.3
    """Fraction of a layer's weights exchanged by the first update; falls to 0 on a cosine."""
    every: int = 100
    """Optimizer steps between updates."""
    end: float = 0.75
    """Fraction of the training after which the mask stays as it is."""
    floor: float = 0.005
    """Least fraction of each layer that pruning leaves (schedules that prune on)."""
    epochs: int = 30
    """Epochs of the training."""
    PRESETS: ClassVar = {
        "set": {"grow": "random", "start_sparsity": -1.0, "distribution": "erk"},
        "rigl": {"grow": "gradient", "start_sparsity": -1.0, "distribution": "erk"},
        "granet": {"grow": "gradient", "start_sparsity": 0.5, "distribution": "erk"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        low = self.start_sparsity <= self.sparsity
        check(low, "start_sparsity", self.start_sparsity, "at most the final sparsity")


@dataclass(frozen=True)
class MultiSpConfig(Checked):
    """MultiSp: patches, ConvPEP weights and ConvPEP activations made sparse and binary.

    Source: arXiv 2309.13302 (abstract) and Algorithm 1 of arXiv 2311.12060; the rest are choices,
    which each run's report lists.
    """

    preset: str = "default"
    """default: what measured best; literal: Algorithm 1 of arXiv 2311.12060, which fixes schedule
    sequential, a frozen stem, patches in pixel space, and of the weights method scores, scope
    global, init kaiming, gain layer, a binary first convolution, norms that do not learn."""
    schedule: str = "joint"
    """joint: all levels in one training; sequential: ConvPEP ticket, patches, then encoder;
    reverse: patches with a dense ConvPEP, then its ticket."""
    dense_epochs: int = 0
    """Epochs of dense training before any level is on."""
    stem_epochs: int = 10
    """Epochs of the ConvPEP ticket search (sequential and reverse)."""
    epochs: int = 30
    """Epochs of the last training: joint, or encoder and head; 0 puts level 1 alone, without a
    training, on the network of dense_epochs."""
    stem: str = "frozen"
    """After a sequential search the ConvPEP is frozen, or goes on training (finetune)."""
    distill: float = 0.0
    """Weight of distillation from the dense network, in [0, 1]; needs dense_epochs > 0."""
    ticket: str = ""
    """Folder of a MultiSp run or ticket: nothing is searched, and its mask is trained once more,
    for `epochs`, from the start weights of its search."""
    control: str = "none"
    """What that training is compared with: random (the mask shuffled within each layer), shuffle
    (start weights permuted within each layer) or fresh (start weights drawn anew)."""
    patches: PatchConfig = field(default_factory=PatchConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    activation: ActivationConfig = field(default_factory=ActivationConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    halting: HaltingConfig = field(default_factory=HaltingConfig)
    WHERE = "multisp."
    OWN: ClassVar = {"epochs": 0}
    PRESETS: ClassVar = {
        "literal": dict(
            schedule="sequential", stem="frozen", dense_epochs=0, distill=0.0,
            patches=dict(score="rate", space="pixel", rescale=False),
            weights=dict(
                method="scores", scope="global", init="kaiming", gain="layer", anneal=0.0,
                ramp_epochs=0.0, freeze_mask_at=1.0, first_conv="binary", binary=True,
                include_rpe=True, learn_norm=False,
            ),
        )
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        taught = self.distill == 0 or self.dense_epochs > 0
        check(taught, "multisp.distill", self.distill, "0 unless dense_epochs > 0 (the teacher)")
        if self.weights.method in MOVING and self.preset == "default":
            searched = self.epochs if self.schedule == "joint" else max(1, self.stem_epochs)
            check_ramp(self.weights, searched, "multisp.weights.")
        free = self.dense_epochs > 0 and self.patches.score != "gumbel" and self.schedule == "joint"
        free &= (self.weights.method, self.activation.kind) == ("off", "lif") and not self.distill
        free &= self.halting.kind == "off"
        free &= not (self.ticket or self.encoder.binary or self.encoder.sparsity)
        rule = "at least 1; 0 is for what needs no training (level 1, halting.confidence) after "
        rule += "dense_epochs, with weights.method off"
        check(self.epochs > 0 or free, "multisp.epochs", self.epochs, rule)
        ramp = WeightConfig(ramp_epochs=self.encoder.ramp_epochs)
        check_ramp(ramp, self.epochs, "multisp.encoder.")
        early = not self.encoder.levels or self.encoder.rewind_step.epochs <= self.epochs
        rule = f"at most {self.epochs}ep, the multisp.epochs of each training"
        check(early, "multisp.encoder.rewind", self.encoder.rewind, rule)
        untrained = self.schedule != "joint" and not (self.stem_epochs or self.dense_epochs)
        rule = "at least 1: a frozen ConvPEP would keep its random weights; or give stem finetune"
        sound = not untrained or self.stem != "frozen"
        check(sound, "multisp.stem_epochs", self.stem_epochs, rule)
        whole = self.patches.space == "input" and self.schedule == "sequential"
        rule = "joint or reverse with patches.space input: this trains the ConvPEP on all patches"
        check(not (whole and self.patches.sparsity), "multisp.schedule", self.schedule, rule)
        patches, halting = self.patches, self.halting
        once = patches.mode == "remove" or patches.sparsity == 0
        whole = once and not (patches.rescale and patches.sparsity)
        rule = "off with patches.mode stop or stages, or patches.rescale"
        check(whole or halting.kind == "off", "multisp.halting.kind", halting.kind, rule)
        sure, rule = halting.confidence, "0 with patches.mode stop or stages"
        check(once or sure == 0, "multisp.halting.confidence", sure, rule)
        alone = self.control != "none" and not self.ticket
        check(not alone, "multisp.control", self.control, "none without multisp.ticket DIR")


def on_encoder(imp: ImpConfig) -> ImpConfig:
    """Pruning of the encoder alone, unless the configuration names layers itself."""
    if imp.prune.inside:
        return imp
    return replace(imp, prune=replace(imp.prune, inside=("blocks.",), head=False))


@dataclass(frozen=True)
class JointConfig:
    """MultiSp's patch level, and iterative magnitude pruning of the encoder under it."""

    patches: PatchConfig = field(default_factory=PatchConfig)
    imp: ImpConfig = field(default_factory=lambda: on_encoder(ImpConfig()))
