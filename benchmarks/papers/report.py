"""Published rows beside ours: accuracy, drop, direction; "not run" where nothing was run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from papers.drops import NOISE, NOT_RUN, OPPOSITE, SAME, Drop, Line, against_one, drop, drops
from papers.pictures import plot_table
from papers.tables import Table
from spikeformer_lt.disk import write_atomic
from spikeformer_lt.reports.page import markdown_table, write_csv


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
    found: list[str] = []
    series: dict[tuple[str, ...], list[tuple[Line, Drop, str]]] = {}
    for line, (lost, words) in zip(lines, against_one(lines), strict=True):
        if lost.ours is not None:
            series.setdefault(line.cell.series, []).append((line, lost, words))
    for (data, network, method, axis), points in series.items():
        where = [f"{line.cell.level:g}" for line, _, _ in points if line.cell.level is not None]
        at = f" at {axis} {' / '.join(where)}" if where else ""
        known = ["?" if d.published is None else f"{d.published:.2f}" for _, d, _ in points]
        ours = [f"{d.ours:.2f}" for _, d, _ in points]
        found.append(
            f"{network} {method}{at}, {points[0][2]}: published on {data} {' / '.join(known)}, "
            f"ours on {points[0][0].place.partition(';')[0]} {' / '.join(ours)}"
        )
    count = Counter((a if a.verdict else since).verdict for a, since in drops(lines))
    told = [f"{count[word]} {word}" for word in (SAME, OPPOSITE, NOISE)]
    return [*found, f"rows with both drops: {', '.join(told)}"]


def budgets(lines: Sequence[Line]) -> list[str]:
    """Rows that were trained for other epochs than the row that they are compared with."""
    dense = {(x.cell.data, x.cell.network, x.cell.method): x for x in lines}
    found = []
    for line in lines:
        other = dense.get((line.cell.data, line.cell.network, line.cell.against))
        if other is None or not line.runs or not other.runs or line.trained == other.trained:
            continue
        found.append(f"{line.cell.name}: {line.trained} epochs against {other.trained}")
    told = "; ".join(found)
    return [f"Trained for other epochs than the dense row, so that drops are of both: {told}."
            ] if found else []  # fmt: skip


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
    header = ["published on", "network", "row", "published %", "ours on", "ours %", "95 % interval"]
    header += ["published drop", "our drop", "±"]
    header += ["published since first", "ours since first", "direction", "seeds"]
    values = [_row(line, *pair) for line, pair in zip(lines, drops(lines), strict=True)]
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row] for row in values]
    stem = f"{table.name}-{scale}"
    done = sum(bool(line.runs) for line in lines)
    text = f"# {table.title}\n\nScale {scale}: {done} of {len(lines)} rows were run. Drops are in "
    text += "points of test accuracy, against the dense row and since the curve's first level; ± "
    text += "is half the 95 % interval of ours. One seed is compared sample by sample (McNemar), "
    text += "several by their spread and that of the test samples; directions are told at p below "
    text += "0.05 after Holm's correction over the table.\n\n"
    text += "".join(f"- {note}\n" for note in table.notes)
    if scale == "digits":
        text += "- Both CIFARs are one run on digits here, both DVS sets one on moving digits.\n"
    text += "".join(f"- {words}\n" for words in budgets(lines))
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
        *("" if cell.accuracy is None else cell.accuracy, line.place, line.shown, line.interval),
        *_points(against, unrun),
        round(noise, 4) if noise else unrun,
        *_points(since, unrun),
        (against if against.verdict else since).verdict or unrun,
        str(len(line.runs)),
    ]


RUN_COLUMNS = ["row", "seed", "test accuracy %", "test images", "run id", "epochs", "seconds"]
RUN_COLUMNS += ["epochs trained", "commit", "clean", "cpu", "gpus", "threads", "command"]


def _runs(lines: Sequence[Line]) -> list[list[object]]:
    return [
        [
            *(line.cell.name, run.seed, run.accuracy, run.report["test_count"]),
            *(run.report["run_id"], run.epochs, round(float(run.report["seconds"]), 1)),
            run.report.get("epochs_trained"),
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
