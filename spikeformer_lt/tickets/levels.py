"""MultiSp's levels as options, and what every configuration of a search may be.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from spikeformer_lt.config import check, check_fields
from spikeformer_lt.tickets.presets import DEVIATIONS
from spikeformer_lt.training.options import Step

ROOM = __name__.rpartition(".")[0]  # of our own configurations
# The same words as in mask.py, layers/patches.py and layers/stems.py, which import torch.
SCOPES = ("global", "layer")
SCORES = ("rate", "l2", "attention", "tp", "tp-code", "gumbel", "qk", "random")
STOPS = ("rate", "l2", "tp", "tp-code", "random")
ACTIVATIONS = ("lif", "heaviside", "sign", "relu", "ilif")
RESIDUALS = ("add", "iand", "or")
DISTRIBUTIONS = ("uniform", "erk")
INITS = ("keep", "kaiming", "signed")
MOVING = ("latent", "scores", "both")  # methods whose mask changes during the training
CONTROLS = ("none", "random", "shuffle", "fresh")
NORMS = ("keep", "reset", "estimate")  # BatchNorm's statistics in a transfer

RULES: dict[str, Any] = dict(
    sparsity="[0, 1)", scope=SCOPES, floor="[0, 1)", epochs=1, images=2, step="(0, 1)", rounds=1,
    start=("init", "trained"), distribution=DISTRIBUTIONS, m=2, round_epochs=0, fraction="(0, 1)",
    buffers=("rewind", "keep", "reset"), lr=("restart", "resume"), window=2, l1="[0, 1)",
    control=CONTROLS, threshold="[0, 1]", order=("paper", "code"), init=INITS,
    ramp_epochs=0, ramp_from="[0, 1)", freeze_mask_at="[0, 1]", grow=("gradient", "random"),
    drop="[0, 1)", every=1, end="(0, 1]", score=SCORES, space=("token", "pixel", "input"),
    selector_epochs=0, anneal="[0, 1000)", method=(*MOVING, "magnitude", "random", "off"),
    gain=("layer", "filter"), first_conv=("auto", "binary", "full"), residual=RESIDUALS,
    schedule=("joint", "sequential", "reverse"), stem=("frozen", "finetune"), dense_epochs=0,
    stem_epochs=0, distill="[0, 1]", ties=("hash", "index"), ste=("auto", "hardtanh", "bireal"),
)  # fmt: skip
"""What a field of any configuration below may be, as rules of `check_fields`."""


class Checked:
    """Base of configurations: refuses what RULES, or OWN for this class, do not allow.

    WHERE goes before the names of fields in messages. A ``preset`` other than "default" fixes the
    published settings of PRESETS.
    """

    OWN: ClassVar[dict[str, Any]] = {}
    WHERE: ClassVar[str] = ""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    DEVIATIONS: ClassVar[dict[str, tuple[str, ...]]] = DEVIATIONS

    def __post_init__(self) -> None:
        rules = {**RULES, "preset": ("default", *self.PRESETS), **self.OWN}
        # A field of the same name in a plug-in's class has rules of its own.
        ours = [kind for kind in type(self).__mro__ if kind.__module__.startswith(ROOM)]
        known = {name for kind in ours for name in vars(kind).get("__annotations__", ())}
        names = [name for name in vars(self) if name in known and name in rules]
        check_fields(self, self.WHERE, **{name: rules[name] for name in names})


@dataclass(frozen=True)
class PatchConfig(Checked):
    """Level 1: patch-number sparsity."""

    sparsity: float = 0.314
    """Fraction of patches removed for each image, in [0, 1); 0 turns level 1 off."""
    score: str = "rate"
    """rate, l2, attention, tp, tp-code, gumbel, qk (gates of QKFormer's token attention), or random
    (the control)."""
    mode: str = "remove"
    """remove: the tokens leave behind the ConvPEP; stop: before each block some stop, by a score of
    rate, l2, tp, tp-code or random on its input, and leave it as they came; stages: tokens leave
    before each of `stages`, by learned selectors (score gumbel), with a loss of their ratio."""
    blocks: tuple[float, ...] = ()
    """Mode stop: fraction that stops before each block, QKFormer's inner ones first; `sparsity`
    before all of them where none is given."""
    stages: tuple[int, ...] = (1, 2, 3)
    """Mode stages: numbers of the blocks, from 0; `sparsity` is what each removes of those left."""
    ratio_weight: float = 2.0
    """Mode stages: weight of the loss that holds the selectors to their ratio."""
    space: str = "token"
    """token: gather after ConvPEP; pixel: also zero the removed pixels and embed again; input: the
    same, chosen by a network that was trained on whole images for selector_epochs and stays as it
    is; the network of the ticket starts anew (data-level tickets)."""
    rescale: bool = False
    """Multiply attention sums by N/K for the keys that are gone."""
    selector_epochs: int = 5
    """Epochs of the attention selector, or of the network that chooses in space input."""
    ties: str = "hash"
    """Equal scores: hash prefers no part of the images, index keeps the upper rows."""
    WHERE = "multisp.patches."
    OWN: ClassVar = {"mode": ("remove", "stop", "stages"), "ratio_weight": "[0, 1000)"}

    def __post_init__(self) -> None:
        super().__post_init__()
        stop, where = self.mode == "stop", self.WHERE
        fits = self.score in STOPS or not stop
        check(fits, f"{where}score", self.score, f"one of {', '.join(STOPS)} with mode stop")
        staged = self.mode == "stages"
        check(self.score == "gumbel" or not staged, f"{where}score", self.score, "gumbel in stages")
        whole = self.space == "token" or self.mode == "remove"
        check(whole, f"{where}space", self.space, f"token with mode {self.mode}")
        check(not (staged and self.rescale), f"{where}rescale", True, "False in stages")
        apart = self.space == "input" and self.score != "random"
        rule = "another in space input, whose selector is trained before the network"
        check(not apart or self.score != "gumbel", f"{where}score", self.score, rule)
        rule = "at least 1 in space input, whose selector is trained"
        known = self.selector_epochs > 0 or not apart
        check(known, f"{where}selector_epochs", self.selector_epochs, rule)
        rising = bool(self.stages) and all(a < b for a, b in pairwise((-1, *self.stages)))
        check(rising, f"{where}stages", self.stages, "rising numbers of blocks, from 0")
        check(stop or not self.blocks, f"{where}blocks", self.blocks, "none but with mode stop")
        shares = all(0 <= share < 1 for share in self.blocks)
        check(shares, f"{where}blocks", self.blocks, "fractions in [0, 1)")
        check(self.sparsity > 0 or not self.blocks, f"{where}sparsity", 0.0, "above 0 with blocks")

    @property
    def searched(self) -> int:
        """Epochs that train what chooses, before the network itself."""
        trained = self.score == "attention" or (self.space == "input" and self.score != "random")
        return self.selector_epochs if trained and self.sparsity > 0 else 0

    @property
    def removed(self) -> float:
        """Fraction of tokens removed; where that differs by blocks or stages, the mean of them."""
        if self.mode == "stages":
            return 1 - sum(self.kept) / len(self.kept)
        return sum(self.blocks) / len(self.blocks) if self.blocks else self.sparsity

    @property
    def kept(self) -> list[float]:
        """Mode stages: share of all tokens that is left behind each."""
        return [(1 - self.sparsity) ** (i + 1) for i in range(len(self.stages))]


@dataclass(frozen=True)
class WeightConfig(Checked):
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
    """auto: full precision for images, binary for events; or binary, full. Pruned in any case."""
    include_rpe: bool = True
    """Prune and binarize the position-encoding convolution (60 % of the ConvPEP) too."""
    init: str = "keep"
    """Start weights: keep the model's, kaiming (scaled by what is kept), or signed constants."""
    learn_norm: bool = True
    """Train scale and shift of the ConvPEP's norms, and biases, in its own search (sequential)."""
    monotone: bool = False
    """Removed weights never return (Algorithm 1's line 10 read literally); without a ramp the first
    step's mask stays."""
    anneal: float = 0.0
    """Final steepness of the score gradient's window around the threshold; 0 is edge-popup."""
    freeze_mask_at: float = 0.75
    """Fraction of the phase after which the mask stays as it is."""
    WHERE = "multisp.weights."
    OWN: ClassVar = {"scope": ("layer", "global")}


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """Level 4: sparse and binary weights behind the ConvPEP, in blocks and head."""

    sparsity: float = 0.0
    """Fraction of these weights removed, in [0, 1); 0 without binary is off."""
    binary: bool = False
    """Binarize the kept weights to their signs times a gain of each output, the mean of its kept
    |w| (XNOR-Net). BESTformer's signs of standardised weights, without a gain, are a family."""
    method: str = "latent"
    """latent: train all, mask the largest; magnitude: one mask from the start weights; imp: train,
    mask the largest, go back to an early point, `rounds` times; rigl: dynamic sparse training, of
    full-precision weights; random: the control mask."""
    scope: str = "global"
    """global: one budget over these weights; layer: the same sparsity in each."""
    floor: float = 0.01
    """Least fraction that a global budget leaves in each layer."""
    ramp_epochs: float = 0.0
    """Epochs of a cubic ramp of the sparsity from 0 (latent); the mask moves up to 3/4 of all."""
    every: int = 100
    """Optimizer steps between two exchanges of method rigl."""
    rounds: int = 4
    """Method imp: trainings of the whole length before the last, each of which ends in a removal
    that leaves the same share of the weights."""
    rewind: str = "1ep"
    """Method imp: point of the first training to go back to: 2ep, 500it; 0it is its start."""
    head: bool = True
    """The last linear map is among these weights, too."""
    WHERE = "multisp.encoder."
    OWN: ClassVar = {"method": ("latent", "magnitude", "imp", "rigl", "random")}

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.method == "rigl" and (self.binary or self.ramp_epochs > 0)
        check(not both, "multisp.encoder.method", self.method, "another with binary or a ramp")
        ramped = self.method == "imp" and self.ramp_epochs > 0
        check(not ramped, "multisp.encoder.method", self.method, "another with a ramp")
        self.rewind_step  # noqa: B018 - refuses what is no step

    @property
    def rewind_step(self) -> Step:
        """The point to go back to."""
        return Step.parse(self.rewind, f"{self.WHERE}rewind")

    @property
    def levels(self) -> tuple[float, ...]:
        """Sparsity after each round of method imp; empty for the others."""
        if self.method != "imp" or not self.sparsity:
            return ()
        shares = (1 - (1 - self.sparsity) ** (i / self.rounds) for i in range(1, self.rounds))
        return (*shares, self.sparsity)


@dataclass(frozen=True)
class HaltingConfig(Checked):
    """Level 5: halting of each image over tokens and time steps."""

    kind: str = "off"
    """off; act: a token halts where its scores, summed over blocks and time steps, reach 1 - eps
    (adaptive computation time); needs patches.mode remove."""
    eps: float = 0.01
    """What is left out of a whole 1, in [0, 1)."""
    ponder: float = 0.3
    """Weight in the loss of the share of (token, step) that the blocks compute."""
    confidence: float = 0.0
    """In evaluation an image stops at the first step at which its class has this probability, by
    the mean logits so far, in [0, 1); 0 runs all steps."""
    WHERE = "multisp.halting."
    OWN: ClassVar = {
        "kind": ("off", "act"), "eps": "[0, 1)", "ponder": "[0, 1000)", "confidence": "[0, 1)",
    }  # fmt: skip


@dataclass(frozen=True)
class ActivationConfig(Checked):
    """Level 3: binary ConvPEP activations."""

    kind: str = "lif"
    """lif (spiking), heaviside {0,1}, sign {-1,+1}, relu (full-precision reference), or ilif
    {0,...,4}."""
    residual: str = "add"
    """add (tokens in {0,1,2}), iand or or (tokens stay {0,1})."""
    ste: str = "auto"
    """Derivative of heaviside and sign: auto (that of the neurons, and hardtanh), hardtanh, or
    bireal, 2 - 2|x| where |x| <= 1 (Bi-Real Net)."""
    WHERE = "multisp.activation."
    OWN: ClassVar = {"kind": ACTIVATIONS}

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.ste == "auto" or self.kind in ("heaviside", "sign")
        rule = f"auto for kind {self.kind}; it is for heaviside and sign"
        check(asked, "multisp.activation.ste", self.ste, rule)
