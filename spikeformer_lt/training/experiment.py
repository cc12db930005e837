"""What every recipe does around its search: data, model, run directory, trainer, ticket.

The set that is there is settled, with its usual augmentation and mixing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from spikeformer_lt.adapted import Adapted, at_door, refuse_unfit
from spikeformer_lt.bundle import open_bundle
from spikeformer_lt.config import (
    changes,
    check,
    check_limits,
    entry_options,
    flat_values,
    given_options,
    to_dict,
)
from spikeformer_lt.disk import nothing_written, sha256_of
from spikeformer_lt.errors import ConfigError, Interrupted, SpikeformerError, TicketError, name_of
from spikeformer_lt.events.augment import EventAugment
from spikeformer_lt.images.augment import Augment, Mixing
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.layers.kernels.dispatch import sparse_mode
from spikeformer_lt.layers.neuron import lif_path
from spikeformer_lt.registry import create_model
from spikeformer_lt.rng import isolated_rng, seed_for, seeded
from spikeformer_lt.runtime import OPENMP, WAITING, memory_bytes
from spikeformer_lt.ticket import TICKET, Ticket, finished_folder, start_folder
from spikeformer_lt.training import ranks
from spikeformer_lt.training.checkpoint import load_weights, refuse_misfits
from spikeformer_lt.training.optim import check_optimizer
from spikeformer_lt.training.options import (
    DataConfig,
    lasting,
    load_splits,
    split_options,
    value_at,
)
from spikeformer_lt.training.run import RunChoice, RunDir, RunLog
from spikeformer_lt.training.settle import CIFAR10, FOLLOWING, Wanted, settle, with_published
from spikeformer_lt.training.trainer import Trainer

log = logging.getLogger(__name__)
ORIGIN = (
    *("search", "config", "search_seed", "early_time", "seed", "split_sha256", "model", "options"),
)
"""Provenance that tells how a ticket was found."""


def augmentation(data: DataConfig, splits: Splits) -> tuple[Augment | EventAugment, Mixing]:
    """Return what training does to samples and batches: the set's usual, or what was asked for."""
    name = splits.augment if data.augment == "auto" else data.augment
    asked = {"mixup": data.mixup, "smoothing": data.smoothing, "until": data.mix_until}
    given = {field: value for field, value in asked.items() if value is not None}
    kind = EventAugment if splits.kind == "events" else Augment
    mixing, usual = Mixing.standard(name), Mixing.standard(splits.augment)
    if mixing != usual and len(given) < len(asked):
        told = "mixup %g, smoothing %g and mix_until %g go with data.augment=%s, in place of %s's"
        log.info(told, mixing.mixup, mixing.smoothing, mixing.until, name, splits.augment)
    if getattr(kind.standard(name), "hflip", 0) and splits.mirror_changes_label:
        told = "NOTICE: %s: data.augment=%s mirrors samples, which changes the class of some"
        log.warning(told, splits.name, name)
    return kind.standard(name), replace(mixing, cutmix=data.cutmix, **given)


def origin_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What made a ticket, by name: its search and configuration, model, options, split, seed.

    Values are as JSON gives them back; measured ones are left out.
    """
    known = {name: provenance[name] for name in ORIGIN if name in provenance}
    values = dict(flat_values(json.loads(json.dumps(known))))
    return {name: value for name, value in values.items() if "divergences" not in name}


def begun_from(cfg: Any) -> dict[str, str]:
    """sha256 of the weights in the folders that options name: what is there may be replaced."""
    places = {"model.init_from": finished_folder, "ticket": start_folder}
    places |= {"multisp.ticket": finished_folder}
    named = {path: place(where) for path, place in places.items() if (where := value_at(cfg, path))}
    files = {path: folder / "model.safetensors" for path, folder in named.items()}
    return {path: sha256_of(file) for path, file in files.items() if file.is_file()}


_OPEN: list[Experiment] = []


def check_memory(model: nn.Module, T: int, batch_size: int) -> None:
    """Refuse what the machine cannot hold even without the activations inside the blocks.

    Counted are weights, gradients and two moments, and one float32 input and one map of tokens a
    block for all T: less than any training needs.
    """
    numel = sum(p.numel() for p in model.parameters())
    size: Any = getattr(model, "image_size", 0)
    height, width = size if isinstance(size, tuple) else (size, size)
    values = getattr(model, "in_channels", 1) * height * width
    blocks, dim = getattr(model, "blocks", ()), getattr(model, "embed_dim", 0)
    values += getattr(model, "num_tokens", 0) * dim * len(blocks)
    need, there = 16 * numel + 4 * T * batch_size * values, memory_bytes()
    if torch.cuda.is_available():
        there = torch.cuda.mem_get_info()[1]
    if there is not None and need > there:
        raise ConfigError(
            f"a step needs {need / 1e9:.3g} GB at least, {there / 1e9:.3g} GB are there: use a "
            f"smaller --model.T ({T}), --train.batch-size ({batch_size}) or network"
        )


class Experiment:
    """Context of one run; leaves signal handlers and logging as they were.

    Args:
        cfg: a recipe's configuration with ``data, model, train, run`` groups.
        fallback, small, wanted: as in `settle`.
        search: name of the search, which is part of the run's identity.
        published: options of the search's preset, as in `with_published`.
        network: the model, where it is no registered one; it is changed in place.
        teacher: network of the folder ``train.teacher`` for some data, or None; `teacher_of`.
        ledger: what the row of each validated epoch counts, as of `Trainer`; `epoch_ledger`.
    """

    run: RunDir

    def __init__(
        self,
        cfg: Any,
        *,
        fallback: str,
        small: dict[str, Any],
        wanted: Wanted = CIFAR10,
        search: str = "",
        published: Mapping[str, Any] = MappingProxyType({}),
        network: nn.Module | None = None,
        teacher: Callable[[str, Splits], nn.Module | None] = lambda *_: None,
        ledger: Callable[..., Mapping[str, float]] = lambda *_: {},
    ) -> None:
        self.search, self.stop, self.network = search, ranks.StopRequest(), network
        self.ledger, self.teacher = ledger, teacher
        settled, self.notice, self.taken = settle(cfg, wanted, fallback, small)
        self.cfg, self.deviations = with_published(settled, published, given_options(cfg))

    def __enter__(self) -> Experiment:
        cfg, train = self.cfg, self.cfg.train
        check_limits(cfg)
        self._threads = torch.get_num_threads()
        self.accelerator = self._own_accelerator()
        self.peers = ranks.gather_peers()
        self._log = RunLog(None, early=self.accelerator.is_main_process)
        self.stop.__enter__()
        try:
            self.data = load_splits(cfg.data, cfg.model.T, entry_options(cfg, cfg.data.name))
            facts = {name: str(value) for name, value in flat_values(to_dict(cfg))}
            facts |= {"data split": self.data.split_sha256, "torch": str(torch.__version__)}
            ranks.refuse_differences(facts)
            self.check()
            identity = self._identity()
            self.run = RunDir.open(
                cfg.run.out, cfg, slug=f"{cfg.model.name}-{cfg.data.name}", identity=identity,
                resume=cfg.run.resume, allow=self._allowed(), seed=train.seed, log=self._log,
            )  # fmt: skip
            augment, mixing = augmentation(cfg.data, self.data)
            names = ("data", "model", "train", cfg.data.name, cfg.model.name)
            groups = {name: to_dict(getattr(cfg, name)) for name in names if hasattr(cfg, name)}
            groups |= (
                {"network": {"weights": identity["weights"]}} if self.network is not None else {}
            )
            places = self.data, train, self.run, self.accelerator
            self.trainer = Trainer(
                *places, augment=augment, mixing=mixing, stop=self.stop, made_by=lasting(groups),
                extend=cfg.run.extend, ledger=self.ledger,
            )  # fmt: skip
            if (taught := self.teacher(train.teacher, self.data)) is not None:
                self.trainer.teacher = taught.to(self.accelerator.device)
                self.trainer.made_by["train.teacher_sha256"] = ranks.digest(taught.state_dict())
        except BaseException as fault:
            self.__exit__(type(fault), fault)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *trace: object
    ) -> None:
        self.stop.__exit__()
        torch.set_num_threads(self._threads)
        for tracker in getattr(self.accelerator, "trackers", ()):
            tracker.finish()
        if self in _OPEN:
            _OPEN.remove(self)
        if hasattr(self, "run"):
            if isinstance(error, Exception) and not isinstance(error, Interrupted):
                self.run.abandon()  # what has no checkpoint blocks no path
            self.run.close()
        self._log.close()
        ranks.name_lost(self.peers, error, self.cfg.train.timeout_s)

    def _identity(self) -> dict[str, str]:
        """What the run is besides its options; for `weights` those of a network handed over."""
        known, own = {"recipe": type(self.cfg).__name__, "search": self.search}, self.network
        start = {} if own is None else {"weights": ranks.digest(own.state_dict())}
        return {**known, **start, **begun_from(self.cfg), "split": self.data.split_sha256}

    def check(self) -> nn.Module:
        """Check network, batches and memory against data and machine, before anything is made.

        Return the network, without weights where it can be made so.

        Raises:
            ConfigError: as the network, augmentation, mixing and optimizer; fewer samples than one
                batch; or memory that the machine does not have.
        """
        train, data = self.cfg.train, self.data
        augment, mixing = augmentation(self.cfg.data, data)
        augment.check()
        mixing.check(train.batch_size)
        images, world = len(data.train), ranks.asked_processes()
        batch = train.batch_size * train.accumulate * world
        rule = f"at most {images} (train set), {train.accumulate} accumulated x {world} processes"
        check(batch <= images, "train.batch_size", batch, rule)
        check_optimizer(train.optim)
        most, rule = self.cfg.model.T, "of recordings no more time steps than --model.T"
        longer = data.kind == "events" and any(most < T for T, *_ in train.stretches)
        check(not longer, "train.phases", train.phases, f"{rule}={most}")
        name, args = self.cfg.model.name, self.model_args()
        if (model := self.network) is not None:
            refuse_unfit(model)
            odd = [f"{n}: {p.dtype}" for n, p in model.named_parameters() if p.dtype != torch.float]
            check(not odd, "model", odd[:1], "a network of float32: net.float()")
        with isolated_rng(0):
            try:
                with torch.device("meta"):
                    model = create_model(name, **args) if model is None else model
            except SpikeformerError:
                raise
            except Exception:  # a plug-in's, which computes while it is built
                model = create_model(name, **args)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model {name} gave {type(model).__name__}, not an nn.Module")
        check_memory(model, self.cfg.model.T, train.batch_size)
        return model

    def dry_run(self, searched: Callable[[nn.Module], object] | None = None) -> str:
        """Check everything that can be checked without making anything; say what would run.

        `searched` is what a search checks of the network, as `Search.check`.
        """
        cfg = self.cfg
        check_limits(cfg)
        choice = RunChoice(cfg, "", cfg.run.resume, self._allowed(), Path("runs"))
        folder, extend = choice.check(cfg.run.out), cfg.run.extend
        finished = folder is not None and (folder / "report.json").is_file()
        check(
            not extend or finished, "run.extend", extend, "0 but for a finished run: --run.resume"
        )
        start = cfg.model.start_weights()
        data, own = cfg.data, entry_options(cfg, cfg.data.name)
        split_file = getattr(data, "split_file", None)
        if split_file and not Path(split_file).exists():  # it would be written
            data = replace(data, split_file=None)
        with nothing_written("a dry run writes nothing"):
            self.data = load_splits(data, cfg.model.T, own)
            if folder is not None:
                replace(choice, identity=self._identity()).environment(folder)
            model = self.check()
            if start is not None:
                refuse_misfits(model, start, cfg.model.init_from)
            if searched is not None:
                searched(model)
            self.teacher(cfg.train.teacher, self.data)
            if self.network is None:  # one that was handed over has been tried
                self._try_sample()
        numbers = sum(p.numel() for p in model.parameters())
        sizes = (
            f"{len(self.data.train)} train, {len(self.data.val)} val, {len(self.data.test)} test"
        )
        return (
            f"dry run: {cfg.model.name} of {numbers:,} parameters, T {cfg.model.T}, on "
            f"{self.data.name} ({sizes}): options, data, network and memory are in order; nothing "
            "was written"
        )

    def _try_sample(self) -> None:
        name, sample = self.cfg.model.name, self.data.train[0][0][None]
        try:
            with isolated_rng(0), torch.no_grad():
                made = create_model(name, **self.model_args())
                at_door(made, self.cfg.model.T, sample.float).eval()(sample.float())
        except SpikeformerError:
            raise
        except Exception as fault:
            raise ConfigError(
                f"model {name} fails on a sample of {self.data.name}, {list(sample.shape)}: "
                f"{type(fault).__name__}: {fault}"
            ) from fault

    def _allowed(self) -> list[str]:
        """Fields that may change on a resume, with the lengths that follow those named."""
        allowed = list(self.cfg.run.allow_config_change)
        groups = [name.removesuffix(".epochs") for name in allowed if name.endswith(".epochs")]
        return allowed + [
            f"{group}.{name}" for group in groups for name in FOLLOWING
            if value_at(self.cfg, f"{group}.{name}") is not None
        ]  # fmt: skip

    def _own_accelerator(self) -> Accelerator:
        """Make an accelerator, whose device and precision are those of the whole process."""
        train, state = self.cfg.train, AcceleratorState._shared_state
        wanted = {"cpu": train.cpu, "mixed_precision": train.mixed_precision}
        if state and {name: state.get(f"_{name}") for name in wanted} != wanted:
            if _OPEN or ranks.together():
                raise ConfigError(
                    f"another run of this process has other values than train.cpu={train.cpu} and "
                    f"train.mixed_precision={train.mixed_precision}: close it first, or start "
                    "this one in a process of its own"
                )
            AcceleratorState._reset_state(reset_partial_state=True)
        waiting = ranks.process_group(train.timeout_s)
        views = DistributedDataParallelKwargs(
            gradient_as_bucket_view=True, static_graph=train.static_graph
        )
        made = Accelerator(**wanted, kwargs_handlers=[waiting, views])
        _OPEN.append(self)
        return made

    def model_args(self) -> dict[str, Any]:
        """Keywords that build this run's model."""
        data, model = self.data, self.cfg.model
        own: dict[str, Any] = {"num_classes": data.num_classes, "in_channels": data.in_channels}
        own |= {"image_size": data.image_size, **entry_options(self.cfg, model.name)}
        return {**own, **model.args()}

    def model(self) -> nn.Module:
        """Create the model, from the run's seed or ``model.init_from``, and announce the run."""
        name, classes = self.cfg.model.name, self.data.num_classes
        with seeded(seed_for(self.cfg.train.seed, "init")):
            made = self.network
            made = create_model(name, **self.model_args()) if made is None else made
        start = self.cfg.model.start_weights()
        if start is not None:
            load_weights(made, start, self.cfg.model.init_from)
        model = at_door(made, self.cfg.model.T, lambda: self.trainer.batch(3)[0])
        if isinstance(model, Adapted):
            rule = f"a network of {classes} outputs for {self.data.name}, not {model.num_classes}"
            check(model.num_classes == classes, "model.name", name, rule)
        self._announce(model)
        return model

    def save_ticket(self, ticket: Ticket) -> Ticket:
        """Save the ticket into the run with what is needed to build it again."""
        noted = ticket.provenance.get("mask_sha256", ticket.mask.sha256)
        if noted != ticket.mask.sha256:
            raise TicketError(
                f"the ticket's mask is {ticket.mask.sha256[:12]}, and its provenance is of mask "
                f"{str(noted)[:12]}; save the ticket that the search returned"
            )
        known = {"name": self.cfg.model.name, "args": self.model_args()}
        options = entry_options(self.cfg, self.data.name)
        origin = {
            "model": known,
            "dataset": self.data.name,
            "split_sha256": self.data.split_sha256,
            "data": split_options(self.cfg.data),
            **({"data_options": options} if options else {}),
            "seed": self.cfg.train.seed,
            "run_id": self.run.run_id,
            **(self.data.preprocess.noted() if self.data.preprocess else {}),
        }
        noted_ones = ticket.provenance.get("deviations", ())
        differing = list(dict.fromkeys([*noted_ones, *self.deviations]))  # it may be saved again
        provenance = {**ticket.provenance, **origin, "options": self.trainer.made_by}
        made = json.dumps(origin_of(provenance), sort_keys=True)
        provenance["deviations"] = differing
        provenance["fingerprint"] = hashlib.sha256(made.encode()).hexdigest()
        self._refuse_another(provenance)
        ticket = Ticket(ticket.mask, ticket.tensors, provenance)
        found = {"mask": ticket.mask.sha256, "weights": ranks.digest(ticket.tensors)}
        ranks.refuse_differences({f"the ticket's {name}": value for name, value in found.items()})
        ranks.on_first(lambda: ticket.save(self.run.path / "ticket", overwrite=True))
        return ticket

    def _refuse_another(self, provenance: dict[str, Any]) -> None:
        """Refuse to put a ticket in the place of one that was found otherwise."""
        folder = self.run.path / "ticket"
        if not folder.is_dir():
            return
        saved = open_bundle(folder, TICKET).about.get("provenance")
        old = origin_of(saved if isinstance(saved, dict) else {})
        now = origin_of(provenance)
        if changed := changes(old, {name: now.get(name, "absent") for name in old}):
            raise ConfigError(
                f"{name_of(folder)} was found otherwise: {'; '.join(changed)}; take the old "
                "values, or choose another --run.out"
            )

    def _announce(self, model: nn.Module) -> None:
        trainer, data, cfg, train = self.trainer, self.data, self.cfg, self.cfg.train
        if not trainer.main:
            return
        log.info("***** %s *****", self.run.run_id)
        notices = ranks.launcher_notices(trainer.world, train.mixed_precision, train.accumulate)
        half = train.mixed_precision == "bf16" and trainer.accelerator.device.type == "cpu"
        if half and not torch.cpu.get_capabilities().get("amx_bf16", False):
            notices.append(
                "train.mixed_precision=bf16 was measured slower than float32 on Intel's CPUs "
                "without AMX, 0.98 to 1.25 times as fast on a Zen 5"
            )
        for line in filter(None, [self.notice, *notices]):
            log.warning("NOTICE: %s", line)
        sizes = f"{len(data.train)} train, {len(data.val)} val, {len(data.test)} test"
        log.info("data %s: %s (split %s)", data.name, sizes, data.split_sha256[:12])
        log.debug("options in force: %s", dict(flat_values(to_dict(cfg))))
        if self.taken:
            log.info("values for %s, where no option names another: %s", data.name, self.taken)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        source = f", weights of {cfg.model.init_from}" if cfg.model.init_from else ""
        name, steps = cfg.model.name, getattr(model, "T", cfg.model.T)  # an adapted network's own
        log.info("model %s: %.2f M parameters, T %d%s", name, millions, steps, source)
        device = trainer.accelerator.device
        total = train.batch_size * train.accumulate * trainer.world
        if isinstance(model, Adapted):
            log.info("adapted: %s", model.found)
        log.info(
            "batch %d x %d accumulated x %d processes = %d, lr %g, on %s, %d threads, "
            "kernels %s, sparse weights by lists %s, freed memory %s, OpenMP %s, waits %s%s",
            train.batch_size, train.accumulate, trainer.world, total, train.optim.lr, device,
            torch.get_num_threads(), lif_path(device), sparse_mode(), trainer.heap, OPENMP, WAITING,
            ", activations computed again" if train.recompute else "",
        )  # fmt: skip
