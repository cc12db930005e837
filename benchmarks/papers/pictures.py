"""Published and own drops of a table in one picture: a panel for each network and data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from papers.drops import Drop, Line, against_one
from papers.tables import Table
from spikeformer_lt.reports.page import write_csv
from spikeformer_lt.reports.plots import COLOURS, MARKERS, figure

LABELS = {
    "sparsity": "weights removed (fraction)",
    "patch sparsity": "patches removed (fraction)",
    "T": "time steps T",
    "decay": "decay of the membrane",
}


def plot_table(path: Path, table: Table, lines: Sequence[Line]) -> None:
    """Draw published (open, solid) and own (filled, dashed) changes of accuracy over the level.

    Changes are counted from the dense row where the paper prints both, else from the first level
    of the curve. A row that was not run has no mark of ours. The CSV beside it has every mark.

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
    made, _ = figure(6.0 * columns, 3.6 * rows, rows, columns, share_x=False)
    marks: list[list[object]] = []
    for axes, ((data, network, axis), points) in zip(made.axes, panels.items(), strict=False):
        marks += [[data, network, *mark] for mark in _draw(axes, axis, points)]
        axes.set_title(f"in print: {data}, {network}", fontsize=9)
        axes.set_ylabel("accuracy change (points)")
    for axes in made.axes[len(panels) :]:
        axes.set_axis_off()
    made.suptitle(table.title, fontsize=10)
    made.savefig(path)
    header = ["data", "network", "method", "axis", "level", "whose", "change", "two SE"]
    write_csv(path.with_name(f"{path.stem}-picture.csv"), header, marks)


def _draw(axes: Any, axis: str, points: Sequence[tuple[Line, Drop]]) -> list[list[object]]:
    """Draw one panel; returns its marks: method, axis, level, whose, change, noise."""
    methods = list(dict.fromkeys(line.cell.method for line, _ in points))
    curves = any(line.cell.level is not None for line, _ in points)
    marks: list[list[object]] = []
    for i, method in enumerate(methods):
        own = [(line, d) for line, d in points if line.cell.method == method]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        if not curves:
            colour, marker = COLOURS[0], "o"
        for whose in ("published", "ours"):
            ours = whose == "ours"
            kept = [
                (i if line.cell.level is None else line.cell.level, -lost, d.noise if ours else 0.0)
                for line, d in own
                if (lost := d.ours if ours else d.published) is not None
            ]
            if not kept:
                continue
            xs, ys, errors = zip(*kept, strict=True)
            style: dict[str, Any] = {"color": COLOURS[1] if ours and not curves else colour}
            style |= {"marker": marker, "linestyle": "--" if ours else "-"}
            style |= {"markerfacecolor": None if ours else "white", "capsize": 3 if ours else 0}
            named = f"{method}, {whose}" if curves else whose
            label = named if curves or i == _first(points, ours) else None
            axes.errorbar(xs, ys, yerr=errors if ours else None, label=label, **style)
            marks += [[method, axis, x, whose, y, e] for x, y, e in kept]
    if not curves:
        axes.set_xticks(range(len(methods)), methods, rotation=40, ha="right", fontsize=7)
    else:
        axes.set_xlabel(LABELS[axis])
    axes.axhline(0.0, color="#555555", linewidth=1)
    if marks:
        axes.legend(frameon=False, fontsize=6)
    return marks


def _first(points: Sequence[tuple[Line, Drop]], ours: bool) -> int:
    """Index of the first method with a mark, so that the legend names it once."""
    methods = list(dict.fromkeys(line.cell.method for line, _ in points))
    known = [x.cell.method for x, d in points if (d.ours if ours else d.published) is not None]
    return methods.index(known[0]) if known else -1
