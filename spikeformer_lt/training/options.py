"""Options that every recipe shares: data, model, optimizer, training and run directory.

Nothing here imports torch at the top, so that ``--help`` and errors need not wait for it.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from spikeformer_lt.config import check, check_fields, flat_values
from spikeformer_lt.disk import read_tensors
from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.events.frame import EventChoices, EventOptions
from spikeformer_lt.registry import create_dataset, dataset_factory
from spikeformer_lt.splits import Splits

if TYPE_CHECKING:
    from torch import Tensor


_FORM = re.compile(r"(?:([0-9]{1,12})ep)?(?:([0-9]{1,12})it)?")


@dataclass(frozen=True, init=False)
class Step:
    """So many epochs and then so many iterations (optimizer steps), integers of 0 or more."""

    epochs: int
    extra: int

    def __init__(self, epochs: int = 0, iterations: int = 0) -> None:
        for name, value in (("epochs", epochs), ("iterations", iterations)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name}={shown(value)} is not allowed: an integer >= 0")
        object.__setattr__(self, "epochs", epochs)
        object.__setattr__(self, "extra", iterations)

    @classmethod
    def parse(cls, text: str, field: str = "step") -> Self:
        """Read "2ep", "500it" or "2ep50it"; a ConfigError names the `field` of any other form."""
        found = _FORM.fullmatch(text) if isinstance(text, str) and text else None
        if found is None:
            raise ConfigError(
                f"{field}={shown(text)} is not allowed: write epochs and iterations as '2ep', "
                "'500it' or '2ep50it'"
            )
        return cls(int(found[1] or 0), int(found[2] or 0))

    def __str__(self) -> str:
        epochs = f"{self.epochs}ep" if self.epochs else ""
        return epochs + (f"{self.extra}it" if self.extra or not epochs else "")

    def iterations(self, steps_per_epoch: int) -> int:
        """Count iterations from the start of training, with so many (1 or more) in an epoch."""
        if steps_per_epoch < 1:
            raise ConfigError(f"steps_per_epoch={steps_per_epoch} is not allowed: 1 or more")
        return self.epochs * steps_per_epoch + self.extra


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule of a phase (timm's names)."""

    opt: str = "adamw"
    """Optimizer, any of timm's."""
    lr: float = 5e-4
    """Peak learning rate at the batch size in use."""
    weight_decay: float = 0.06
    """Weight decay, decoupled with adamw and added to the gradient with adam and sgd; never on
    BatchNorm, biases or scores."""
    momentum: float = 0.9
    """Momentum of optimizers that have one."""
    sched: str = "cosine"
    """Learning-rate schedule."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule: step falls no lower, constant has it in a cool-down
    alone."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from warmup_lr."""
    warmup_lr: float = 1e-5
    """Learning rate at the start of the warm-up."""
    cooldown_epochs: float = 0.0
    """Epochs at min_lr after the schedule, the last of the phase's."""
    of_epochs: int = 0
    """Length of a phase, in epochs, that warm-up and cool-down are meant for: in another one they
    scale with it; 0, or naming one of the two, takes them as they are."""
    score_lr: float = 0.01
    """Learning rate of subnetwork scores (they follow the same schedule, without decay)."""
    clip_grad: float = 5.0
    """Largest gradient norm; 0 does not clip."""
    layer_decay: float = 1.0
    """Factor of the learning rate from a block to the one before it, stem and head included; 1 is
    the same rate everywhere (Bao et al., arXiv:2106.08254, as timm has it)."""
    decay_vectors: bool = False
    """Decay BatchNorm's scale and shift, and biases, too."""

    def __post_init__(self) -> None:
        positive, finite = "(0, 1e3)", "[0, 1e9)"
        check_fields(
            self, "optim.", lr=positive, score_lr=positive, momentum="[0, 1)",
            weight_decay=finite, min_lr=finite, warmup_lr=finite, clip_grad=finite,
            warmup_epochs=finite, cooldown_epochs=finite, of_epochs=0, layer_decay="(0, 1]",
            sched=("cosine", "linear", "step", "constant"),
        )  # fmt: skip
        rule = f"at most lr={self.lr:g}"
        check(self.min_lr <= self.lr, "optim.min_lr", self.min_lr, rule)
        cold = self.warmup_epochs == 0 or self.warmup_lr <= self.lr
        check(cold, "optim.warmup_lr", self.warmup_lr, rule)


TRACKERS = (  # those of accelerate, which imports torch
    *("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio"),
    "wandb",
)
MOST_THREADS = max(64, os.cpu_count() or 1)
"""Threads that a run may ask for; torch ends the process where the system has no more."""
MOST_WORKERS = 4 * MOST_THREADS
"""Loader processes that a run may ask for."""

# Options of a data set that a ticket must repeat to meet its own splits again.
SPLIT_OPTIONS = ("root", "image_size", "limit_train", "limit_test")
EVENT_OPTIONS = tuple(f.name for f in fields(EventChoices))


MOVING: dict[str, dict[str, Any]] = {"moving_digits": {}, "moving_gestures": {"multisp.epochs": 60}}
"""Embedded sets of recordings, and in what their values for small machines differ."""


def value_at(cfg: Any, path: str) -> Any:
    """The value at a dotted path of a configuration; None if there is none."""
    for name in path.split("."):
        cfg = getattr(cfg, name, None)
    return cfg


def with_value(cfg: Any, path: str, value: Any) -> Any:
    """The configuration with another value at a dotted path; a ConfigError if it has no such."""
    name, _, rest = path.partition(".")
    check(is_dataclass(cfg) and hasattr(cfg, name), path, value, "a field of the configuration")
    own = with_value(getattr(cfg, name), rest, value) if rest else value
    return replace(cast(Any, cfg), **{name: own})


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what training does to them."""

    name: str = "auto"
    """A data set of `spikeformer-lt ls datasets`; auto takes cifar10 where it is on disk, else the
    embedded digits."""
    root: str = "data"
    """Folder that holds the data set's published files."""
    download: bool = False
    """Fetch missing files; nothing touches the network otherwise."""
    image_size: int | None = None
    """Side of the images, in pixels; None is the data set's own."""
    limit_train: int | None = None
    """Train on this many images, classes in proportion; None is all."""
    limit_test: int | None = None
    """Test on this many images, classes in proportion; None is all."""
    augment: str = "auto"
    """auto (the data set's usual), none, digits, spikformer_cifar, crop4, crop4_flip,
    crop4_flip_cutout, crop8_flip, imagenet or imagenet_repeats."""
    mixup: float | None = None
    """Alpha of mixup; None is what goes with augment: the papers' value with a set's usual one."""
    cutmix: float = 0.0
    """Alpha of CutMix."""
    mix_until: float | None = None
    """Fraction of each phase after which mixup and CutMix are off; None is what goes with
    augment."""
    smoothing: float | None = None
    """Label smoothing; None is what goes with augment."""

    def __post_init__(self) -> None:
        bounds: dict[str, Any] = {
            "mixup": "[0, 1000]", "cutmix": "[0, 1000]", "mix_until": "[0, 1]",
            "smoothing": "[0, 1)",
        }  # fmt: skip
        check_fields(self, "data.", **bounds)


@dataclass(frozen=True)
class EventDataConfig(EventChoices, DataConfig):
    """Which recordings, how they become frames, and what training does to them.

    Frames are as many as the model has time steps: ``model.T``.
    """

    augment: str = "auto"
    """auto (the data set's usual) or none; for recordings spikformer_dvs, wide_dvs, tet_dvs,
    event_drop or moving_digits; for images digits, spikformer_cifar, crop4, crop4_flip,
    crop4_flip_cutout, crop8_flip, imagenet or imagenet_repeats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        DataConfig.__post_init__(self)
        EventOptions(T=1, **{name: getattr(self, name) for name in EVENT_OPTIONS})


@dataclass(frozen=True)
class ModelConfig:
    """Which network; None is the named model's own."""

    name: str = "spikformer_cifar"
    """A registered model, of `spikeformer-lt ls models`."""
    init_from: str = ""
    """Start from the weights in this folder: a converted checkpoint, a ticket, or a run, for the
    network that it ended with."""
    T: int = 4
    """Time steps."""
    embed_dim: int | None = None
    """Embedding width D."""
    depth: int | None = None
    """Encoder blocks L."""
    num_heads: int | None = None
    """Attention heads h."""
    mlp_ratio: float | None = None
    """Hidden width of the MLP over D."""
    tau: float | None = None
    """Membrane time constant, in steps."""
    decay_input: bool | None = None
    """Whether a LIF divides its input by tau, too; False with tau = 1 / (1 - decay) is the neuron
    of papers that give a decay of the membrane."""
    v_threshold: float | None = None
    """Firing threshold, dimensionless."""
    neuron: str | None = None
    """relu and sign are the network without time, of models that have the choice (CNNs)."""
    attention: str | None = None
    """linear is ssa with k^T v first; in random, a control, q and k stay as drawn."""
    block_residual: str | None = None
    """How the branches of a Spikformer's blocks join the stream; ms adds currents."""
    dvs_mode: bool | None = None
    """Whether the attention sdsa of an SDT (v1) takes the maxima of the 3x3 places around each
    token, as for event frames."""
    stem_convs: int | None = None
    """Convolutions of the stem before its last one, of a Spikformer, Spikingformer, BESTformer or
    SDT: 4, or 2 or 1, as a control. Of a QKFormer or Max-Former 1 leaves one in each embedding."""

    def __post_init__(self) -> None:
        bounds = {
            "T": "[1, 4096]", "embed_dim": "[1, 65536]", "depth": "[1, 256]",
            "num_heads": "[1, 4096]", "mlp_ratio": "(0, 1024]", "tau": "(1, 1e6)",
            "v_threshold": "(0, 1e6)", "stem_convs": "[1, 4]", "neuron": ("lif", "relu", "sign"),
            "attention": ("ssa", "linear", "qk", "sdsa", "random"),
            "block_residual": ("add", "iand", "or", "ms"),
        }  # fmt: skip
        check_fields(self, "model.", **bounds)

    def args(self) -> dict[str, Any]:
        """Keywords for `create_model`: what was set."""
        own = [f.name for f in fields(self) if f.name not in ("name", "init_from")]
        return {name: value for name in own if (value := getattr(self, name)) is not None}

    def start_weights(self) -> dict[str, Tensor] | None:
        """Tensors of the folder `init_from`, by their state_dict names; None without one.

        Of a run they are those of the network that it ended with; RUN/ticket has its ticket's.
        A ConfigError says that it holds no model, or an export; a CheckpointError, a damaged file.
        """
        if not self.init_from:
            return None
        from spikeformer_lt.ticket import finished_folder

        folders = finished_folder(self.init_from), Path(self.init_from)
        files = [folder / "model.safetensors" for folder in folders]
        found = [file for file in files if file.is_file()]
        rule = "a folder with model.safetensors: a ticket, a finished run, or recipes/convert.py's"
        check(bool(found), "model.init_from", self.init_from, rule)
        tensors, about = read_tensors(found[0])
        plain = about.get("kind") != "spikeformer_lt.export"
        rule = "no export, whose tensors are packed: give the run or ticket that it was made of"
        check(plain, "model.init_from", self.init_from, rule)
        return tensors


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives."""

    out: str = ""
    """Run directory; empty makes a new one under runs/."""
    resume: str = "never"
    """never, auto (go on where --run.out stopped, start if it is new), or a run directory."""
    allow_config_change: tuple[str, ...] = ()
    """Fields that may differ from the run that is resumed."""
    dry_run: bool = False
    """Check options, data, network and memory, and make nothing; --dry-run for short."""
    quick: bool = False
    """Try it out; --quick for short: epochs that are not named shrink in proportion, to 2 at most,
    and at least to 1."""
    extend: int = 0
    """Train the last phase of the finished run that is resumed on, for so many epochs beyond its
    own, at the learning rate that its schedule ended with."""

    def __post_init__(self) -> None:
        check_fields(self, "run.", extend=0)


@dataclass(frozen=True)
class BudgetConfig:
    """What the tested network may cost, one of four; 0 is no budget.

    The search runs at one sparsity after another, beside --run.out in .tries/, until it fits.
    """

    bytes: int = 0
    """Bytes of the tensor file of its export; at least 99 % are used."""
    sops: float = 0.0
    """Synaptic operations of a sample, all T, on a hashed validation sample; at least 97 %."""
    energy: float = 0.0
    """Energy of the same in pJ, the ledger's estimate; at least 97 %."""
    ms: float = 0.0
    """Median time of 31 calls of the export with one sample, here, with these threads."""
    over: str = ""
    """Option that is changed; empty takes the search's sparsity, of multisp that of the encoder."""
    tries: int = 10
    """Most runs of the search."""

    def __post_init__(self) -> None:
        check_fields(self, "budget.", bytes=0, sops=0, energy=0, ms=0, tries=1)
        named = [name for name in ("bytes", "sops", "energy", "ms") if getattr(self, name)]
        for name in named[1:]:
            rule = f"0 beside budget.{named[0]}, as a run has one budget"
            check(False, f"budget.{name}", getattr(self, name), rule)

    @property
    def asked(self) -> tuple[str, float]:
        """The cost that is limited, and the limit; an empty name for no budget."""
        named = {name: getattr(self, name) for name in ("bytes", "sops", "energy", "ms")}
        return next(((name, float(value)) for name, value in named.items() if value), ("", 0.0))


# Options of how a run is computed and kept: they may differ when it is resumed.
FREE = (
    *("data.root", "data.download", "data.cache", "data.split_file"),
    *("train.workers", "train.threads", "train.cpu", "train.timeout_s", "train.tensorboard"),
    "train.track",
    *("train.checkpoint_steps", "train.eval_batch_size", "train.recompute", "train.nonfinite"),
    "train.skip_limit",
)


def lasting(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Options that make a phase what it is, by "group.field", of groups as nested dicts.

    Those of the optimizer are left out: a phase may have its own.
    """
    values = dict(flat_values(groups))
    return {k: v for k, v in values.items() if k not in FREE and not k.startswith("train.optim.")}


def split_options(data: DataConfig) -> dict[str, Any]:
    """Return what a ticket must remember of its data options."""
    names = SPLIT_OPTIONS + EVENT_OPTIONS
    return {name: getattr(data, name) for name in names if hasattr(data, name)}


def load_splits(data: DataConfig, T: int, own: Mapping[str, Any] | None = None) -> Splits:
    """Create the data set that a configuration names.

    `T` is the frames that an event recording is cut into, `own` the options of the set's own class.
    A ConfigError refuses an option that is out of range or that the set does not have.
    """
    keywords: dict[str, Any] = {name: getattr(data, name) for name in (*SPLIT_OPTIONS, "download")}
    chosen = {name: getattr(data, name) for name in EVENT_OPTIONS if hasattr(data, name)}
    if "events" in inspect.signature(dataset_factory(data.name)).parameters:
        keywords["events"] = EventOptions(T=T, **chosen)
    else:
        for name, value in chosen.items():
            usual = getattr(EventOptions, name)
            check(value == usual, f"data.{name}", value, f"{usual}: {data.name} are still images")
    splits = create_dataset(data.name, **keywords, **(own or {}))
    if not isinstance(splits, Splits):
        raise DataError(f"data set {data.name} gave {type(splits).__name__}, not Splits")
    return splits


_STRETCH = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,5})(?:@(\d*\.?\d+(?:e-?\d{1,2})?))?")


def _stretch(text: str, optim: OptimConfig) -> tuple[int, int, OptimConfig | None]:
    T, epochs, lr = re.split("[x@]", text + "@")[:3]
    return int(T), int(epochs), replace(optim, lr=float(lr)) if lr else None


@dataclass(frozen=True)
class TrainConfig:
    """How every phase of a run is trained."""

    seed: int = 42
    """Seed of initialisation, data order, augmentation and noise."""
    batch_size: int = 64
    """Images per step and device."""
    eval_batch_size: int = 256
    """Images per evaluation step and device."""
    accumulate: int = 1
    """Batches whose gradients are summed into one optimizer step."""
    workers: int = 0
    """Loader processes; results do not depend on it."""
    loss: str = "mean"
    """mean (of the logits over T) or tet (mean of the losses over T)."""
    ema_decay: float = 0.0
    """Decay of the weight average that is validated and kept; 0 turns it off."""
    mixed_precision: str = "no"
    """With bf16 neurons, BatchNorm, gains and mask sums stay float32; on a CPU it pays with AMX."""
    recompute: bool = False
    """Keep only the inputs of blocks and layers for the backward pass and compute the rest again:
    less memory, more time, the same gradients."""
    nonfinite: str = "stop"
    """stop or skip a step with a NaN or infinity in inputs, gradients or buffers."""
    skip_limit: int = 10
    """Skipped steps in a row after which the run stops."""
    checkpoint_steps: int = 0
    """Optimizer steps between checkpoints; 0 saves at the end of each epoch."""
    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    best_on_test: bool = False
    """Also test at each validation and report the best, as much of the literature does; it is for
    comparison only and chooses nothing."""
    phases: tuple[str, ...] = ()
    """Dense training before the search, in phases of other time steps: 1x200 is T 1 for 200 epochs,
    1x200@6e-4 with a peak learning rate of its own. The search goes on from there, at --model.T.
    Of recordings the first frames are taken."""
    teacher: str = ""
    """Folder of a run or ticket whose network teaches in all phases, or timm:NAME@FILE, or
    torchvision:NAME@FILE: its softened logits are distilled. Same images, same classes."""
    teacher_weight: float = 0.5
    """Weight of that teacher's term of the loss, in [0, 1]."""
    distill_temperature: float = 2.0
    """Softmax temperature of the distillation term."""
    sync_norm: bool = False
    """Let BatchNorm take the samples of all processes, as one process with all of them does."""
    static_graph: bool = False
    """Tell DDP that every step of a phase uses the same weights, so that it plans once; torch ends
    the run where a step uses others."""
    tensorboard: bool = False
    """The same as track tensorboard."""
    track: tuple[str, ...] = ()
    """Trackers of accelerate that get every epoch's row and the report's numbers, such as
    tensorboard (into track/ of the run directory) or wandb; --track for short."""
    cpu: bool = False
    """Stay on the CPU even where a GPU is present."""
    threads: int = 0
    """CPU threads; 0 is those of OMP_NUM_THREADS, or else one for a small network and all CPUs."""
    timeout_s: int = 600
    """Seconds that a process waits for the others before the run ends and names the missing."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        rule = "no or bf16 (float16 overflows in the integer attention sums)"
        precision = self.mixed_precision
        check(precision not in ("fp16", "float16"), "train.mixed_precision", precision, rule)
        for text in self.phases:
            rule = "time steps x epochs [@ learning rate], such as 1x200 or 1x200@6e-4"
            check(_STRETCH.fullmatch(text) is not None, "train.phases", text, rule)
            try:
                _stretch(text, self.optim)
            except ConfigError as fault:
                raise ConfigError(f"train.phases={shown(text)}: {fault}") from None
        plain = not self.static_graph or self.accumulate == 1
        check(plain, "train.static_graph", True, "with --train.accumulate 1 alone")
        check_fields(
            self, "train.", batch_size=1, eval_batch_size=1, accumulate=1, validate_every=1,
            skip_limit=1, timeout_s="[1, 1e7]", checkpoint_steps=0,
            threads=f"[0, {MOST_THREADS}]", workers=f"[0, {MOST_WORKERS}]",
            distill_temperature="(0, 1e6)", teacher_weight="[0, 1]",
            ema_decay="[0, 1)", loss=("mean", "tet"), nonfinite=("stop", "skip"), track=TRACKERS,
            mixed_precision=("no", "bf16"),
        )  # fmt: skip

    @property
    def stretches(self) -> list[tuple[int, int, OptimConfig | None]]:
        """Of each of `phases` the time steps, the epochs, and its optimizer where it names one."""
        return [_stretch(text, self.optim) for text in self.phases]

    @property
    def before(self) -> int:
        """Epochs of all `phases`."""
        return sum(epochs for _, epochs, _ in self.stretches)
