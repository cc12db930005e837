"""Runs from Python: find a ticket, train a network, and ask a finished run.

What ``spikeformer-lt find`` does on the console, with the same options and the same files; errors
speak of arguments instead of options.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeformer_lt.cli import find_read, groups_of, read_find
from spikeformer_lt.config import check
from spikeformer_lt.disk import read_mapping
from spikeformer_lt.errors import in_python, listed

if TYPE_CHECKING:
    from torch import nn

    from spikeformer_lt.export import Exported, Prediction
    from spikeformer_lt.reports import Evaluation, FinishedRun
    from spikeformer_lt.ticket import Ticket

WORDS = {
    "data.name": "data", "model.T": "T", "sparsity": "sparsity", "epochs": "epochs",
    "train.seed": "seed", "run.out": "out", "run.resume": "resume", "run.quick": "quick",
}  # fmt: skip
"""Option -> argument of `find` and `train`, in their order; others go into their ``options``."""


def find(
    search: str,
    model: str | nn.Module = "",
    data: str = "auto",
    *,
    T: int | None = None,
    sparsity: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    out: str | Path = "",
    resume: str = "never",
    quick: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Ticket:
    """Find a ticket in any network; it is not trained further than the search does.

    Args:
        search: a registered search, such as "imp".
        model: the name of a registered model, or a network: of ours or of torch, torchvision, timm,
            spikingjelly or snntorch, see `adapt`. It ends with the ticket's weights.
        data: a registered data set.
        T: time steps; None is the command line's default.
        sparsity: fraction of the prunable weights removed, of searches that have one rate.
        epochs: those of the search, for searches that train.
        seed: of initialisation, data order and noise; None is the command line's default.
        out: run directory; empty makes a new one under runs/. What stopped goes on with
            ``resume="auto"``, given the network as it was at the start.
        resume: "never", "auto" or a run directory.
        quick: try it out: lengths that are not named shrink in proportion, to 2 epochs at most.
        options: more of the command line's options, by name: {"imp.rounds": 3, "epochs": 8}.

    Returns:
        The ticket, with the weights to start from; also in the run directory.

    Raises:
        ConfigError: an argument or option that is not allowed, by name; a network that cannot be
            adapted.
    """
    from spikeformer_lt.ticket import Ticket, start_folder

    named = (data, T, sparsity, epochs, seed, out, resume, quick)
    return Ticket.load(start_folder(_searched(search, model, named, options or {}, report=False)))


def train(
    search: str = "dense",
    model: str | nn.Module = "",
    data: str = "auto",
    *,
    T: int | None = None,
    sparsity: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    out: str | Path = "",
    resume: str = "never",
    quick: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Find a ticket, train the network from it, test it once and write the report.

    Args and errors are those of `find`, and: `search` "dense" removes nothing; `epochs` also are
    those of the tested network; a network given as `model` ends trained.
    """
    if search == "dense":
        check(not sparsity, "sparsity", sparsity, "None for a dense network; name a search")
        search, sparsity = "random", 0.0
    named = (data, T, sparsity, epochs, seed, out, resume, quick)
    folder = _searched(search, model, named, options or {}, report=True)
    return Run(folder, None if isinstance(model, str) else model)


def _tokens(given: Mapping[str, Any], named: Container[str]) -> list[str]:
    """The words of the command line for options, but for what is empty and not named."""
    tokens: list[str] = []
    for option, value in given.items():
        if isinstance(value, bool):
            group, dot, own_name = option.rpartition(".")
            tokens.append(f"--{option}" if value else f"--{group}{dot}no-{own_name}")
        elif value not in (None, "") or option in named:
            values = value if isinstance(value, list | tuple) else [value]
            tokens += [f"--{option}", *map(str, values)]
    return tokens


def _searched(
    search: str, model: str | nn.Module, named: tuple[Any, ...], options: Mapping[str, Any],
    report: bool,
) -> Path:  # fmt: skip
    """Run a search with the options of the command line; return its run directory."""
    check(isinstance(search, str), "search", search, "a name of list_searches()")
    fits = isinstance(model, str) or hasattr(model, "_get_name")
    check(fits, "model", model, "a name of list_models(), or a torch.nn.Module")
    fits = isinstance(options, Mapping)
    check(fits, "options", options, 'values by the option\'s name, such as {"imp.rounds": 3}')
    network = None if isinstance(model, str) else model
    name = model if isinstance(model, str) else f"module:{model._get_name()}"
    given = {"model.name": name, **dict(zip(WORDS, map(_plain, named), strict=True))}
    epochs = given.pop("epochs")
    own_words = _tokens(options, options)
    groups = groups_of(search.replace("-", "_"), own_words) if epochs is not None else {}
    for group, config in list(groups.items())[-1:]:
        inside = ".imp" * hasattr(config, "imp")
        own = hasattr(getattr(config, "imp", config), "epochs")
        check(own or report, "epochs", epochs, f"None: {search} trains nothing")
        given |= {f"{group}{inside}.epochs": epochs} if own else {}
    if report and epochs is not None:
        given["epochs"] = epochs
    twice = [n for n in options if given.get(n) not in (None, "") and given[n] != options[n]]
    check(not twice, "options", twice[:1], "without what is an argument, too")
    tokens = [search, *_tokens({**given, **options}, options)]
    with in_python(_argument):
        cfg, groups = read_find(tokens, "find")
        check(not cfg.run.dry_run, "run.dry_run", True, "False in Python")
        folder = find_read(cfg, groups, network=network, report=report, card=False)
    assert folder is not None
    return folder


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else None if value is False else value


def _argument(option: str) -> str:
    name = option.replace("-", "_")
    words = {**WORDS, "model.name": "model"}
    return words.get(name, name if "." not in name else f'options["{name}"]')


class Run:
    """A finished run: its files, its network, and what can be done with it.

    Args:
        folder: a run directory with its ``report.json``.
        model: the network, of a run of one that is not registered; it takes the trained weights.

    Raises:
        ConfigError: no finished run is there.
    """

    def __init__(self, folder: str | Path, model: nn.Module | None = None) -> None:
        check(isinstance(folder, str | Path), "folder", folder, "the path of one run")
        self.folder, self._model = Path(folder).expanduser(), model
        there = (self.folder / "report.json").is_file()
        check(there, "folder", str(folder), "a finished run, which has a report.json")

    @cached_property
    def report(self) -> dict[str, Any]:
        """Accuracies, ledger and choices: what ``report.json`` holds."""
        from spikeformer_lt.training.run import read_report

        return read_report(self.folder / "report.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every option in force, as ``config.json`` holds them."""
        return read_mapping(self.folder / "config.json")

    @cached_property
    def ticket(self) -> Ticket:
        """Mask and weights that the run ended with, and their provenance."""
        from spikeformer_lt.ticket import Ticket, finished_folder

        return Ticket.load(finished_folder(self.folder))

    @cached_property
    def start(self) -> Ticket:
        """The ticket as it was found, before any training from it."""
        from spikeformer_lt.ticket import Ticket, start_folder

        return Ticket.load(start_folder(self.folder))

    @cached_property
    def net(self) -> Any:
        """The trained network in eval mode: normalised images or frames -> logits ``[B, T, K]``."""
        return self._opened.model

    @cached_property
    def _opened(self) -> FinishedRun:
        from spikeformer_lt.reports import open_run
        from spikeformer_lt.tickets import model_from_ticket

        def build(ticket: Ticket, **changed: Any) -> nn.Module:
            return model_from_ticket(ticket, self._model, **changed)

        return open_run(self.folder, build)

    @in_python()
    def predict(self, x: Any) -> list[Prediction]:
        """Classify pictures or recordings, as `predict` does."""
        from spikeformer_lt.export import predict

        return predict(self.net, x)

    @in_python()
    def evaluate(self, split: str = "test", *, again: bool = False) -> Evaluation:
        """Evaluate "train", "val" or "test".

        The predictions of the first test reading are taken where they are those of these weights,
        unless `again`.
        """
        from accelerate import Accelerator

        from spikeformer_lt.reports import evaluation
        from spikeformer_lt.training import PREDICTIONS

        check(split in ("train", "val", "test"), "split", split, "train, val or test")
        places = [] if again else [self.folder / PREDICTIONS]
        return evaluation(self._opened, split, Accelerator(), 256, places)

    def compare(self, *others: Run | str | Path) -> Comparison:
        """Put other runs beside this one, as `compare` does."""
        return compare(self, *others)

    @in_python()
    def export(self, folder: str | Path, **options: Any) -> Exported:
        """Pack the network into a folder that loads by itself, as `export.export_run` does."""
        from spikeformer_lt.export import export_run

        return export_run(self.folder, folder, model=self._model, **options)

    @in_python()
    def page(self, folder: str | Path = "") -> Path:
        """Write ``report.html`` with pictures into a folder, by default that of the run."""
        from spikeformer_lt.reports import write_run_page

        return write_run_page(self._opened, Path(folder or self.folder))

    @cached_property
    def card(self) -> list[tuple[str, str]]:
        """What the run reached and cost, as pairs of a name and words."""
        from spikeformer_lt.export import packed_bytes
        from spikeformer_lt.reports import card

        return card(self.folder, packed_bytes(self.folder))

    def __repr__(self) -> str:
        accuracy, total = self.report["test_accuracy"], self.report["sparsity"]["total_weight"]
        return f"Run({str(self.folder)!r}: test {accuracy:.2f} %, {100 * total:.1f} % removed)"

    def _repr_html_(self) -> str:
        return html_table(str(self.folder), ["", ""], self.card)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs side by side."""

    header: list[str]
    rows: list[list[str]]
    """One a quantity: its name, and each run's value."""
    differences: tuple[list[str], list[list[str]]]
    """Header and rows: test accuracy of each other run against the first, paired by sample."""

    def __repr__(self) -> str:
        first, *others = self.header[1:]
        points = {row[0]: row[3] for row in self.differences[1]}
        told = [f"{name} {points[name]} points" if name in points else name for name in others]
        return f"Comparison(test accuracy against {first}: {listed(told)})"

    def __str__(self) -> str:
        from spikeformer_lt.reports import markdown_table

        tables = [(self.header, self.rows), self.differences]
        return "\n\n".join(markdown_table(*table) for table in tables if table[1])

    def _repr_html_(self) -> str:
        against = html_table("test accuracy, points", *self.differences)
        return html_table("", self.header, self.rows) + (against if self.differences[1] else "")


@in_python()
def compare(*runs: Run | str | Path) -> Comparison:
    """Put finished runs side by side, with the differences of the others to the first.

    Differences are McNemar's exact test on the saved predictions, with a paired bootstrap interval
    and Holm's correction over the table. Many runs over seeds are for ``spikeformer-lt compare``.

    Raises:
        ConfigError: fewer than two runs, the same one twice, or one that is not finished.
    """
    from spikeformer_lt.reports import side_by_side

    odd = [run for run in runs if not isinstance(run, Run | str | Path)]
    told = 'runs or their folders, each by itself: compare("runs/a", "runs/b")'
    check(not odd, "runs", odd[:1], told)
    opened = [run if isinstance(run, Run) else Run(run) for run in runs]
    names = [run.folder.name for run in opened]
    named = {
        str(run.folder) if names.count(n) > 1 else n: run
        for n, run in zip(names, opened, strict=True)
    }
    check(1 < len(named) == len(runs), "runs", [*named], "two or more, each once")
    reports = {name: run.report for name, run in named.items()}
    ledger, differences = side_by_side(reports, {name: run.folder for name, run in named.items()})
    return Comparison(*ledger, differences)


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table for a notebook; every cell is escaped."""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in header if any(header))
    head = f"<thead><tr>{cells}</tr></thead>" if cells else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{head}<tbody>{body}</tbody></table>"
