"""The trainer of a run: phases one after another, on accelerate, resumable to the bit.

`Trainer.fit` is what searches are given. `PhaseRun` is one phase in progress: its steps, epochs,
validations and checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.config import check, to_dict
from spikeformer_lt.errors import ConfigError, Interrupted, SpikeformerError, name_of, one_of
from spikeformer_lt.images.augment import Mixing
from spikeformer_lt.images.loader import Augmentation, Workers, sample_loader, train_loader
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.layers.kernels.dispatch import kept_weights
from spikeformer_lt.layers.patches import penalties
from spikeformer_lt.layers.recompute import set_recompute
from spikeformer_lt.rng import STREAM, seed_for
from spikeformer_lt.runtime import keep_heap, threads_chosen
from spikeformer_lt.training import checkpoint
from spikeformer_lt.training.evaluate import Metrics, evaluate
from spikeformer_lt.training.monitor import (
    EpochProgress,
    FiringWatch,
    NonFiniteGuard,
    clock,
    epoch_line,
    estimate_step,
    merged,
    removed,
    start_trackers,
)
from spikeformer_lt.training.optim import Ema, Schedule, build_optimizer
from spikeformer_lt.training.options import TrainConfig, lasting
from spikeformer_lt.training.phase import FitResult, Hooks, Phase, Progress, held
from spikeformer_lt.training.ranks import (
    StopRequest,
    agreed,
    digest,
    gathered,
    on_first,
    share_buffers,
    synced_norms,
)
from spikeformer_lt.training.run import RunDir

log = logging.getLogger(__name__)
SMALL_STEP_MB = 60  # saved for backward: below, one thread was the fastest, see benchmarks/busy.py
READ_STEPS = 8  # steps between two readings of faults and signals, where they wait for somebody


def task_loss(logits: Tensor, target: Tensor, kind: str = "mean") -> Tensor:
    """Cross entropy of logits ``[B, T, K]`` and classes ``[B]`` or probabilities ``[B, K]``.

    `kind` is ``mean`` of the logits over T (Spikformer), or ``tet``: mean over T of the cross
    entropy at each step (Deng et al., ICLR 2022, eq. 9 without the MSE term).
    """
    logits = logits.float()
    if kind == "mean":
        return F.cross_entropy(logits.mean(1), target)
    one_of("loss", kind, ("mean", "tet"))
    steps = logits.shape[1]
    return F.cross_entropy(logits.flatten(0, 1), target.repeat_interleave(steps, 0))


def distill_loss(logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """KL(teacher || student) of the softened mean logits, times temperature squared.

    Source: Hinton et al., 2015, section 2.
    """
    student = F.log_softmax(logits.float().mean(1) / temperature, dim=1)
    target = F.log_softmax(teacher.float().mean(1) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)


@dataclass
class Position:
    """Where a phase is, and what it has summed up so far."""

    epoch: int = 0
    step: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = -1
    best_on_test: float = -1.0
    rows: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    correct: float = 0.0
    seen: int = 0


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict, detached."""
    return {name: value.detach() for name, value in model.state_dict().items()}


def save_position(
    run: PhaseRun, store: checkpoint.CheckpointStore, ranks: Sequence[Any] = ()
) -> None:
    """Begin to publish a checkpoint whose number grows through all phases of the run.

    `ranks` has what each rank counted in this epoch: loss, right answers, images, firing.
    """
    moments, opt_state = checkpoint.flatten_optimizer(run.optimizer.state_dict())
    average = run.ema.tensors() if run.ema is not None else {}
    more = {"ema": average, "best": run.best or {}, "hooks": run.hooks.tensors()}
    tensors = {"model": state_of(run.model), "optimizer": moments}
    tensors |= {group: own for group, own in more.items() if own}
    state = {
        "phase": run.phase.name, checkpoint.MADE_BY: run.facts, "position": asdict(run.at),
        "optimizer": opt_state, "steps": run.steps,
        "firing": run.watch.state(), "guard": run.guard.state(), "hooks": run.hooks.state(),
    }  # fmt: skip
    if len(ranks) > 1:
        state["ranks"] = list(ranks)
    if run.trainer.data.preprocess is not None:
        state |= run.trainer.data.preprocess.noted()
    store.begin(tensors, state)


def restore_position(run: PhaseRun, found: checkpoint.Checkpoint) -> None:
    """Put a phase back to where a checkpoint left it; CheckpointError if it is of another model."""
    tensors, state = found.tensors, found.state
    checkpoint.load_weights(run.model, tensors["model"], str(found.path))
    checkpoint.restore_optimizer(run.optimizer, tensors["optimizer"], state["optimizer"])
    if run.ema is not None:
        run.ema.load(tensors["ema"])
    run.best, run.at = tensors.get("best"), Position(**state["position"])
    before = state.get("steps", run.steps)
    if run.at.step and before != run.steps:  # another number of processes, as the user allowed
        run.at.step = run.at.step * run.steps // before
        log.warning("NOTICE: an epoch has %d steps now, not %d", run.steps, before)
    run.watch.load_state(state["firing"])
    ranks, world, rank = state.get("ranks", []), run.trainer.world, run.trainer.rank
    if ranks and len(ranks) != world:  # another number of ranks: the first takes all over
        ranks = [[*(sum(own[i] for own in ranks) for i in range(3)), merged([o[3] for o in ranks])]]
    if ranks or rank > 0:
        counted: Any = ranks[rank] if rank < len(ranks) else [0.0, 0.0, 0, {}]
        run.at.loss_sum, run.at.correct, run.at.seen = counted[:3]
        run.watch.load_state(counted[3])
    run.guard.load_state(state["guard"])
    run.hooks.load(tensors.get("hooks", {}), state.get("hooks", []))


def record_epoch(run: PhaseRun, row: Mapping[str, Any], speed: float) -> None:
    """Write an epoch's rows, log it, and pass it to the trackers.

    Firing rates and `speed`, in images/s, are of all ranks.
    """
    trainer, at, phase = run.trainer, run.at, run.phase
    if not trainer.main:
        return
    rates = run.watch.rates()
    trainer.run.append_row(dict(row) | phase.tags)
    trainer.run.append_row({"phase": row["phase"], "epoch": row["epoch"], **rates}, "firing")
    left = at.seconds / (at.epoch + 1) * (run.until - at.epoch - 1)
    later = at.seconds / (at.epoch + 1) * trainer.later(phase)
    of = run.hooks.weights(run.model)
    log.info("%s", epoch_line(row, run.until, speed, left, left + later, of))
    if trainer.tracked:
        named = {**row, **{f"firing/{name}": rate for name, rate in rates.items()}}
        numbers = {f"{phase.name}/{k}": v for k, v in named.items() if isinstance(v, float)}
        trainer.accelerator.log(numbers, step=at.epoch + 1)


class PhaseRun:
    """Trains one phase for a :class:`Trainer` and keeps its best validated weights."""

    def __init__(self, trainer: Trainer, model: nn.Module, phase: Phase, until: int) -> None:
        self.trainer, self.model, self.phase, self.config = trainer, model, phase, trainer.config
        self.until = until  # epochs, with those that a finished phase is extended by
        self.optim, self.facts = phase.optimizer(trainer.config.optim), trainer.facts(phase, model)
        found = trainer.last.load() if trainer.run.resumed else None
        if found is not None and found.state["phase"] == phase.name:
            checkpoint.refuse_another(found, self.facts, f"phase {phase.name}")
        images = len(trainer.data.train)
        self.batch = self.config.batch_size * trainer.world * self.config.accumulate
        self.steps = images // self.batch
        check(self.steps > 0, "train.batch_size", self.batch, f"at most {images} (train set)")
        self.hooks = Hooks(phase.hooks)
        self.hooks.start(model, self.steps, phase.epochs)
        self.within = contextlib.ExitStack()
        self.within.enter_context(held(model, phase.frozen))
        self.optimizer = build_optimizer(model, self.optim)
        if trainer.main:  # before DistributedDataParallel, whose backward waits for other ranks
            self._estimate()
        self.entry = phase.lr_from.iterations(self.steps)
        updates = self.entry + phase.epochs * self.steps
        self.schedule = Schedule(self.optimizer, self.optim, updates, self.steps)
        if self.schedule.notice and trainer.main:
            log.warning("NOTICE: phase %s: %s", phase.name, self.schedule.notice)
        self.ema = Ema(model, self.config.ema_decay) if self.config.ema_decay else None
        self.watch = FiringWatch(model)
        self.guard = NonFiniteGuard(self.config.nonfinite, self.config.skip_limit, self._agree)
        self.signum = 0  # the signal that any rank was sent
        self.at = Position(rows=trainer.run.rows())
        # Nothing waits for the device in a step: loss and right answers are summed there.
        kind = torch.float32 if trainer.accelerator.device.type == "mps" else torch.float64
        self.sums = torch.zeros(2, dtype=kind, device=trainer.accelerator.device)
        self.best: dict[str, Tensor] | None = None
        if self.config.sync_norm and trainer.world > 1:
            self.within.enter_context(synced_norms(model))
        self.wrapped = trainer.accelerator.prepare(model) if trainer.world > 1 else model
        trainer.kept |= {"batches": Workers(until), "val": Workers(), "test": Workers()}
        if trainer.run.resumed:
            self._restore(found)

    def _estimate(self) -> None:
        """Say what the network of this phase, as the search made it, will take."""
        trainer, config = self.trainer, self.config
        few = min(8, config.batch_size)
        images, _, _ = next(iter(train_loader(trainer.data.train, trainer.augment, few, 0, 0)))
        images = images.nan_to_num(0.0, 0.0, 0.0).to(trainer.accelerator.device)
        if trainer.any_threads:
            torch.set_num_threads(trainer.threads)
        with trainer.accelerator.autocast():
            guess = estimate_step(self.model, images, config.batch_size)
            if trainer.any_threads and guess.saved_mb < SMALL_STEP_MB and trainer.threads > 1:
                torch.set_num_threads(1)
                log.info("one thread: a step of %s is small (--train.threads)", self.phase.name)
                guess = estimate_step(self.model, images, config.batch_size)
        step = guess.seconds_per_step * config.accumulate
        epochs = self.phase.epochs
        log.info(
            "estimate: %.0f MB for a step of %s (%.0f saved for backward), %.3f s a step, %s an "
            "epoch, %s for %d epochs and %s for those of the run",
            guess.saved_mb + guess.weights_mb, self.phase.name, guess.saved_mb, step,
            clock(step * self.steps), clock(step * self.steps * epochs), epochs,
            clock(step * self.steps * (epochs + trainer.later(self.phase))),
        )  # fmt: skip

    def _save(self) -> None:
        self.at.loss_sum, self.at.correct = self.sums.tolist()
        own = [self.at.loss_sum, self.at.correct, self.at.seen, self.watch.state()]
        ranks = gathered(own)

        def save() -> None:
            self.guard.check_buffers(self.model)
            save_position(self, self.trainer.last, ranks)

        on_first(save)

    def _restore(self, found: checkpoint.Checkpoint | None) -> None:
        if found is not None and found.state["phase"] == self.phase.name:
            restore_position(self, found)
            at = self.at
            self.sums.copy_(torch.tensor([at.loss_sum, at.correct], dtype=torch.float64))
            log.info("resumed %s at epoch %d step %d", self.phase.name, at.epoch + 1, at.step)
        else:  # the row of an epoch whose checkpoint was never published comes again
            self.at.rows = 0 if found is None else int(found.state["position"]["rows"])
        self.trainer.run.truncate(self.at.rows)

    def train(self) -> tuple[FitResult, dict[str, Tensor]]:
        """Run the epochs that are left."""
        at, phase = self.at, self.phase
        while at.epoch < self.until and not self.hooks.before_epoch(self.model, at.epoch):
            self._epoch()
        if self.best is None:  # a hook ended the phase before any validation counted
            share_buffers(self.model)
        best = self.best or state_of(self.model)
        on_test = at.best_on_test if self.config.best_on_test else None
        reached = at.best_accuracy, at.best_epoch + 1, at.epoch, at.seconds, on_test
        return FitResult(phase.name, *reached), best

    def close(self) -> None:
        """Take the hooks off the model and free the wrapper that averages its gradients."""
        with contextlib.ExitStack() as left:
            parts: Sequence[Any] = self.within, self.watch, *self.trainer.kept.values()
            for part in parts:
                left.callback(part.close)
            try:
                self.trainer.last.wait()
            except SpikeformerError as fault:  # what stopped the training is raised already
                log.warning("%s", fault)
        self.trainer.kept.clear()
        if self.wrapped is not self.model:
            self.wrapped = self.model
            self.trainer.accelerator.free_memory()

    def _epoch(self) -> None:
        trainer, at, config = self.trainer, self.at, self.config
        loader = train_loader(
            trainer.data.train, trainer.augment, batch_size=config.batch_size, seed=config.seed,
            epoch=at.epoch, start_step=at.step * config.accumulate, workers=config.workers,
            rank=trainer.rank, world_size=trainer.world, kept=trainer.kept["batches"],
            pin_memory=trainer.accelerator.device.type == "cuda", accumulate=config.accumulate,
        )  # fmt: skip
        self.model.train()
        for name, module in self.model.named_modules():
            if any(f"{name}.".startswith(f"{prefix}.") for prefix in self.phase.frozen):
                module.eval()
        gone = removed(self.model, self.hooks.masks())
        start, batches = time.monotonic(), iter(loader)
        rest = (self.until - at.epoch - 1 + trainer.later(self.phase)) * self.steps
        title = f"{self.phase.name} epoch {at.epoch + 1}/{self.until}"
        with EpochProgress(title, self.steps - at.step, rest, self.batch, show=trainer.main) as bar:
            while at.step < self.steps:
                with STREAM:  # its noise is drawn from torch's own stream
                    self._step(batches)
                at.step += 1
                now = time.monotonic()
                at.seconds, start = at.seconds + now - start, now
                bar.step(
                    lambda: {
                        "loss": float(self.sums[0]) / at.step,
                        "rate": self.watch.mean_rate(),
                        **gone,
                    }
                )
                every = config.checkpoint_steps
                if every and at.step % every == 0 and at.step < self.steps:
                    self._save()
                self._honour_stop()
            speed = bar.images_per_s
        self._end_epoch(speed)

    def _step(self, batches: Any) -> None:
        at, config = self.at, self.config
        sums, seen = torch.zeros_like(self.sums), 0
        update = at.epoch * self.steps + at.step
        late = int(at.epoch >= self.phase.epochs)  # what ends with the phase stays ended
        progress = Progress(at.epoch, at.step + late, self.steps, self.phase.epochs)
        if self.phase.before_step is not None:
            self.phase.before_step(progress)
        self.schedule.set(self.entry + update)
        own = [self.trainer.rank] if self.trainer.rank else []
        torch.manual_seed(seed_for(config.seed, self.phase.name, "noise", update, *own))
        self.optimizer.zero_grad(set_to_none=True)
        kept = self.guard.keep_buffers(self.model)
        with kept_weights(self.hooks.kept(self.model, progress)):
            for part in range(config.accumulate):
                images, labels, indices = (
                    t.to(self.trainer.accelerator.device, non_blocking=True) for t in next(batches)
                )
                self.guard.check_batch(images, indices)
                more = part < config.accumulate - 1
                no_sync = self.trainer.accelerator.no_sync
                with no_sync(self.wrapped) if more else contextlib.nullcontext():
                    logits, loss = self._loss(images, labels, update * config.accumulate + part)
                    (loss / config.accumulate).backward()
                right = (logits.detach().mean(1).argmax(1) == labels).sum()
                sums[0] += loss.detach().to(sums.dtype) / config.accumulate
                sums[1] += right
                seen += len(labels)
        self.hooks.after_backward(self.model, self.optimizer, progress)
        trained = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if self.guard.check_step(norm, logits, self.model, self._reads(at.step)):
            self.guard.restore_buffers(self.model, kept)
            return
        if self.optim.clip_grad:
            nn.utils.clip_grads_with_norm_(trained, self.optim.clip_grad, norm)
        self.sums += sums
        at.seen += seen
        self.optimizer.step()
        if self.phase.after_step is not None:
            self.phase.after_step()
        self.hooks.after_step(self.model, update + 1, self.ema)

    def _reads(self, step: int) -> bool:
        """Whether a step is one after which all ranks look at what went wrong, and at signals."""
        alone = self.trainer.world == 1 and self.sums.device.type == "cpu"
        saved = self.config.checkpoint_steps and (step + 1) % self.config.checkpoint_steps == 0
        often = alone or self.guard.policy == "skip" or saved
        return bool(often or step % READ_STEPS == 0 or step + 1 == self.steps)

    def _agree(self, fault: bool) -> bool:
        """Ask all ranks, in one message, for a fault, a signal and a save that was refused."""
        refused = self.trainer.last.refused
        if self.trainer.world == 1 and not refused:
            return fault
        signum = getattr(self.trainer.stop, "signum", 0)
        fault_of_any, self.signum, refused_to_any = agreed(fault, signum, refused)
        if refused_to_any and not self.signum:  # a stop saves once more
            on_first(self.trainer.last.wait)
        return bool(fault_of_any)

    def _loss(self, images: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        phase, config = self.phase, self.config
        seed = seed_for(config.seed, phase.name, "mix", batch, self.trainer.rank)
        mixing, classes = self.trainer.mixing, self.trainer.data.num_classes
        mix = min(self.at.epoch, phase.epochs - 1) < mixing.until * phase.epochs
        images, target = mixing.apply(images, labels, classes, seed, mix=mix)
        with self.trainer.accelerator.autocast(), penalties() as added:
            logits = self.wrapped(images)
        loss = task_loss(logits, target, config.loss)
        teacher, weight = phase.teacher, phase.distill
        if teacher is None or weight == 0:
            teacher, weight = self.trainer.teacher, config.teacher_weight
        if teacher is not None:
            with torch.no_grad(), self.trainer.accelerator.autocast():
                taught = teacher.eval()(images)
            soft = distill_loss(logits, taught, config.distill_temperature)
            loss = (1 - weight) * loss + weight * soft
        return logits, sum(added, start=loss)

    def _end_epoch(self, speed: float) -> None:
        trainer, at, phase = self.trainer, self.at, self.phase
        counted = gathered([*self.sums.tolist(), at.seen, self.watch.state()])
        loss_sum, correct, seen = (sum(own[i] for own in counted) for i in range(3))
        self.watch.load_state(merged([own[3] for own in counted]))
        row: dict[str, Any] = {
            "phase": phase.name, "epoch": at.epoch + 1,
            "train_loss": loss_sum / max(1, seen) * (self.batch // trainer.world),
            "train_accuracy": 100 * correct / max(1, seen),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "firing_rate": self.watch.mean_rate(), **removed(self.model, self.hooks.masks()),
            "val_loss": None, "val_accuracy": None,
        }  # fmt: skip
        if at.epoch + 1 == self.until or (at.epoch + 1) % self.config.validate_every == 0:
            with contextlib.nullcontext() if self.ema is None else self.ema.swapped(self.model):
                metrics = trainer.evaluate(self.model, "val")
                row |= {"val_loss": metrics.loss, "val_accuracy": metrics.accuracy}
                row |= trainer.ledger(self.model, trainer.data.val, trainer.accelerator.device)
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
        at.rows, at.epoch, at.step, at.seen = at.rows + 1, at.epoch + 1, 0, 0
        self.sums.zero_()
        self._save()
        self._agree(False)
        self._honour_stop(saved=True)

    def _honour_stop(self, saved: bool = False) -> None:
        if self.trainer.world == 1:
            self.signum = getattr(self.trainer.stop, "signum", 0)
        if not self.signum:
            return
        try:
            if not saved:
                self._save()
            on_first(self.trainer.last.wait)
        except SpikeformerError:  # perhaps of the one before: there may be room again
            self._save()
            on_first(self.trainer.last.wait)
        step, epoch = self.at.step, self.at.epoch
        where = f"epoch {epoch + 1} step {step}" if step else f"the end of epoch {epoch}"
        told = f"stopped at {self.phase.name} {where}; everything is saved"
        raise Interrupted(self.signum, f"{told}: go on with --run.resume auto")


class Trainer:
    """Trains phases of one run; an instance's :meth:`fit` is what searches are given.

    The test split of `data` is read for ``best_on_test`` only. `run` gets checkpoints, rows and
    results of phases. `stop` is honoured between steps; the caller owns the signal handlers.
    `made_by` are the facts of the run, by name, that its phases depend on: without them those of
    `data`, `config` and `mixing`. `extend` trains the last phase of a finished run on, for so many
    epochs beyond its own. `ledger` counts on a device what a network costs on a data set: numbers
    by name, for the rows of the epochs that are validated.

    Attributes:
        planned: epochs of all phases of the run, for the time that is left; 0 where unknown.
    """

    def __init__(
        self,
        data: Splits,
        config: TrainConfig,
        run: RunDir,
        accelerator: Accelerator,
        *,
        augment: Augmentation,
        mixing: Mixing,
        stop: StopRequest | None = None,
        made_by: Mapping[str, Any] | None = None,
        extend: int = 0,
        ledger: Callable[[nn.Module, Any, torch.device], Mapping[str, float]] = lambda *_: {},
    ) -> None:
        self.threads, self.any_threads = torch.get_num_threads(), False
        if config.threads:
            torch.set_num_threads(config.threads)
        else:
            single = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
            self.any_threads = single and not threads_chosen(self.threads)
        mixing.check(config.batch_size)
        self.heap = keep_heap()
        self.data, self.config, self.run = data, config, run
        self.augment, self.mixing, self.stop, self.ledger = augment, mixing, stop, ledger
        self.accelerator, self.main = accelerator, accelerator.is_main_process
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        self.last = checkpoint.CheckpointStore(run.path / "last", keep=2)
        self.extend = extend
        self.teacher: nn.Module | None = None  # of all phases that have none of their own
        self.extended = self._last_phase() if extend else ""
        self.kept: dict[str, Workers] = {}  # processes that load in a phase, by what they load
        self.starts: dict[str, str] = {}  # hash of what each phase of this process began with
        self.planned, self.behind = 0, 0  # epochs of the run, and of its phases that are done
        known = {"data": {"name": data.name}, "train": to_dict(config), "mixing": to_dict(mixing)}
        self.made_by = dict(lasting(known) if made_by is None else made_by)
        self.made_by["data.split"] = data.split_sha256
        made_from = data.preprocess.facts() if data.preprocess else {}
        self.made_by |= {f"data.preprocess.{name}": value for name, value in made_from.items()}
        self.tracked = tuple(dict.fromkeys([*config.track, *["tensorboard"] * config.tensorboard]))
        if self.tracked:
            start_trackers(accelerator, self.tracked, run.path)

    def _last_phase(self) -> str:
        """Name of the phase that a finished run ended with."""
        if not (self.run.path / "report.json").is_file():
            raise ConfigError(
                f"run.extend={self.extend} is not allowed: {name_of(self.run.path)} is not a "
                "finished run; give it by --run.resume, or finish it without --run.extend first"
            )
        found = self.last.load()
        return "" if found is None else str(found.state["phase"])

    def fit(self, model: nn.Module, phase: Phase) -> FitResult:
        """Train `model` in place; afterwards it holds its best validated weights.

        A finished phase is restored from ``best/``; an interrupted one goes on at the very step.
        """
        with self.run.speaks():
            return self._fit(model, phase)

    def _fit(self, model: nn.Module, phase: Phase) -> FitResult:
        model.to(self.accelerator.device)
        set_recompute(model, self.config.recompute)
        store = checkpoint.CheckpointStore(self.run.path / "best" / phase.name, keep=1)
        finished, hooks, facts = store.load(), Hooks(phase.hooks), self.facts(phase, model)
        start = digest(state_of(model))
        if self.starts.setdefault(phase.name, start) != start:
            raise ConfigError(
                f"phase {phase.name} of this run began with other weights: give each phase a name "
                "of its own, or each network a run"
            )
        until = phase.epochs + (self.extend if phase.name == self.extended else 0)
        if finished is not None:
            checkpoint.refuse_another(finished, facts, f"phase {phase.name}")
            checkpoint.load_weights(model, finished.tensors["model"], str(finished.path))
            hooks.load(finished.tensors.get("hooks", {}), finished.state.get("hooks", []))
            log.info("phase %s was finished before: %s", phase.name, finished.path)
            result = FitResult(**finished.state["result"])
            if checkpoint.MADE_BY not in finished.state:  # of a version that counted epochs from 0
                result = replace(result, best_epoch=result.best_epoch + 1)
            self.behind += phase.epochs
            if result.epochs >= until:
                return result
            log.warning(
                "NOTICE: phase %s goes on from epoch %d to %d, at the learning rates of its last "
                "step; mixing and masks stay as they ended",
                phase.name, result.epochs, until,
            )  # fmt: skip
        if phase.epochs == 0:
            return FitResult(phase.name, float("nan"), 0, 0, 0.0)
        with contextlib.closing(PhaseRun(self, model, phase, until)) as run:
            result, tensors = run.train()
            on_first(self.last.wait)
        checkpoint.load_weights(model, tensors, f"phase {phase.name}")
        groups = {"model": tensors, **({"hooks": own} if (own := hooks.tensors()) else {})}
        state = {"result": asdict(result), "hooks": hooks.state(), checkpoint.MADE_BY: facts}
        on_first(lambda: store.save(store.next_number(), groups, state))
        self.behind += 0 if finished else phase.epochs
        return result

    def later(self, phase: Phase) -> int:
        """Epochs of the run after a phase that is in progress, as far as they are planned."""
        return max(0, self.planned - self.behind - phase.epochs)

    def facts(self, phase: Phase, model: nn.Module) -> dict[str, Any]:
        """Everything that makes a phase of this run, by name; it resumes under the same alone."""
        steps = getattr(model, "T", None)
        network = {"network": model._get_name(), "T": steps if isinstance(steps, int) else None}
        own = {f"{phase.name}.{name}": value for name, value in network.items()}
        return {**self.made_by, **phase.facts(self.config.optim), **own}

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """So many training images, or all, not augmented, and their labels.

        They are drawn by hash from the run's seed, with the classes in proportion.
        """
        loader = sample_loader(self.data.train, count, count, self.config.seed)
        images, labels, _ = next(iter(loader))
        return images.to(self.accelerator.device), labels.to(self.accelerator.device)

    def evaluate(self, model: nn.Module, split: str) -> Metrics:
        """Evaluate on ``train``, ``val`` or ``test``: every sample once, by one network."""
        share_buffers(model)
        size, workers = self.config.eval_batch_size, self.config.workers
        own: Any = {"batch_size": size, "workers": workers, "kept": self.kept.get(split)}
        with STREAM:
            return evaluate(model, getattr(self.data, split), self.data, self.accelerator, **own)
