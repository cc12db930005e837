"""Budgets: a search again at other sparsities, until its trained network costs what it may."""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikeformer_lt.config import adapted, check
from spikeformer_lt.disk import write_atomic
from spikeformer_lt.errors import ConfigError, name_of
from spikeformer_lt.export.api import export_ticket, load_exported
from spikeformer_lt.export.file import TENSORS
from spikeformer_lt.images.loader import sample_loader
from spikeformer_lt.reports.ledger import AC_PJ, MAC_PJ, count_operations
from spikeformer_lt.reports.run_page import LEDGER_IMAGES
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.options import BudgetConfig, value_at, with_value
from spikeformer_lt.training.ranks import gathered, on_first

log = logging.getLogger(__name__)
LEAST = {"bytes": 0.99, "sops": 0.97, "energy": 0.97, "ms": 0.0}
"""Share of a budget that must be used."""
HIGHEST = 0.999  # sparsity beyond which nothing is tried
CALLS = 31


@dataclass(frozen=True)
class Trial:
    """One run of the search: its sparsity, what its network costs, and the quartiles of times."""

    sparsity: float
    value: float
    quartiles: tuple[float, float] | None = None


def cost(what: str, experiment: Any, model: nn.Module, ticket: Ticket) -> Trial:
    """What a trained network costs: bytes, SOPs, pJ of a sample, or ms of a call.

    Bytes are those of the tensor file of its export; SOPs and pJ of a sample over all T, on the
    hashed validation sample, 0 for an energy where a layer never fires; ms the median of 31 calls
    of the export on one validation sample, on this machine with the threads of the run.
    """
    val = experiment.data.val
    if what in ("sops", "energy"):
        device = next(model.parameters()).device
        some = [x.to(device) for x, _, _ in sample_loader(val, LEDGER_IMAGES)]
        counted = count_operations(model, some, experiment.cfg.model.T)
        macs, acs = counted.per_sample("multiplies"), counted.per_sample("acs")
        energy = 0.0 if counted.dead else MAC_PJ * macs + AC_PJ * acs
        return Trial(0.0, counted.per_sample("sops") if what == "sops" else energy)
    trained = Ticket.of(model, ticket.mask, {**ticket.provenance, "trained": True})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "export"
        export_ticket(trained, folder)
        if what == "bytes":
            return Trial(0.0, float((folder / TENSORS).stat().st_size))
        net, sample, times = load_exported(folder), next(iter(sample_loader(val, 1)))[0], []
        for call in range(3 + CALLS):
            begun = time.perf_counter()
            net(sample)
            times += [1e3 * (time.perf_counter() - begun)] * (call >= 3)
    low, middle, high = statistics.quantiles(times)
    return Trial(0.0, middle, (low, high))


def following(trials: list[Trial], budget: float, least: float) -> float:
    """The sparsity to try next, on a line through what is known; a ConfigError out of reach."""
    goal, order = budget * (1 + max(least, 0.9)) / 2, sorted(trials, key=lambda t: t.sparsity)
    under = next((t for t in order if t.value <= budget), None)
    above = [t for t in order if under is None or t.sparsity < under.sparsity]
    over = above[-1] if above else None
    if over is not None and over.sparsity >= HIGHEST:
        raise ConfigError(f"is below the smallest reachable value, {over.value:.6g}")
    if under is not None and under.sparsity <= 0:
        raise ConfigError(f"is above what no sparsity costs, {under.value:.6g}: nothing to remove")
    if over is not None and under is not None:
        share = (over.value - goal) / max(over.value - under.value, 1e-12)
        return over.sparsity + min(max(share, 0.05), 0.95) * (under.sparsity - over.sparsity)
    last = trials[-1]
    near = min(trials[:-1], key=lambda t: abs(t.value - last.value), default=Trial(1.0, 0.0))
    slope = (near.value - last.value) / ((near.sparsity - last.sparsity) or 1e-6)
    rate = last.sparsity + (goal - last.value) / slope if slope < 0 else last.sparsity
    if over is not None:
        return min(max(rate, over.sparsity + 0.1 * (1 - over.sparsity)), HIGHEST)
    return max(min(rate, last.sparsity - 0.1 * last.sparsity), 0.0)


def fit(measure: Callable[[float], Trial], budget: BudgetConfig, first: float) -> list[Trial]:
    """Try sparsities from `first` on until one costs what the budget says; the last one does.

    A ConfigError for what cannot be reached, with the smallest value, or was not in `tries` runs.
    """
    what, goal = budget.asked
    trials, rate = list[Trial](), min(max(first, 0.0), HIGHEST)
    while len(trials) < budget.tries:
        trials.append(replace(measure(rate), sparsity=rate))
        value = trials[-1].value
        if LEAST[what] * goal <= value <= goal:
            return trials
        try:
            rate = round(following(trials, goal, LEAST[what]), 6)
        except ConfigError as fault:
            raise ConfigError(f"budget.{what}={goal:g} {fault}") from None
    near = min(trials, key=lambda t: abs(t.value - goal))
    raise ConfigError(
        f"budget.{what}={goal:g} was not met in budget.tries={budget.tries} runs: {near.value:.6g} "
        f"at sparsity {near.sparsity:g} is nearest"
    )


RATES = {"multisp": "encoder.sparsity", "joint": "imp.sparsity"}


def within(
    cfg: Any, search: str, run: Callable[..., Any], show: Callable[[Path], None] | None = None
) -> Path:
    """Run a search at one sparsity after another, each in OUT.tries/, and keep the one that fits.

    Args:
        cfg: a recipe's configuration, whose ``budget`` asks for something.
        search: whose sparsity is changed where ``budget.over`` names no other option.
        show: called with the run's directory at the end, by the first process.
        run: ``run(cfg, accept=...)`` searches, trains and reports unless `accept` says no; the
            test set is read after that alone.

    Returns:
        ``run.out``, to which the run that fits is moved; ``budget.json`` there lists all tries.
    """
    budget, out = cfg.budget, Path(cfg.run.out)
    check(bool(cfg.run.out), "run.out", "", "a directory, with a budget")
    check(not out.exists(), "run.out", str(out), "a new directory, with a budget")
    usual = f"{search}.{RATES.get(search, 'sparsity')}"
    usual = usual if value_at(cfg, usual) is not None else "sparsity"  # of a recipe itself
    path, (what, goal) = budget.over or usual, budget.asked
    option = path.replace("-", "_")
    now, group = value_at(cfg, option), option.partition(".")[0]
    check(isinstance(now, float), "budget.over", path, "the option of a sparsity")
    tries = out.with_name(f"{out.name}.tries")

    def measure(rate: float) -> Trial:
        place, answers = tries / f"{rate:g}", list[Trial]()

        def accept(experiment: Any, model: nn.Module, ticket: Ticket) -> bool:
            own: list[Trial] = []
            on_first(lambda: own.append(cost(what, experiment, model, ticket)))
            answers.append(gathered(own[0] if own else None)[0])
            log.info("budget.%s %g: %g at --%s %g", what, goal, answers[0].value, path, rate)
            return bool(LEAST[what] * goal <= answers[0].value <= goal)

        one = replace(cfg.run, out=str(place), resume="auto")
        changed = {group: getattr(with_value(cfg, option, rate), group)}
        tried = adapted(cfg, option, run=one, budget=BudgetConfig(), **changed)
        try:
            run(tried, accept=accept)
        except ConfigError as fault:
            rule = f"at --{path} {rate:g}, which the budget asks for: {fault}"
            raise ConfigError(rule) from fault
        return answers[0]

    trials = fit(measure, budget, now or 0.9)
    about = {"budget": what, "limit": goal, "over": path, "tries": [asdict(t) for t in trials],
             "threads": torch.get_num_threads()}  # fmt: skip

    def publish() -> None:
        place = tries / f"{trials[-1].sparsity:g}"
        write_atomic(
            place / "budget.json", f"{json.dumps(about, indent=2)}\n".encode(), ConfigError
        )
        try:
            os.rename(place, out)
        except OSError as fault:
            raise ConfigError(f"cannot move {name_of(place)} to {name_of(out)}: {fault}") from None

    on_first(publish)
    if show is not None:
        on_first(lambda: show(out))
    return out
