"""The trainer of a run: phases one after another, resumable to the bit, on accelerate."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.images.mixing import Mixing
from spikeformer_lt.images.reading import Augmentation
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.layers.recompute import set_recompute
from spikeformer_lt.training.checkpoint import CheckpointStore
from spikeformer_lt.training.evaluation import Metrics, evaluate
from spikeformer_lt.training.heap import keep_heap
from spikeformer_lt.training.hook import Hooks
from spikeformer_lt.training.phase import FitResult, Phase
from spikeformer_lt.training.phase_run import PhaseRun
from spikeformer_lt.training.ranks import share_buffers
from spikeformer_lt.training.rundir import RunDir
from spikeformer_lt.training.settings import TrainConfig
from spikeformer_lt.training.signals import StopRequest

log = logging.getLogger(__name__)


class Trainer:
    """Trains phases of one run; an instance's :meth:`fit` is what searches are given.

    Args:
        data: splits; only ``train`` and ``val`` are read here, and test for ``best_on_test``.
        config: how to train.
        augment, mixing: of the training images.
        run: run directory; checkpoints, rows and phase results live there.
        accelerator: device, precision and process group.
        stop: stop request to honour between steps; the caller owns the signal handlers.
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
    ) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        mixing.check(config.batch_size)
        self.heap = keep_heap()
        self.data, self.config, self.run = data, config, run
        self.augment, self.mixing, self.stop = augment, mixing, stop
        self.accelerator = accelerator
        self.main = self.accelerator.is_main_process
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.last = CheckpointStore(run.path / "last", keep=2)
        self.board: Any = None
        if config.tensorboard and self.main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as missing:
                raise ConfigError(
                    f"train.tensorboard needs a package that is not installed ({missing}): "
                    "pip install tensorboard, or leave the flag out; summary.csv is always written"
                ) from None

            self.board = SummaryWriter(str(run.path / "tb"))

    def fit(self, model: nn.Module, phase: Phase) -> FitResult:
        """Train `model` in place; afterwards it holds its best validated weights.

        A phase that had finished is restored from ``best/`` of the run; one that was interrupted
        goes on at the very step.
        """
        model.to(self.accelerator.device)
        set_recompute(model, self.config.recompute)
        store = CheckpointStore(self.run.path / "best" / phase.name, keep=1)
        finished = store.load()
        if finished is not None:
            model.load_state_dict(finished.tensors["model"])
            saved = finished.state.get("hooks", [])
            Hooks(phase.hooks).load(finished.tensors.get("hooks", {}), saved)
            log.info("phase %s was finished before: %s", phase.name, finished.path)
            return FitResult(**finished.state["result"])
        if phase.epochs == 0:
            return FitResult(phase.name, float("nan"), -1, 0, 0.0)
        hooks = Hooks(phase.hooks)
        result, tensors = PhaseRun(self, model, phase).train()
        model.load_state_dict(tensors)
        if self.main:
            own = hooks.tensors()
            groups = {"model": tensors, **({"hooks": own} if own else {})}
            store.save(0, groups, {"result": asdict(result), "hooks": hooks.state()})
        self.accelerator.wait_for_everyone()
        return result

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` training images, not augmented, and their labels, on the device.

        They are the same for every search of a run; fewer come if the training set is smaller.
        """
        wanted = min(count, len(self.data.train))
        loader = eval_loader(self.data.train, wanted, workers=0)
        images, labels, _ = next(iter(loader))
        device = self.accelerator.device
        return images.to(device), labels.to(device)

    def evaluate(self, model: nn.Module, split: str) -> Metrics:
        """Evaluate on ``train``, ``val`` or ``test``: every sample once, by one network."""
        share_buffers(model)
        return evaluate(
            model,
            getattr(self.data, split),
            self.data,
            self.accelerator,
            batch_size=self.config.eval_batch_size,
            workers=self.config.workers,
        )
