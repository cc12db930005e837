"""What every recipe does around its search: data, model, run directory, trainer, ticket."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from spikeformer_lt.config import flat_values, to_dict
from spikeformer_lt.errors import CheckpointError, ConfigError, DataError
from spikeformer_lt.images.loader import train_loader
from spikeformer_lt.layers.neuron import lif_path
from spikeformer_lt.layers.recompute import set_recompute
from spikeformer_lt.openmp import OPENMP
from spikeformer_lt.registry import create_model
from spikeformer_lt.rng import seed_for
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.datachoice import CIFAR10, Wanted, augmentation, settle
from spikeformer_lt.training.estimate import estimate_step
from spikeformer_lt.training.lost_ranks import gather_peers, name_lost
from spikeformer_lt.training.options import load_splits, split_options
from spikeformer_lt.training.progress import clock
from spikeformer_lt.training.ranks import digest, launcher_notices, refuse_differences
from spikeformer_lt.training.rundir import RunDir
from spikeformer_lt.training.signals import StopRequest
from spikeformer_lt.training.trainer import Trainer
from spikeformer_lt.training.weights import load_weights

log = logging.getLogger(__name__)


class Experiment:
    """Context of one run; leaves signal handlers and logging as they were.

    Args:
        cfg: a recipe's configuration with ``data, model, train, run`` groups.
        fallback: embedded data set for ``data.name auto``.
        small: option values for the fallback, where the user named none; a group stands for
            each of its fields.
        wanted: what ``data.name auto`` stands for where it is on disk.
    """

    def __init__(
        self, cfg: Any, *, fallback: str, small: dict[str, Any], wanted: Wanted = CIFAR10
    ) -> None:
        self.asked, self.cfg, self.wanted = cfg, cfg, wanted
        self.fallback, self.small = fallback, small
        self.stop = StopRequest()
        self.notice = self.taken = ""

    def __enter__(self) -> Experiment:
        self.cfg, self.notice, self.taken = settle(self.cfg, self.wanted, self.fallback, self.small)
        cfg = self.cfg
        train = cfg.train
        waiting = InitProcessGroupKwargs(timeout=timedelta(seconds=train.timeout_s))
        self.accelerator = Accelerator(
            cpu=train.cpu, mixed_precision=train.mixed_precision, kwargs_handlers=[waiting]
        )
        self.peers = gather_peers()
        self.run = RunDir.open(
            cfg.run.out,
            cfg,
            slug=f"{cfg.model.name}-{cfg.data.name}",
            resume=cfg.run.resume,
            allow=cfg.run.allow_config_change,
            seed=train.seed,
        )
        self.stop.__enter__()
        try:
            self.data = load_splits(cfg.data, cfg.model.T)
            facts = {name: str(value) for name, value in flat_values(to_dict(cfg))}
            facts |= {"data split": self.data.split_sha256, "torch": str(torch.__version__)}
            refuse_differences(facts)
            augment, mixing = augmentation(cfg.data, self.data)
            self.trainer = Trainer(
                self.data,
                train,
                self.run,
                self.accelerator,
                augment=augment,
                mixing=mixing,
                stop=self.stop,
            )
        except BaseException as fault:
            self.__exit__(type(fault), fault, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.__exit__(kind, error, trace)
        if isinstance(error, (CheckpointError, ConfigError, DataError)):
            self.run.abandon()
        self.run.close()
        name_lost(self.peers, error, self.cfg.train.timeout_s)

    def model_args(self) -> dict[str, Any]:
        """Keywords that build this run's model."""
        data = self.data
        own = {"num_classes": data.num_classes, "in_channels": data.in_channels}
        return {**own, "image_size": data.image_size, **self.cfg.model.args()}

    def model(self) -> nn.Module:
        """Create the model, from the run's seed or from given weights, and announce the run.

        Raises:
            CheckpointError: the weights of ``model.init_from`` are damaged or of another model.
        """
        torch.manual_seed(seed_for(self.cfg.train.seed, "init"))
        model: nn.Module = create_model(self.cfg.model.name, **self.model_args())
        start = self.cfg.model.start_weights()
        if start is not None:
            load_weights(model, start, self.cfg.model.init_from)
        set_recompute(model, self.cfg.train.recompute)  # the estimate counts what it keeps
        self._announce(model)
        return model

    def save_ticket(self, ticket: Ticket) -> Ticket:
        """Save the ticket into the run with what is needed to build it again."""
        known = {"name": self.cfg.model.name, "args": self.model_args()}
        origin = {
            "model": known,
            "dataset": self.data.name,
            "split_sha256": self.data.split_sha256,
            "data": split_options(self.cfg.data),
            "seed": self.cfg.train.seed,
            "run_id": self.run.run_id,
        }
        ticket = Ticket(ticket.mask, ticket.tensors, {**ticket.provenance, **origin})
        found = {"mask": ticket.mask.sha256, "weights": digest(ticket.tensors)}
        refuse_differences({f"the ticket's {name}": value for name, value in found.items()})
        if self.trainer.main:
            ticket.save(self.run.path / "ticket", overwrite=True)
        return ticket

    def _announce(self, model: nn.Module) -> None:
        trainer, data, train = self.trainer, self.data, self.cfg.train
        if not trainer.main:
            return
        log.info("***** %s *****", self.run.run_id)
        if self.notice:
            log.warning("NOTICE: %s", self.notice)
        for line in launcher_notices(trainer.world, train.mixed_precision, train.accumulate):
            log.warning("NOTICE: %s", line)
        log.info(
            "data %s: %d train, %d val, %d test (split %s)",
            data.name, len(data.train), len(data.val), len(data.test), data.split_sha256[:12],
        )  # fmt: skip
        if self.taken:
            log.info("values for %s, where no option names another: %s", data.name, self.taken)
        count = sum(p.numel() for p in model.parameters())
        log.info(
            "model %s: %.2f M parameters, T %d%s",
            self.cfg.model.name, count / 1e6, self.cfg.model.T,
            f", weights of {self.cfg.model.init_from}" if self.cfg.model.init_from else "",
        )  # fmt: skip
        total = train.batch_size * train.accumulate * trainer.world
        log.info(
            "batch %d x %d accumulated x %d processes = %d, lr %g, on %s, %d threads, "
            "kernels %s, freed memory %s, OpenMP %s%s",
            train.batch_size, train.accumulate, trainer.world, total, train.optim.lr,
            trainer.accelerator.device, torch.get_num_threads(),
            lif_path(trainer.accelerator.device), trainer.heap,
            OPENMP,
            ", activations computed again" if train.recompute else "",
        )  # fmt: skip
        size = min(8, train.batch_size)
        images, _, _ = next(iter(train_loader(data.train, trainer.augment, size, 0, 0)))
        model.to(trainer.accelerator.device)
        guess = estimate_step(model, images.to(trainer.accelerator.device), train.batch_size)
        steps = len(data.train) // total
        log.info(
            "estimate: %.0f MB for a step (%.0f saved for backward), %.3f s a step, %s an epoch",
            guess.total_mb, guess.saved_mb, guess.seconds_per_step * train.accumulate,
            clock(guess.seconds_per_step * train.accumulate * steps),
        )  # fmt: skip
