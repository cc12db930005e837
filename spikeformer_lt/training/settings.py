"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import check
from spikeformer_lt.training.losses import LOSSES
from spikeformer_lt.training.phase import OptimConfig


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
    """no or bf16; neurons, BatchNorm, gains and mask sums stay float32."""
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
    distill_temperature: float = 2.0
    """Softmax temperature of the distillation term."""
    tensorboard: bool = False
    """Also write TensorBoard scalars into the run directory."""
    cpu: bool = False
    """Stay on the CPU even where a GPU is present."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""
    timeout_s: int = 600
    """Seconds that a process waits for the others before the run ends and names the missing."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "eval_batch_size",
            "accumulate",
            "validate_every",
            "skip_limit",
            "timeout_s",
        ):
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("workers", "checkpoint_steps", "threads"):
            check(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "at least 0")
        check(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "in [0, 1)")
        check(self.loss in LOSSES, "train.loss", self.loss, f"one of {', '.join(LOSSES)}")
        check(self.nonfinite in ("stop", "skip"), "train.nonfinite", self.nonfinite, "stop or skip")
        allowed = ("no", "bf16")
        check(
            self.mixed_precision in allowed,
            "train.mixed_precision",
            self.mixed_precision,
            "no or bf16 (float16 overflows in the integer attention sums)",
        )
