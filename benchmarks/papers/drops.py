"""Accuracy lost, published and ours: against the dense row, and since a curve's first level."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from papers.finished import Run
from papers.tables import Cell
from spikeformer_lt.reports.statistics import accuracy_interval, contrast, holm

NOT_RUN = "not run"
SAME, OPPOSITE, NOISE = "same direction", "opposite direction", "not told apart"
LEVEL = 0.05


@dataclass(frozen=True)
class Line:
    """A published cell with the runs that are its own at one scale."""

    cell: Cell
    runs: tuple[Run, ...] = ()
    missing: str = NOT_RUN
    """Why there is no run, or not for every seed."""
    command: str = ""

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over seeds, in %; None where nothing was run."""
        return statistics.fmean(run.accuracy for run in self.runs) if self.runs else None

    @property
    def shown(self) -> str:
        """Mean and spread, or "not run"."""
        if self.accuracy is None:
            return NOT_RUN
        values = [run.accuracy for run in self.runs]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{self.accuracy:.2f}{spread}"

    @property
    def interval(self) -> str:
        """95 % interval of the accuracy, or "not run"."""
        if not self.runs:
            return NOT_RUN
        values = [run.accuracy for run in self.runs]
        return accuracy_interval(values, int(self.runs[0].report["test_count"])).ends

    @property
    def trained(self) -> float | None:
        """Epochs that the tested network was trained for; None where that is not known."""
        known = {run.report.get("epochs_trained") for run in self.runs}
        return known.pop() if len(known) == 1 else None

    @property
    def place(self) -> str:
        """What was run where: data, network, epochs."""
        if not self.runs:
            return self.missing
        report, config = self.runs[0].report, self.runs[0].config
        limit = config["data"]["limit_train"]
        data = f"{report['dataset']}, {limit} images" if limit else str(report["dataset"])
        model = f"{config['model']['name']} T {config['model']['T']}"
        return f"{data}; {model}; {self.runs[0].epochs} epochs"


@dataclass(frozen=True)
class Drop:
    """Accuracy lost against a reference, in points: published, ours, and half our interval."""

    published: float | None = None
    ours: float | None = None
    noise: float = 0.0
    p: float | None = None
    """Two-sided, of ours; adjusted for the number of a table's drops by `drops`."""

    @property
    def verdict(self) -> str:
        """Whether ours goes where the published one goes; "" where one of them is missing.

        A published drop of exactly 0 has no direction, so that nothing is told of ours.
        """
        if self.published is None or self.ours is None:
            return ""
        if (
            self.published == 0
            or abs(self.ours) <= self.noise
            or (self.p is not None and self.p >= LEVEL)
        ):
            return NOISE
        return SAME if self.published * self.ours > 0 else OPPOSITE


def drop(row: Line, reference: Line | None) -> Drop:
    """The drop of a row against a reference, over the seeds that both have: see `contrast`."""
    if reference is None or reference is row:
        return Drop()
    printed = (reference.cell.accuracy, row.cell.accuracy)
    published = None if None in printed else printed[0] - printed[1]  # type: ignore[operator]
    dense = {run.seed: run for run in reference.runs}
    pairs = [(dense[run.seed].outcome, run.outcome) for run in row.runs if run.seed in dense]
    if not pairs:
        return Drop(published)
    found = contrast(pairs)
    half = (found.difference.high - found.difference.low) / 2
    return Drop(published, found.difference.value, half, found.p)


def drops(lines: Sequence[Line]) -> list[tuple[Drop, Drop]]:
    """For each row: its drop against its dense row, and since the first level of its curve.

    p-values are adjusted for their number (Holm).
    """
    dense = {(x.cell.data, x.cell.network, x.cell.method): x for x in lines}
    first: dict[tuple[str, ...], Line] = {}
    found: dict[str, Drop] = {}
    for at, line in enumerate(lines):
        cell = line.cell
        against = dense.get((cell.data, cell.network, cell.against))
        since = first.setdefault(cell.series, line)
        found[f"{at} against"], found[f"{at} since"] = drop(line, against), drop(line, since)
    adjusted = holm({name: each.p for name, each in found.items() if each.p is not None})
    known = {name: replace(each, p=adjusted.get(name)) for name, each in found.items()}
    return [(known[f"{at} against"], known[f"{at} since"]) for at in range(len(lines))]


def against_one(lines: Sequence[Line]) -> list[tuple[Drop, str]]:
    """Each row's drop against what its whole curve is compared with, and the words for that.

    That is its dense row; or its own first level, where the paper prints no dense accuracy.
    """
    pairs = drops(lines)
    first: dict[tuple[str, ...], Line] = {}
    by_first = set()  # panels: all curves of a network are compared in one way
    for line, (against, since) in zip(lines, pairs, strict=True):
        first.setdefault(line.cell.series, line)
        printed = against.published is None and since.published is not None
        if line.cell.level is not None and (printed or not line.cell.against):
            by_first.add(_panel(line))
    found = []
    for line, (against, since) in zip(lines, pairs, strict=True):
        if line.cell.level is None or _panel(line) not in by_first:
            found.append((against, f"against {line.cell.against}"))
        elif line is first[line.cell.series]:
            start = (None if line.cell.accuracy is None else 0.0, 0.0 if line.runs else None)
            found.append((Drop(*start), "since its first level"))
        else:
            found.append((since, "since its first level"))
    return found


def _panel(line: Line) -> tuple[str, str, str]:
    return line.cell.data, line.cell.network, line.cell.axis
