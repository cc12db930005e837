"""One phase in progress: steps, epochs, validation, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import Interrupted
from spikeformer_lt.images.loader import train_loader
from spikeformer_lt.rng import seed_for
from spikeformer_lt.training.ema import Ema
from spikeformer_lt.training.guard import NonFiniteGuard
from spikeformer_lt.training.hook import Hooks
from spikeformer_lt.training.losses import distill_loss, task_loss
from spikeformer_lt.training.optim import Schedule, build_optimizer
from spikeformer_lt.training.phase import FitResult, Phase, Progress
from spikeformer_lt.training.phase_state import (
    Position,
    restore_position,
    save_position,
    state_of,
)
from spikeformer_lt.training.progress import EpochProgress, removed
from spikeformer_lt.training.ranks import agreed_signal, share_buffers
from spikeformer_lt.training.record import record_epoch
from spikeformer_lt.training.watch import FiringWatch

if TYPE_CHECKING:
    from spikeformer_lt.training.trainer import Trainer

log = logging.getLogger(__name__)


class PhaseRun:
    """Trains one phase for a :class:`Trainer` and keeps its best validated weights."""

    def __init__(self, trainer: Trainer, model: nn.Module, phase: Phase) -> None:
        self.trainer, self.model, self.phase, self.config = trainer, model, phase, trainer.config
        self.optim = phase.optimizer(trainer.config.optim)
        accelerator = trainer.accelerator
        size = self.config.batch_size * trainer.world * self.config.accumulate
        self.steps = len(trainer.data.train) // size
        if self.steps == 0:
            check(False, "train.batch_size", size, f"at most {len(trainer.data.train)} (train set)")
        self.hooks = Hooks(phase.hooks)
        self.hooks.start(model, self.steps, phase.epochs)
        optimizer = build_optimizer(model, self.optim)
        self.entry = phase.lr_from.iterations(self.steps)
        updates = self.entry + phase.epochs * self.steps
        self.schedule = Schedule(optimizer, self.optim, updates, self.steps)
        self.ema = Ema(model, self.config.ema_decay) if self.config.ema_decay else None
        self.watch = FiringWatch(model)
        self.guard = NonFiniteGuard(self.config.nonfinite, self.config.skip_limit)
        self.at = Position(rows=trainer.run.rows())
        self.best: dict[str, Tensor] | None = None
        self.wrapped = accelerator.prepare(model) if trainer.world > 1 else model
        self.optimizer = optimizer
        self._restore()

    def _save(self) -> None:
        if self.trainer.main:
            self.guard.check_buffers(self.model)
            save_position(self, self.trainer.last)

    def _restore(self) -> None:
        if not self.trainer.run.resumed:
            return
        found = self.trainer.last.load()
        if found is not None and found.state["phase"] == self.phase.name:
            restore_position(self, found)
            log.info("resumed %s at epoch %d step %d", self.phase.name, self.at.epoch, self.at.step)
        else:  # the row of an epoch whose checkpoint was never published comes again
            self.at.rows = 0 if found is None else int(found.state["position"]["rows"])
        self.trainer.run.truncate(self.at.rows)

    # -- training ------------------------------------------------------------------------

    def train(self) -> tuple[FitResult, dict[str, Tensor]]:
        """Run the epochs that are left."""
        at, phase = self.at, self.phase
        while at.epoch < phase.epochs and not self.hooks.before_epoch(self.model, at.epoch):
            self._epoch()
        if self.best is None:  # a hook ended the phase before any validation counted
            share_buffers(self.model)
            self.best = {k: v.clone() for k, v in state_of(self.model).items()}
        on_test = at.best_on_test if self.config.best_on_test else None
        result = FitResult(
            phase.name, at.best_accuracy, at.best_epoch, at.epoch, at.seconds, on_test
        )
        self.watch.close()
        return result, self.best

    def _epoch(self) -> None:
        trainer, at, config = self.trainer, self.at, self.config
        loader = train_loader(
            trainer.data.train,
            trainer.augment,
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=at.epoch,
            start_step=at.step * config.accumulate,
            workers=config.workers,
            rank=trainer.rank,
            world_size=trainer.world,
        )
        self._train_mode()
        gone = removed(self.model, *self.hooks.removed())
        start, batches = time.monotonic(), iter(loader)
        rest = (self.phase.epochs - at.epoch - 1) * self.steps
        per_step = config.batch_size * config.accumulate * trainer.world
        title = f"{self.phase.name} epoch {at.epoch + 1}/{self.phase.epochs}"
        with EpochProgress(title, self.steps - at.step, rest, per_step, show=trainer.main) as bar:
            lr = float(self.optimizer.param_groups[0]["lr"])  # resumed after the last step
            while at.step < self.steps:
                lr = self._step(batches)
                at.step += 1
                bar.step(loss=at.loss_sum / max(1, at.step), rate=self.watch.mean_rate(), **gone)
                every = config.checkpoint_steps
                if every and at.step % every == 0 and at.step < self.steps:
                    at.seconds += time.monotonic() - start
                    start = time.monotonic()
                    self._save()
                self._honour_stop()
            speed = bar.images_per_s
        at.seconds += time.monotonic() - start
        self._end_epoch(speed, lr)

    def _step(self, batches: Any) -> float:
        at, config = self.at, self.config
        loss_sum, correct, seen = 0.0, 0.0, 0
        update = at.epoch * self.steps + at.step
        if self.phase.before_step is not None:
            self.phase.before_step(Progress(at.epoch, at.step, self.steps, self.phase.epochs))
        lr = self.schedule.set(self.entry + update)
        torch.manual_seed(seed_for(config.seed, self.phase.name, "noise", update))
        self.optimizer.zero_grad(set_to_none=True)
        kept = self.guard.keep_buffers(self.model)
        for part in range(config.accumulate):
            images, labels, indices = (t.to(self.trainer.accelerator.device) for t in next(batches))
            self.guard.check_batch(images, indices)
            last = part == config.accumulate - 1
            sync = contextlib.nullcontext() if last else self._no_sync()
            with sync:
                logits, loss = self._loss(images, labels, update * config.accumulate + part)
                (loss / config.accumulate).backward()
            loss_sum += float(loss.detach()) / config.accumulate
            correct += float((logits.detach().mean(1).argmax(1) == labels).sum())
            seen += len(labels)
        progress = Progress(at.epoch, at.step, self.steps, self.phase.epochs)
        self.hooks.after_backward(self.model, self.optimizer, progress)
        trained = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if self.guard.check_step(norm, logits, self.model):
            self.guard.restore_buffers(self.model, kept)
            return lr
        if self.optim.clip_grad:
            nn.utils.clip_grads_with_norm_(trained, self.optim.clip_grad, norm)
        at.loss_sum += loss_sum
        at.correct += correct
        at.seen += seen
        self.optimizer.step()
        if self.phase.after_step is not None:
            self.phase.after_step()
        self.hooks.after_step(self.model, update + 1, self.ema)
        return lr

    def _loss(self, images: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        phase, config = self.phase, self.config
        seed = seed_for(config.seed, phase.name, "mix", batch, self.trainer.rank)
        mixing, classes = self.trainer.mixing, self.trainer.data.num_classes
        mix = self.at.epoch < mixing.until * phase.epochs
        images, target = mixing.apply(images, labels, classes, seed, mix=mix)
        with self.trainer.accelerator.autocast():
            logits = self.wrapped(images)
        loss = task_loss(logits, target, config.loss)
        if phase.teacher is not None and phase.distill > 0:
            with torch.no_grad(), self.trainer.accelerator.autocast():
                taught = phase.teacher.eval()(images)
            soft = distill_loss(logits, taught, config.distill_temperature)
            loss = (1 - phase.distill) * loss + phase.distill * soft
        return logits, loss

    def _no_sync(self) -> Any:
        return self.trainer.accelerator.no_sync(self.wrapped)

    def _train_mode(self) -> None:
        self.model.train()
        for name, module in self.model.named_modules():
            if any(name == p or name.startswith(p + ".") for p in self.phase.frozen):
                module.eval()

    # -- epoch end -----------------------------------------------------------------------

    def _end_epoch(self, speed: float, lr: float) -> None:
        trainer, at, phase = self.trainer, self.at, self.phase
        per_step = self.config.batch_size * self.config.accumulate
        last = at.epoch + 1 == phase.epochs
        row: dict[str, Any] = {
            "phase": phase.name,
            "epoch": at.epoch + 1,
            "train_loss": at.loss_sum / max(1, at.seen) * per_step,
            "train_accuracy": 100 * at.correct / max(1, at.seen),
            "lr": lr,
            "firing_rate": self.watch.mean_rate(),
            **removed(self.model, *self.hooks.removed()),
            "val_loss": None,
            "val_accuracy": None,
        }
        if last or (at.epoch + 1) % self.config.validate_every == 0:
            with contextlib.nullcontext() if self.ema is None else self.ema.swapped(self.model):
                metrics = trainer.evaluate(self.model, "val")
                row |= {"val_loss": metrics.loss, "val_accuracy": metrics.accuracy}
                settled = at.epoch >= min(phase.settled_from, phase.epochs - 1)
                if settled and self.config.best_on_test:
                    on_test = trainer.evaluate(self.model, "test").accuracy
                    at.best_on_test = max(at.best_on_test, on_test)
                if settled and metrics.accuracy >= at.best_accuracy:
                    at.best_accuracy, at.best_epoch = metrics.accuracy, at.epoch
                    self.best = {k: v.clone() for k, v in state_of(self.model).items()}
        self.watch.warn(at.epoch)
        record_epoch(self, row, speed)
        self.watch.reset()
        at.rows, at.epoch, at.step = at.rows + 1, at.epoch + 1, 0
        at.loss_sum, at.correct, at.seen = 0.0, 0.0, 0
        self._save()
        self._honour_stop(saved=True)

    def _honour_stop(self, saved: bool = False) -> None:
        signum = agreed_signal(getattr(self.trainer.stop, "signum", 0))
        if not signum:
            return
        if not saved:
            self._save()
        self.trainer.accelerator.wait_for_everyone()
        raise Interrupted(
            signum, f"stopped at {self.phase.name} epoch {self.at.epoch + 1} step "
            f"{self.at.step}; everything is saved: go on with --run.resume auto"
        )  # fmt: skip
