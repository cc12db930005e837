"""Published rows beside ours: accuracy, drop, direction; "not run" where nothing was run."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt.paths import write_atomic
from spikeformer_lt.reports.published import Cell, Table
from spikeformer_lt.reports.published_match import Run
from spikeformer_lt.reports.tables import markdown_table, write_csv

NOT_RUN = "not run"
SAME, OPPOSITE, NOISE = "same direction", "opposite direction", "within noise"


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
    """Accuracy lost against a reference, in points: published, ours, and our noise."""

    published: float | None = None
    ours: float | None = None
    noise: float = 0.0

    @property
    def verdict(self) -> str:
        """Whether ours goes where the published one goes; "" where one of them is missing."""
        if self.published is None or self.ours is None:
            return ""
        if abs(self.ours) <= self.noise:
            return NOISE
        return SAME if self.published * self.ours > 0 else OPPOSITE


def drop(row: Line, reference: Line | None) -> Drop:
    """The drop of a row against a reference.

    Ours is the mean over the seeds that both have. Its noise is two standard errors: of the
    number of test images, or of the seeds where those vary more.
    """
    if reference is None or reference is row:
        return Drop()
    printed = (reference.cell.accuracy, row.cell.accuracy)
    published = None if None in printed else printed[0] - printed[1]  # type: ignore[operator]
    dense = {run.seed: run for run in reference.runs}
    pairs = [(dense[run.seed], run) for run in row.runs if run.seed in dense]
    if not pairs:
        return Drop(published)
    lost = [a.accuracy - b.accuracy for a, b in pairs]
    images = sum(b.report["test_count"] for _, b in pairs)
    sides = zip(*pairs, strict=True)
    parts = [statistics.fmean(run.accuracy for run in side) / 100 for side in sides]
    error = 100 * math.sqrt(sum(p * (1 - p) for p in parts) / images)
    if len(lost) > 1:
        error = max(error, statistics.stdev(lost) / math.sqrt(len(lost)))
    return Drop(published, statistics.fmean(lost), 2 * error)


def drops(lines: Sequence[Line]) -> list[tuple[Drop, Drop]]:
    """For each row: its drop against its dense row, and since the first level of its curve."""
    dense = {(x.cell.data, x.cell.network, x.cell.method): x for x in lines}
    first: dict[tuple[str, ...], Line] = {}
    for line in lines:
        first.setdefault(line.cell.series, line)
    return [
        (
            drop(line, dense.get((line.cell.data, line.cell.network, line.cell.against))),
            drop(line, first[line.cell.series]),
        )
        for line in lines
    ]


def effects(table: Table, lines: Sequence[Line]) -> list[str]:
    """What the paper says of the ends of its curves, beside ours."""
    found = []
    for effect in table.effects:
        ends = {
            line.cell.level: line
            for line in lines
            if line.cell.axis == effect.axis and line.cell.network == effect.network
        }
        words = f"{effect.axis} {effect.first:g} to {effect.last:g} in {effect.network}: published"
        words += f" up to +{effect.points} points"
        lost = Drop()
        if effect.first in ends and effect.last in ends:
            lost = drop(ends[effect.last], ends[effect.first])
        ours = NOT_RUN if lost.ours is None else f"{-lost.ours:+.2f} ± {lost.noise:.2f}"
        found.append(f"{words}, ours {ours}")
    return found


def trend(lines: Sequence[Line]) -> list[str]:
    """Drop at each level of every method that was run, published beside ours, and a count."""
    found, count = [], Counter[str]()
    series: dict[tuple[str, ...], list[tuple[Line, Drop]]] = {}
    for line, (against, since) in zip(lines, drops(lines), strict=True):
        chosen = against if against.verdict or since.published is None else since
        count[chosen.verdict] += 1
        if chosen.ours is not None:
            series.setdefault(line.cell.series, []).append((line, chosen))
    for (data, network, method, axis), points in series.items():
        where = [f"{p.cell.level:g}" for p, _ in points if p.cell.level is not None]
        at = f" at {axis} {' / '.join(where)}" if where else ""
        known = ["?" if d.published is None else f"{d.published:.2f}" for _, d in points]
        printed = " / ".join(known)
        ours = " / ".join(f"{d.ours:.2f}" for _, d in points)
        found.append(f"{data} {network} {method}{at}: published {printed}, ours {ours}")
    told = [f"{count[word]} {word}" for word in (SAME, OPPOSITE, NOISE)]
    return [*found, f"rows with both drops: {', '.join(told)}"]


def write_table(folder: Path, table: Table, scale: str, lines: Sequence[Line]) -> str:
    """Write Markdown, CSV, the list of runs and a picture of one table.

    Args:
        folder: where the files go, named after table and scale.
        table: the published one.
        scale: at which the rows were run.
        lines: its rows, with their runs.

    Returns:
        The Markdown text.
    """
    from spikeformer_lt.reports.published_pictures import plot_table

    header = ["data", "network", "row", "published %", "ours %", "published drop", "our drop", "±"]
    header += ["published since first", "ours since first", "direction", "run on", "seeds"]
    values = [_row(line, *pair) for line, pair in zip(lines, drops(lines), strict=True)]
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row] for row in values]
    stem = f"{table.name}-{scale}"
    done = sum(bool(line.runs) for line in lines)
    text = f"# {table.title}\n\nScale {scale}: {done} of {len(lines)} rows were run. Drops are in "
    text += "points of test accuracy, against the dense row and since the curve's first level; "
    text += "± is two standard errors of ours.\n\n"
    text += "".join(f"- {note}\n" for note in table.notes)
    text += f"\n{markdown_table(header, cells)}\n\n## Trend: drop in points\n\n"
    text += "".join(f"- {words}\n" for words in [*effects(table, lines), *trend(lines)])
    refused = [f"- {x.cell.name}: {x.missing}\n" for x in lines if "trust" in x.missing
               or "configuration" in x.missing or "made by" in x.missing]  # fmt: skip
    if refused:
        text += f"\n## Runs that were found and not taken\n\n{''.join(refused)}"
    text += f"\n## Where\n\n{''.join(f'- {words}' + chr(10) for words in _machines(lines))}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{stem}.md", text.encode())
    write_csv(folder / f"{stem}.csv", header, values)
    write_csv(folder / f"{stem}-runs.csv", RUN_COLUMNS, _runs(lines))
    plot_table(folder / f"{stem}.png", table, lines)
    return text


def _row(line: Line, against: Drop, since: Drop) -> list[float | str]:
    """Cells of a row: numbers, or words where there is none."""
    cell, unrun = line.cell, "" if line.runs else NOT_RUN
    level = "" if cell.level is None else f", {cell.axis} {cell.level:g}"
    noise = max(against.noise, since.noise)
    return [
        *(cell.data, cell.network, cell.method + level),
        *("" if cell.accuracy is None else cell.accuracy, line.shown),
        *_points(against, unrun),
        round(noise, 4) if noise else unrun,
        *_points(since, unrun),
        (against if against.verdict else since).verdict or unrun,
        *(line.place, str(len(line.runs))),
    ]


RUN_COLUMNS = ["row", "seed", "test accuracy %", "test images", "run id", "epochs", "seconds"]
RUN_COLUMNS += ["commit", "clean", "cpu", "gpus", "threads", "command"]


def _runs(lines: Sequence[Line]) -> list[list[object]]:
    return [
        [
            *(line.cell.name, run.seed, run.accuracy, run.report["test_count"]),
            *(run.report["run_id"], run.epochs, round(float(run.report["seconds"]), 1)),
            *(run.env.get("git_commit"), run.env.get("git_clean"), run.env.get("cpu")),
            *(" ".join(run.env.get("gpus", [])), run.env.get("threads"), line.command),
        ]
        for line in lines
        for run in line.runs
    ]


def _machines(lines: Sequence[Line]) -> list[str]:
    """Machines and commits with the number of runs of each; a run that stands twice counts once."""
    runs = {run.folder: run for line in lines for run in line.runs}.values()
    seen = Counter(
        f"{run.env.get('cpu')}, {run.env.get('threads')} thread(s)"
        f"{', ' + ', '.join(run.env['gpus']) if run.env.get('gpus') else ''}; "
        f"commit {str(run.env.get('git_commit'))[:12]}"
        f"{'' if run.env.get('git_clean') else ' with changes'}"
        for run in runs
    )
    return [f"{count} runs on {words}" for words, count in seen.items()] or ["no run"]


def _points(found: Drop, unrun: str) -> list[float | str]:
    published = "" if found.published is None else round(found.published, 4)
    return [published, unrun if found.ours is None else round(found.ours, 4)]
