"""A phase: one stretch of training with its own epochs, optimizer and hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from torch import nn

from spikeformer_lt.config import check
from spikeformer_lt.step import Step

if TYPE_CHECKING:
    from spikeformer_lt.training.hook import Hook


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
    """Learning-rate schedule: cosine, linear, step or constant."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from warmup_lr."""
    warmup_lr: float = 1e-5
    """Learning rate at the start of the warm-up."""
    cooldown_epochs: float = 0.0
    """Epochs at min_lr after the schedule, the last of the phase's."""
    score_lr: float = 0.01
    """Learning rate of subnetwork scores (they follow the same schedule, without decay)."""
    clip_grad: float = 5.0
    """Largest gradient norm; 0 does not clip."""

    def __post_init__(self) -> None:
        for name in ("lr", "score_lr"):
            value = getattr(self, name)
            check(0 < value < 1e3, f"optim.{name}", value, "a positive finite number")
        lengths = ("warmup_epochs", "cooldown_epochs")
        for name in ("weight_decay", "min_lr", "warmup_lr", "clip_grad", *lengths):
            value = getattr(self, name)
            check(0 <= value < 1e9, f"optim.{name}", value, "a finite number >= 0")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        scheds = ("cosine", "linear", "step", "constant")
        check(self.sched in scheds, "optim.sched", self.sched, f"one of {', '.join(scheds)}")


@dataclass(frozen=True)
class Progress:
    """Where a phase stands, before a step."""

    epoch: int
    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epochs_done(self) -> float:
        """Epochs behind, with the fraction of the present one."""
        return self.epoch + self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Fraction of the phase that is done, in [0, 1)."""
        return self.epochs_done / self.epochs


@dataclass(frozen=True)
class Phase:
    """What a search asks of `fit`.

    Attributes:
        name: unique in the run: key of its checkpoints, seeds and summary rows.
        epochs: epochs to train; 0 returns at once.
        optim: overrides the run's optimizer.
        before_step: called before every optimizer step (mask updates, annealing).
        after_step: called after it (re-applying a weight mask).
        settled_from: first epoch whose validation may choose the best weights; earlier ones
            have not reached the sparsity asked for.
        teacher: frozen network whose softened logits are distilled.
        distill: weight of the distillation term, in [0, 1].
        frozen: prefixes of parameter names that do not train, and whose BatchNorms stay in eval.
        hooks: what the search does inside; their state is saved and restored with the phase.
        lr_factor: multiplies the peak learning rate, also that of scores.
        lr_from: point of the learning-rate schedule to start at: the schedule is that of a phase
            which is longer by so much, entered there.
    """

    name: str
    epochs: int
    optim: OptimConfig | None = None
    before_step: Callable[[Progress], None] | None = None
    after_step: Callable[[], None] | None = None
    settled_from: int = 0
    teacher: nn.Module | None = None
    distill: float = 0.0
    frozen: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()
    lr_factor: float = 1.0
    lr_from: Step = field(default_factory=Step)
    tags: dict[str, str] = field(default_factory=dict)

    def optimizer(self, usual: OptimConfig) -> OptimConfig:
        """The optimizer of this phase in a run whose `usual` one is given."""
        chosen, by = self.optim or usual, self.lr_factor
        return replace(chosen, lr=chosen.lr * by, score_lr=chosen.score_lr * by)


@dataclass(frozen=True)
class FitResult:
    """What a phase reached: the model holds its best validated weights.

    `epochs` is how many it trained: fewer than asked for where a hook ended it.
    """

    phase: str
    val_accuracy: float
    best_epoch: int
    epochs: int
    seconds: float
    best_on_test: float | None = None
    """Best test accuracy of all validated epochs, %, where it was asked for."""


class Fit(Protocol):
    """Train `model` in place through one phase; resumable, deterministic for a given seed."""

    def __call__(self, model: nn.Module, phase: Phase) -> FitResult:
        """Train and return what was reached."""
