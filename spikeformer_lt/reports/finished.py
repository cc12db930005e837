"""A finished run opened for reading: its network, its splits, its report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check, from_dict, to_dict
from spikeformer_lt.errors import TicketError, name_of, shown
from spikeformer_lt.export.inference import compact
from spikeformer_lt.images.loader import sample_loader
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.preprocess import Preprocess
from spikeformer_lt.registry import config_class
from spikeformer_lt.ticket import Ticket, finished_folder
from spikeformer_lt.training.options import EventDataConfig, load_splits
from spikeformer_lt.training.run import read_report

NEEDED = ("model", "dataset", "split_sha256")


@dataclass(frozen=True)
class FinishedRun:
    """Files of a finished run; its network is in eval mode, on the CPU."""

    path: Path
    name: str
    ticket: Ticket
    model: Any
    splits: Splits
    report: dict[str, Any] | None  # its report.json; None for a ticket alone
    own_split: bool  # whether the splits are those of the ticket's search
    untrained: bool = False  # whether these are start weights, meant to be trained again

    def batches(self, split: str, images: int, batch_size: int = 64) -> list[Tensor]:
        """Some images or frames of a split, classes in proportion, in batches."""
        return [x for x, _ in self.labelled(split, images, batch_size)]

    def labelled(
        self, split: str, images: int, batch_size: int = 64
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same with their labels."""
        for x, labels, _ in sample_loader(getattr(self.splits, split), images, batch_size):
            yield x, labels

    def notices(self) -> list[str]:
        """What a user should know before taking a number from it."""
        known, split = self.ticket.provenance, self.splits.split_sha256
        own = known.get("split_sha256", "not known")[:12]
        other = (
            f"split {split[:12]} is not the ticket's own ({own}); the training images of "
            f"{self.path} may be among these"
        )
        start = (
            f"this ticket holds its start weights, to be trained again: {self.path}; the report of "
            "its run has the accuracy of the trained network"
        )
        foreign = self.splits.name == known.get("dataset") and not self.own_split
        about = self.splits.notice
        return [about] * bool(about) + [other] * foreign + [start] * self.untrained


def open_run(
    path: str | Path, build: Callable[..., nn.Module], *how: Any, **options: Any
) -> FinishedRun:
    """Open a folder as `open_ticket` does, with its report if it has one; DataError if damaged."""
    run = open_ticket(path, build, *how, **options)
    place = run.path / "report.json"
    return replace(run, report=read_report(place)) if place.exists() else run


def open_ticket(
    path: str | Path,
    build: Callable[..., nn.Module],
    data: EventDataConfig | None = None,
    given: Collection[str] = (),
    read: Callable[[Path], Ticket] = Ticket.load,
    options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> FinishedRun:
    """Open a run directory or a ticket folder, without its report.

    Args:
        path: the directory; of a run, the network trained from its ticket is opened if it is there.
        build: makes the network of a ticket; `model_from_ticket`.
        data: its data set. None, ``auto`` and the ticket's own set take the ticket's own data
            options, except for those `given` by name; `options` are of the set's own config class.
            Another set of recordings is framed as the ticket's was.
        read: reads the ticket of a folder; `export.read_ticket` also reads exports.
        overrides: model arguments to change, such as T.

    Raises:
        TicketError: no ticket there, one without its model or data, or a data set of another
            number of classes.
        DataError: its data set cannot be found.
        ConfigError: a data set that prepares its samples in another way than the ticket's did.
    """
    folder = Path(path)
    ticket = read(finished_folder(folder))
    known = ticket.provenance
    data = data or EventDataConfig()
    if "model" in known and "source" in known and "dataset" not in known:  # of other code
        rule = "name the data set of a converted checkpoint, such as cifar10"
        check(data.name != "auto", "data.name", data.name, rule)
        known = {**known, "dataset": "", "split_sha256": ""}
    if missing := [name for name in NEEDED if name not in known]:
        raise TicketError(
            f"the ticket in {shown(str(path))} does not say its {', '.join(missing)}; "
            "tickets that recipes save do"
        )
    prepared = Preprocess.known(known)
    if data.name in ("auto", known["dataset"]):
        own, stored = known.get("data", {}), known.get("data_options", {})
        if not (isinstance(own, dict) and isinstance(stored, dict)):
            raise TicketError(f"the ticket in {name_of(path)} has odd options of its data set")
        own = {n: v for n, v in own.items() if f"data.{n}" not in given}
        data = from_dict(type(data), {**to_dict(data), "name": known["dataset"], **own}, "data.")
        if config := config_class("dataset", data.name):
            from_dict(config, stored, f"{data.name}.")
        options = {**stored, **(options or {})}
    elif prepared is not None and (how := prepared.recordings) is not None:
        own = {"by": how.by, "window_us": how.window_us, "values": how.values}
        own |= {"image_size": prepared.image_size, "transform": how.transform}
        data = replace(data, **{n: v for n, v in own.items() if f"data.{n}" not in given})
    model: Any = build(ticket, **overrides).to(torch.device("cpu"))
    splits = load_splits(data, model.T, options)
    classes = getattr(model, "num_classes", splits.num_classes)
    if classes != splits.num_classes:
        raise TicketError(
            f"the network in {shown(str(path))} has {classes} classes, {splits.name} has "
            f"{splits.num_classes}: name the data set that it was trained on"
        )
    if prepared is not None and splits.preprocess is not None:
        prepared.refuse_other(splits.preprocess, name_of(path), splits.name)
    own_split = (splits.name, splits.split_sha256) == (known["dataset"], known["split_sha256"])
    untrained = known.get("trained") is False
    return FinishedRun(folder, folder.name, ticket, model, splits, None, own_split, untrained)


def ready(run: FinishedRun) -> tuple[nn.Module, Tensor]:
    """The compact network of a run, and a batch of up to 32 test inputs, for `milliseconds`."""
    return compact(run.model), run.batches("test", 32)[0]


def milliseconds(
    runs: Mapping[str, tuple[nn.Module, Tensor]], rounds: int = 11
) -> dict[str, float]:
    """Time of one input of each network's batch: median of interleaved rounds."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for name, (net, x) in [*runs.items()] * (1 + rounds):  # the first round warms up
            start = time.perf_counter()
            net(x)
            spent[name].append(1e3 * (time.perf_counter() - start) / len(x))
    return {name: statistics.median(every[1:]) for name, every in spent.items()}
