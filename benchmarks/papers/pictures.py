"""Published and own drops of a table in one picture: a panel for each network and data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from papers.drops import Drop, Line, against_one
from papers.tables import Table
from spikeformer_lt.reports.page import write_csv
from spikeformer_lt.reports.plots import COLOURS, MARKERS, MUCH, axis_of_kept, figure

LABELS = {
    "sparsity": "weights removed (fraction)",
    "patch sparsity": "patches removed (fraction)",
    "T": "time steps T",
    "decay": "decay of the membrane",
}


def plot_table(path: Path, table: Table, lines: Sequence[Line]) -> None:
    """Draw published (open, solid) and own (filled, dashed) changes of accuracy over the level.

    Changes are counted from the dense row where the paper prints both, else from the first level
    of the curve. A row that was not run has no mark of ours. Titles say on what data ours are. The
    CSV beside it has every mark.

    Args:
        path: of the PNG.
        table: the published table.
        lines: its rows with their runs.
    """
    panels: dict[tuple[str, str, str], list[tuple[Line, Drop]]] = {}
    for line, (lost, _) in zip(lines, against_one(lines), strict=True):
        cell = line.cell
        panel = panels.setdefault((cell.data, cell.network, cell.axis), [])
        printed = {"dense", "ANN", "SNN", "Spikeformer", "Transformer"}
        if cell.level is None and cell.method in printed and any(x.cell.level for x in lines):
            continue
        panel.append((line, lost))
    panels = {key: points for key, points in panels.items() if points}
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    made, _ = figure(6.0 * columns, 3.8 * rows + 0.4, rows, columns, share_x=False)
    marks: list[list[object]] = []
    for axes, ((data, network, axis), points) in zip(made.axes, panels.items(), strict=False):
        own = _draw(axes, axis, points)
        marks += [[data, network, *mark] for mark in own]
        published = any(mark[3] == "published" for mark in own)
        printed = f"open: {network} on {data} as published" if published else (
            f"{network} on {data}: no published number"
        )  # fmt: skip
        axes.set_title(f"{printed}\n{_ours(points)}", fontsize=8)
        axes.set_ylabel("accuracy change (points)")
    for axes in made.axes[len(panels) :]:
        axes.set_axis_off()
    made.suptitle(f"{table.title}\nbars of ours: 95 % interval of the change", fontsize=10)
    made.savefig(path)
    header = ["data", "network", "method", "axis", "level", "whose", "change", "half interval"]
    write_csv(path.with_name(f"{path.stem}-picture.csv"), header, marks)


def _ours(points: Sequence[tuple[Line, Drop]]) -> str:
    """What our marks of a panel are of: data, network and seeds."""
    run = [line for line, _ in points if line.runs]
    places = dict.fromkeys(line.place.rpartition(";")[0] for line in run)
    seeds = sorted({len(line.runs) for line in run})
    count = "1 seed" if seeds == [1] else f"{' or '.join(map(str, seeds))} seeds"
    return f"filled: ours on {' and '.join(places)}; {count}" if run else "ours: not run"


def _draw(axes: Any, axis: str, points: Sequence[tuple[Line, Drop]]) -> list[list[object]]:
    """Draw one panel; returns its marks: method, axis, level, whose, change, noise."""
    methods = list(dict.fromkeys(line.cell.method for line, _ in points))
    levels = [line.cell.level for line, _ in points if line.cell.level is not None]
    kept = "sparsity" in axis and max(levels, default=0.0) >= MUCH
    marks: list[list[object]] = []
    for i, method in enumerate(methods):
        own = [(line, d) for line, d in points if line.cell.method == method]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        if not levels:
            colour, marker = COLOURS[0], "o"
        for whose in ("published", "ours"):
            ours = whose == "ours"
            drawn = [
                (i if line.cell.level is None else line.cell.level, -lost, d.noise if ours else 0.0)
                for line, d in own
                if (lost := d.ours if ours else d.published) is not None
            ]
            if not drawn:
                continue
            xs, ys, errors = zip(*drawn, strict=True)
            style: dict[str, Any] = {"color": COLOURS[1] if ours and not levels else colour}
            style |= {"marker": marker, "linestyle": ("--" if ours else "-") if levels else ""}
            style |= {"markerfacecolor": None if ours else "white", "capsize": 3 if ours else 0}
            label = f"{method}, {whose}" if levels else whose if i == _first(points, ours) else None
            xs = [100 * (1 - x) for x in xs] if kept else xs
            axes.errorbar(xs, ys, yerr=errors if ours else None, label=label, **style)
            marks += [[method, axis, x, whose, y, e] for x, y, e in drawn]
    if levels:
        axes.set_xlabel(LABELS[axis])
    else:
        axes.set_xticks(range(len(methods)), methods, rotation=40, ha="right", fontsize=7)
    if kept:
        axis_of_kept(axes)
    axes.axhline(0.0, color="#555555", linewidth=1)
    if marks:
        axes.legend(frameon=False, fontsize=6)
    return marks


def _first(points: Sequence[tuple[Line, Drop]], ours: bool) -> int:
    """Index of the first method with a mark, so that the legend names it once."""
    methods = list(dict.fromkeys(line.cell.method for line, _ in points))
    known = [x.cell.method for x, d in points if (d.ours if ours else d.published) is not None]
    return methods.index(known[0]) if known else -1
