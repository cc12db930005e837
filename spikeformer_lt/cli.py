"""The command line ``spikeformer-lt``, and what every recipe of a search shares.

``find SEARCH`` runs any registered search, a plug-in's too, with its options; ``run RECIPE`` runs a
recipe with its defaults. Nothing here imports torch before the options are read.

spikeformer-lt find imp --data.name digits --quick    # no download
spikeformer-lt find imp --data.name cifar10 --data.root data --run.out runs/found
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeformer_lt import runtime
from spikeformer_lt.bundle import outputs as outputs  # recipes take it from here
from spikeformer_lt.config import (
    ASSIGNED,
    PRINT_CONFIG,
    adapted,
    check,
    check_fields,
    entry_options,
    extended,
    flat_values,
    given_options,
    last_of_each,
    parse,
    split_plugins,
    to_dict,
    value_of,
)
from spikeformer_lt.disk import read_mapping, write_atomic
from spikeformer_lt.errors import ConfigError, TicketError, emphasised, near, painted, shown
from spikeformer_lt.named import check_known, refuse_options
from spikeformer_lt.registry import config_class, create_search, search_names, use_plugins
from spikeformer_lt.tickets import presets
from spikeformer_lt.training.options import (
    MOVING,
    BudgetConfig,
    DataConfig,
    EventDataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from spikeformer_lt.training.settle import CIFAR10, WANTED, settle
from spikeformer_lt.usage import introduction

if TYPE_CHECKING:
    from torch import nn

    from spikeformer_lt.training.jobs import Job

RECIPES = Path(__file__).parent / "recipes"
PAPER, PAPER_EVENTS = presets.PAPER, presets.PAPER_EVENTS
IMAGES_SMALL, EVENTS_SMALL = presets.IMAGES_SMALL, presets.EVENTS_SMALL
MULTISP_SUITES = presets.MULTISP_SUITES


def full_size(search: str) -> Callable[[], Any]:
    """What makes the configuration of a search for CIFAR-10."""
    kind: Any = config_class("search", search)
    return partial(kind, **presets.FULL_SIZE.get(search, {}))


def small(*searches: str, **more: Any) -> dict[str, Any]:
    """Values for the embedded digits, of all recipes and of some searches; more by their field."""
    known = presets.ON_DIGITS
    own = {f"{s}.{name}": value for s in searches for name, value in known.get(s, {}).items()}
    return {**IMAGES_SMALL, **own, **more}


@dataclass(frozen=True)
class ImageRecipe:
    """Options of every recipe that trains on images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        if hasattr(self, "preset"):
            known = [getattr(group, "PRESETS", {}) for group in vars(self).values()]
            check_fields(self, preset=("default", *dict.fromkeys(p for ps in known for p in ps)))

    def settled(self) -> Any:
        """As it runs: with the recipe's values for small machines, where that is its data set."""
        values, fallback = self.small_values()
        return self if self.data.name == "auto" else settle(self, CIFAR10, fallback, values)[0]

    def small_values(self) -> tuple[dict[str, Any], str]:
        """What the recipe takes for small machines, and the embedded set that stands in."""
        values = getattr(sys.modules.get(type(self).__module__), "SMALL", {})
        return values, "moving_digits" if isinstance(self.data, EventDataConfig) else "digits"


@dataclass(frozen=True)
class EventRecipe(ImageRecipe):
    """The same for recordings of an event camera; Spikformer's settings for DVS128 Gesture."""

    data: EventDataConfig = field(default_factory=EventDataConfig)
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(name="spikformer_dvs", T=16, num_heads=8)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(batch_size=16, optim=PAPER_EVENTS)
    )


Choice = tuple[str, Any] | tuple[str, Any, tuple[str, Any]]
"""A search by name, its configuration, and for a search around another the same of that one."""


def find(
    cfg: Any,
    choose: str | Callable[[Any], Choice],
    small: Mapping[str, Any],
    fallback: str = "digits",
    wanted: str = "cifar10",
    network: nn.Module | None = None,
    report: bool = True,
    card: bool = True,
    accept: Callable[[Any, nn.Module, Any], bool] | None = None,
) -> Path | None:
    """Search, save the ticket, train it if it is not trained, test once, write the report.

    Args:
        cfg: options with the groups of `ImageRecipe`, and ``epochs`` to train a ticket.
        choose: the search, whose configuration is the group of its name with the ``preset`` of the
            recipe; or a function that chooses from the configuration in force.
        small: values for the fallback, where the user names none.
        fallback: embedded data set for ``data.name auto``.
        wanted: the set that auto takes if it is on disk: cifar10, dvs128_gesture or cifar10_dvs.
        network: the model, where it is no registered one; it is changed in place.
        report: whether to go on after the ticket is saved.
        card: whether to print what the run reached, and what can be done with it.
        accept: asked with experiment, trained network and ticket, before the test set is read;
            where it says no, nothing is tested and reported.

    Returns:
        The run's directory; None after a dry run.
    """
    name, config, *inner = _chosen(choose, cfg)  # refuses a preset of another search
    if hasattr(cfg, "budget") and cfg.budget.asked[0] and not accept:
        from spikeformer_lt.reports.energy import within

        check(network is None and report, "budget", "set", "for registered models, with a report")
        last = [name, *(one for one, _ in inner)][-1]
        again = partial(find, choose=choose, small=small, fallback=fallback, wanted=wanted)
        return within(cfg, last, partial(again, card=False), show_card if card else None)
    check_fields(cfg, **{"epochs": 0} if hasattr(cfg, "epochs") else {})

    from spikeformer_lt.reports import epoch_ledger, write_report
    from spikeformer_lt.tickets import Search, find_after, retrain, teacher_of, with_phase
    from spikeformer_lt.training.experiment import Experiment

    published = presets.published(config, *(own for _, own in inner))
    usual: dict[str, Any] = {"small": dict(small), "published": published, "teacher": teacher_of}
    usual |= {"network": network, "search": " ".join([name, *(one for one, _ in inner)])}
    usual |= {"ledger": epoch_ledger, "wanted": WANTED[wanted], "fallback": fallback}
    experiment = Experiment(cfg, **usual)
    chosen = _chosen(choose, experiment.cfg)
    presets.refuse_overruled(experiment.cfg, given_options(cfg), chosen)
    if cfg.run.dry_run:
        tried = _made(chosen, cfg.train.seed, None)
        print(experiment.dry_run(tried.check if isinstance(tried, Search) else None))
        return None
    with experiment:
        model, fit = experiment.model(), experiment.trainer.fit
        search = _made(chosen, cfg.train.seed, experiment.trainer.batch)
        inside = [config for _, config in chosen[2:]]
        epochs, optim = presets.after(experiment.cfg, chosen, search.trained)
        if isinstance(search, Search):
            experiment.trainer.planned = search.planned() + epochs + cfg.train.before
        else:  # the phases of such a plug-in do not say what asked for them
            group = {} if chosen[1] is None else {name: to_dict(chosen[1])}
            experiment.trainer.made_by |= {"search": name, **dict(flat_values(group))}
        ticket = experiment.save_ticket(find_after(experiment.cfg.train, search, model, fit))
        if report and not search.trained:
            start, entry = (f(chosen[1], *inside) for f in (presets.start_step, presets.lr_entry))
            result = retrain(model, ticket, fit, epochs, optim, lr_from=entry)
            ticket = with_phase(ticket, result, start_step=str(start))
        if accept is not None and not accept(experiment, model, ticket):
            return None
        if report:
            said, tracked = write_report(experiment, model, ticket), experiment.trainer.tracked
            numbers = {k: v for k, v in flat_values(said) if type(v) in (int, float)}
            experiment.accelerator.log(numbers if tracked else {})
    if report and card and experiment.trainer.main:
        show_card(experiment.run.path)
    return experiment.run.path


def show_card(folder: Path) -> None:
    """Print what a finished run reached and cost, and the next commands."""
    from spikeformer_lt.export import packed_bytes
    from spikeformer_lt.reports import card

    rows = card(folder, packed_bytes(folder))
    width = max(len(name) for name, _ in rows)
    head = painted(f"{folder}:", 1, sys.stdout)
    print(head, *(f"  {name:{width}}  {words}" for name, words in rows), sep="\n")
    place, console = shlex.quote(str(folder)), "  spikeformer-lt"
    print(
        painted("next:", 1, sys.stdout),
        f"{console} evaluate --run {place} --split val",
        f"{console} report --runs {place} --out {place}/page",
        f"{console} export --run {place} --out {shlex.quote(f'exported/{folder.name}')}",
        sep="\n",
    )


def _chosen(choose: str | Callable[[Any], Choice], cfg: Any) -> Choice:
    if not isinstance(choose, str):
        return choose(cfg)
    return choose, presets.with_preset(getattr(cfg, choose), getattr(cfg, "preset", "default"))


def _made(chosen: Choice, seed: int, batch: Any) -> Any:
    name, config, *inner = chosen
    if config is None:  # a plug-in's bare function takes a seed alone
        return create_search(name, seed=seed)
    around = {"inner": _made(inner[0], seed, batch)} if inner else {}
    return create_search(name, seed=seed, config=config, batch=batch, **around)


def planned(cfg: Any, choose: str | Callable[[Any], Choice]) -> int:
    """Most epochs that `find` trains with these arguments, search and ticket together."""
    search = _made(chosen := _chosen(choose, cfg), cfg.train.seed, None)
    return int(search.planned() + presets.after(cfg, chosen, search.trained)[0] + cfg.train.before)


def open_finished(path: str, cfg: Any, *, report: bool = True, **changed: Any) -> Any:
    """Open a run, a ticket or an export, or one that comes with us, as a `reports.FinishedRun`.

    `cfg` has an `EventDataConfig` as ``data``; `changed` are model arguments, unless None.
    """
    from spikeformer_lt.export import read_ticket, shipped
    from spikeformer_lt.reports import open_run, open_ticket
    from spikeformer_lt.tickets import model_from_ticket

    path = str(shipped(path) or path)
    how = (cfg.data, given_options(cfg), read_ticket, entry_options(cfg, cfg.data.name, given=True))
    changed = {name: value for name, value in changed.items() if value is not None}
    return (open_run if report else open_ticket)(path, model_from_ticket, *how, **changed)


def evaluate_finished(cfg: Any, accelerator: Any) -> None:
    """Evaluate a run, ticket or export by the options of ``recipes/evaluate.py``."""
    from spikeformer_lt.training import PREDICTIONS

    out = Path(cfg.out)
    names = (out, out.with_suffix(f".{PREDICTIONS}")) if cfg.out else ()
    folder = out.parent if cfg.out and accelerator.is_main_process else ""
    with outputs(folder, cfg.overwrite, *names):
        _evaluate(cfg, accelerator)


def _evaluate(cfg: Any, accelerator: Any) -> None:
    from spikeformer_lt.export import shipped
    from spikeformer_lt.reports import evaluation, removed_words, save_predictions
    from spikeformer_lt.training import PREDICTIONS

    if shipped(cfg.run):  # a first look does not wait until kernels are compiled
        os.environ.setdefault("SPIKEFORMER_KERNELS", "torch")
    run = open_finished(cfg.run, cfg, report=False, T=cfg.T)
    tell = accelerator.print
    for line in run.notices():
        tell(f"NOTICE: {line}")
    beside = Path(cfg.out or PREDICTIONS).with_suffix(f".{PREDICTIONS}")
    places = [run.path / PREDICTIONS, run.path.parent / PREDICTIONS, *([beside] if cfg.out else [])]
    found = evaluation(run, cfg.split, accelerator, cfg.batch_size, () if cfg.again else places)
    metrics, ledger = found.metrics, found.ledger
    tell(
        f"{found.data} {cfg.split}: {metrics.accuracy:.2f} % of {metrics.count} "
        f"(top-5 {metrics.top5:.2f} %, loss {metrics.loss:.4f}), "
        f"95 % interval {found.interval.ends}"
    )
    if found.source is not None:
        tell(f"  from the predictions saved at the first reading: {found.source} (--again runs it)")
    bits = {"ConvPEP weight": "conv_pep_bits_per_weight", "weight": "bits_per_weight"}
    known = [f"{n:.2f} for each {what}" for what, k in bits.items() if (n := ledger[k]) is not None]
    tell(f"  removed     {removed_words(ledger)}")
    tell(f"  bits        {', '.join(known)} (masks at their entropy, values whole)")
    tell(f"  operations  {ledger['macs']:,.0f} MACs, {ledger['sops']:,.0f} SOPs per input")
    tell(f"  parameters  {ledger['params']:,}")
    if cfg.out and accelerator.is_main_process:
        result: dict[str, Any] = {"accuracy": metrics.accuracy, "count": metrics.count}
        result |= {"accuracy_interval": [found.interval.low, found.interval.high]}
        result |= {"loss": metrics.loss, "saved": found.source is not None}
        result |= {"confusion": metrics.confusion.tolist()}
        text = json.dumps({**result, "split": cfg.split, **ledger}, indent=2)
        write_atomic(cfg.out, f"{text}\n".encode(), ConfigError)
        made_by = str(run.ticket.provenance.get("run_id", ""))
        save_predictions(beside, metrics, run.model, run.splits, cfg.split, made_by)


def transfer(cfg: Any, small: Mapping[str, Any]) -> None:
    """Move a ticket into a network of its own kind, train it, test once, write the report.

    `cfg` has the options of ``recipes/transfer_cifar.py``, `small` the values for the embedded
    digits. A ticket whose provenance names no model, or that does not fit, is a TicketError.
    """
    check(not cfg.budget.asked[0], "budget", "set", "of searches; a transfer has no sparsity")
    check(not cfg.train.phases, "train.phases", cfg.train.phases, "of searches")
    from spikeformer_lt import tickets
    from spikeformer_lt.reports import epoch_ledger, write_report
    from spikeformer_lt.rng import seed_for
    from spikeformer_lt.ticket import Ticket, start_folder
    from spikeformer_lt.training import Experiment

    found = Ticket.load(start_folder(cfg.ticket))
    origin = found.provenance.get("model")
    if not isinstance(origin, dict):
        raise TicketError("the ticket's provenance names no model; tickets that recipes save do")
    given, known = given_options(cfg), origin.get("args", {})
    own = {"name": origin["name"], **known}
    free = [f.name for f in fields(ModelConfig) if f"model.{f.name}" not in given]
    cfg = adapted(cfg, model=replace(cfg.model, **{k: own[k] for k in free if k in own}))
    usual: Any = {"fallback": "digits", "small": dict(small), "ledger": epoch_ledger}
    experiment = Experiment(cfg, search="transfer", teacher=tickets.teacher_of, **usual)
    if cfg.run.dry_run:
        print(experiment.dry_run())
        return
    with experiment:
        model, trainer = experiment.model(), experiment.trainer
        tickets.apply_surgery(model, found)
        changed = {k: v for k, v in experiment.model_args().items() if known.get(k) != v}
        asked = cfg.norm == "estimate"
        batches = trainer.batch(cfg.norm_images)[0].split(cfg.train.batch_size) if asked else None
        model.to(trainer.accelerator.device)
        how = {"norm": cfg.norm, "batches": batches, "fresh": cfg.fresh, "control": cfg.control}
        how["seed"] = seed_for(cfg.train.seed, "transfer control")
        moved = tickets.transfer_ticket(found, model, **how, **changed)
        start = Ticket(moved.mask, moved.tensors, {**moved.provenance, "trained": False})
        ticket = experiment.save_ticket(start)
        result = tickets.retrain(model, ticket, trainer.fit, experiment.cfg.epochs)
        write_report(experiment, model, tickets.with_phase(ticket, result))
    if trainer.main:
        show_card(experiment.run.path)


@dataclass(frozen=True)
class Comparison:
    """Options of every comparison of runs over seeds."""

    data: str = "digits"
    """Data set of all runs, of `spikeformer-lt ls datasets`."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; the table shows mean and standard deviation."""
    jobs: int = 1
    """Runs at a time, which share the CPUs."""
    on: str = "local"
    """local; shared (start the same command on any number of machines that see --out: they divide
    the runs); or slurm (submit them)."""
    slurm: tuple[str, ...] = ()
    """Parameters of submitit with --on slurm: timeout_min=600 slurm_partition=gpu; cluster=local
    tries them on this machine."""
    out: str = "runs/compare"
    """Directory of the comparison; runs go into runs/ below it."""
    overwrite: bool = False
    """Replace tables and pictures there that are not as an earlier call wrote them."""
    options: str = ""
    """Further options for every run, in quotes: --options="--model.T 2"."""
    dry_run: bool = False
    """Print the commands of all runs and run nothing."""
    quick: bool = False
    """Try it out: 2 epochs for every network."""
    epochs: int | None = None
    """Epochs that each variant's network is trained for, with those before a rewind point; None is
    12 on digits, 20 on moving_digits, 60 on moving_gestures, else as published."""

    def __post_init__(self) -> None:
        check_fields(self, jobs=1, on=("local", "shared", "slurm"))
        for text in self.slurm:
            sound = self.on == "slurm" and text.partition("=")[0].isidentifier() and "=" in text
            check(sound, "slurm", text, "NAME=VALUE, such as timeout_min=600, with --on slurm")
        check(self.epochs is None or self.epochs >= 2, "epochs", self.epochs, "2 or more")
        check(not (self.quick and self.epochs), "epochs", self.epochs, "None with --quick")
        check(len(self.seeds) > 0, "seeds", self.seeds, "at least one seed")
        for name in ("seeds", "searches", "sparsities"):
            listed = getattr(self, name, ())
            check(len(set(listed)) == len(listed), name, listed, "each once")


def compare(
    cfg: Comparison,
    rows: Mapping[str, str],
    title: str,
    joints: tuple[str, str] = ("_", "-"),
    published: int = 300,
    **more: Any,
) -> None:
    """Run what is not finished of a comparison, then write table, CSV and curves.

    `title` is that of the table, `more` for `write_comparison`, the others for `jobs_of`.
    """
    from spikeformer_lt.reports.comparison import WRITTEN, write_comparison
    from spikeformer_lt.training import run_jobs, submit_jobs

    logging.basicConfig(level=runtime.console_level, format="%(message)s")
    check_known("data", "dataset", cfg.data)
    jobs = jobs_of(cfg, rows, joints, published)
    for job in {job.variant: job for job in jobs}.values():
        refuse_options(job.variant, job.command, PRINT_CONFIG)
        check_known("model.name", "model", value_of("model.name", job.command) or "")
    if cfg.dry_run:
        lines = (("python", *job.command, "--run.out", str(job.folder)) for job in jobs)
        print("\n".join(map(shlex.join, lines)))
        return
    with outputs(cfg.out, cfg.overwrite, *WRITTEN):
        if cfg.on == "slurm":
            submit_jobs(jobs, cfg.jobs, cfg.slurm)
        else:
            run_jobs(jobs, cfg.jobs, shared=cfg.on == "shared")
        print(emphasised(write_comparison(Path(cfg.out), jobs, title, **more)))


def jobs_of(
    cfg: Comparison, rows: Mapping[str, str], joints: tuple[str, str], published: int = 300
) -> list[Job]:
    """The runs of a comparison, with one budget of epochs.

    `rows` are a recipe's file name and options, {e} the budget of epochs, {h} and {r} its half and
    the rest; `joints` replace blanks in a folder's name and precede the seed; `published` is the
    budget where the options name none and the set is not embedded.
    """
    from spikeformer_lt.training.jobs import Job

    moving = {name: own.get("multisp.epochs", 20) for name, own in MOVING.items()}
    usual = {"digits": 12, **moving}.get(cfg.data, published)
    e = 2 if cfg.quick else cfg.epochs or usual
    budget = {"{e}": str(e), "{h}": str(e // 2), "{r}": str(e - e // 2)}
    jobs = []
    for seed, (variant, line) in product(cfg.seeds, rows.items()):
        recipe, *options = f"{line} --data.name {cfg.data} {cfg.options}".split()
        options = [f"--{t}" if ASSIGNED.match(t) else budget.get(t, t) for t in options]
        command = (str(RECIPES / recipe), *last_of_each(options), "--train.seed", str(seed))
        name = f"{variant.replace(' ', joints[0]).replace(':', '')}{joints[1]}{seed}"
        jobs.append(Job(variant, seed, Path(cfg.out) / "runs" / name, command))
    return jobs


def search_rows(cfg: Any, lines: Mapping[str, str]) -> dict[str, str]:
    """Rows of ``recipes/compare_tickets.py``: by variant, a recipe's file name and its options.

    `lines` has them by search, and for dense, with {name} and {s} for the search and the sparsity.
    Registered searches without a line run by ``find_ticket.py``.
    """
    known = tuple(dict.fromkeys([*lines, *search_names()]))
    for search in cfg.searches:
        check(search in known, "searches", search, f"some of {', '.join(known)}")
    for sparsity in cfg.sparsities:
        check(0 < sparsity < 1, "sparsities", sparsity, "in (0, 1)")
    own: dict[str, str] = {}
    for text in cfg.search_options:
        search, _, options = text.partition("=")
        rule = "SEARCH=OPTIONS, such as 'imp=--imp.epochs 2'"
        check(search in known, "search_options", text, rule)
        own[search] = f"{own.get(search, '')} {options}"
    rows = {}
    for search in ("dense", *cfg.searches):
        line = lines.get(search)
        if line is None:
            rated = any(hasattr(c, "sparsity") for c in list(groups_of(search, ()).values())[-1:])
            line = f"find_ticket.py {search}{_budget(search)}" + " --sparsity {s}" * rated
        for s in cfg.sparsities if "{s}" in line else ("",):
            options = own.get(search, "")
            named = line.replace("{name}", search).replace("{s}", str(s))
            rows[f"{search} {s}".strip()] = f"{named} {options}"
    return rows


def _budget(search: str) -> str:
    """The options that give a registered search and the training from its ticket one budget."""
    known = "epochs" in presets.FULL_SIZE.get(search, {})
    own = f" --{search.replace('_', '-')}.epochs {{e}}" if known else ""
    return f"{own} --epochs {{e}}"


@dataclass(frozen=True)
class Find(ImageRecipe):
    """Find a ticket with one search, train it, test it once and write its report."""

    data: EventDataConfig = field(default_factory=EventDataConfig)
    epochs: int = 300
    """Epochs of the tested network; a preset has its own, and some searches end trained."""

    def small_values(self) -> tuple[dict[str, Any], str]:
        """As of `ImageRecipe`, for the search that is asked for."""
        groups = [f.name for f in fields(self) if f.name in search_names()]
        values = small(*groups, epochs=8)
        own = {name: value for name, value in EVENTS_SMALL.items() if name[:8] != "multisp."}
        moving = {**values, **own, "data.image_size": None}, "moving_digits"
        return moving if self.data.name in MOVING else (values, "digits")


@dataclass(frozen=True)
class FindAtSparsity(Find):
    """Find a ticket with one search, train it, test it once and write its report."""

    sparsity: float | None = None
    """Fraction of the prunable weights removed, in [0, 1); None is the search's own."""


def read_find(argv: Sequence[str], prog: str = "find") -> tuple[Any, dict[str, Any]]:
    """Read ``find SEARCH --SEARCH.FIELD ...``: the configuration, and the searches' own by name.

    Raises:
        ConfigError: no search of that name, or an option that it does not have.
    """
    named = bool(argv) and not argv[0].startswith("-")
    search, options = argv[0].replace("-", "_") if named else "", list(argv[int(named) :])
    use_plugins(split_plugins(options)[1])
    names = search_names()
    if search not in names:
        given = f"name a search: {prog} SEARCH;"
        if named:
            given = f"unknown search {shown(argv[0])}{near(search, names) or ';'}"
        known = f"the searches are {', '.join(names)}; your own needs --plugins FILE.py after it"
        raise ConfigError(f"{given} {known}")
    options = [f"--{t}" if ASSIGNED.match(t) or t.startswith("sparsity=") else t for t in options]
    tree = read_mapping(Path(file).expanduser()) if (file := value_of("config", options)) else {}
    held = {name.replace("-", "_"): value for name, value in flat_values(tree)}
    groups = groups_of(search, [*(f"--{name}={value}" for name, value in held.items()), *options])
    rated = _check_sparsity(search, groups, options, held)
    cls = extended(FindAtSparsity if rated else Find, groups)
    cfg: Any = parse(cls, options, f"{prog} {search}")
    if rated and cfg.sparsity is not None:
        inner = list(groups)[-1]
        cfg = adapted(cfg, **{inner: replace(getattr(cfg, inner), sparsity=cfg.sparsity)})
    return cfg, groups or {search: None}


def find_command(argv: Sequence[str], prog: str) -> None:
    """Find a ticket with any search, train it, test it once and write its report.

    spikeformer-lt find imp --data.name digits --sparsity 0.9 --quick
    spikeformer-lt find imp --help    # the options of a search
    """
    if argv and argv[0] == "--help":
        use_plugins(split_plugins(list(argv))[1])
        print(f"usage: {prog} SEARCH [options]\n\n{introduction(find_command.__doc__ or '')}")
        print("\nsearches (SEARCH --help lists the options of one):")
        for name in search_names():
            doc = getattr(config_class("search", name), "__doc__", None) or "A plug-in's search."
            print(f"  {name:16} {doc.strip().splitlines()[0]}")
        return
    find_read(*read_find([token for token in argv if token != "--debug"], prog))


def find_read(cfg: Any, groups: Mapping[str, Any], **how: Any) -> Path | None:
    """Run what `read_find` has read; `how` is for `find`."""

    def choose(now: Any) -> Choice:
        first, *inside = [(name, getattr(now, name, None)) for name in groups]
        return (*first, inside[0]) if inside else first

    values, fallback = cfg.small_values()
    return find(cfg, choose, values, fallback=fallback, **how)


def groups_of(search: str, options: Sequence[str]) -> dict[str, Any]:
    """Configurations by group: the search's, and that of the search which it names inside."""
    kind: Any = config_class("search", search)
    if kind is None:  # a bare function of a plug-in
        return {}
    config = kind(**presets.FULL_SIZE.get(search, {}))
    if not hasattr(config, "search"):
        return {search: config}
    inner = value_of(f"{search}.search", options) or config.search
    return {search: config, **groups_of(inner.replace("-", "_"), ())}


def _check_sparsity(search: str, groups: Any, options: Sequence[str], held: Any) -> bool:
    """Tell whether a search has one rate, and refuse the other way of writing it, or two rates."""
    group, config = [("", None), *groups.items()][-1]  # none of a plug-in's bare function
    rated = hasattr(config, "sparsity")
    rates = {held.get(name) for name in ("sparsity", f"{group}.sparsity")} - {None}
    if rated and (value_of(f"{group}.sparsity", options) is not None or len(rates) > 1):
        common = "it is common to all searches of one rate"
        raise ConfigError(f"--{group}.sparsity is written --sparsity: {common}")
    if config and not rated and value_of("sparsity", options) is not None:
        own = [n for n, _ in flat_values(to_dict(config)) if n.endswith(".sparsity")]
        own = own or list(type(config).__annotations__)[:2]
        hint = " and ".join(f"--{group}.{name}" for name in own)
        raise ConfigError(f"--sparsity is not allowed: {search} has no single rate; give {hint}")
    return rated
