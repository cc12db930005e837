"""Published and own drops of a table in one picture: a panel for each network and data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from papers.drops import Drop, Line, against_one
from papers.tables import Cell, Table
from spikeformer_lt.reports.page import write_csv
from spikeformer_lt.reports.plots import COLOURS, MUCH, axis_of_kept, figure, save_picture, style

LABELS = {
    "sparsity": "weights removed (fraction)",
    "patch sparsity": "patches removed (fraction)",
    "T": "time steps T",
    "decay": "decay of the membrane",
}


Mark = tuple[str, str, str, str, float, str, float, float]
"""Data, network, method, axis, level (or place), "published" or "ours", change, half interval."""
HEADER = ["data", "network", "method", "axis", "level", "whose", "change", "half interval"]


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
    marks: list[Mark] = []
    panels: dict[tuple[str, str, str], list[tuple[Line, Drop]]] = {}
    for line, (lost, _) in zip(lines, against_one(lines), strict=True):
        cell = line.cell
        panels.setdefault((cell.data, cell.network, cell.axis), []).append((line, lost))
    for (data, network, axis), points in panels.items():
        known = [line.cell.method for line, d in points if (d.published, d.ours) != (None, None)]
        methods = list(dict.fromkeys(known))
        for line, lost in points:
            for whose, value in (("published", lost.published), ("ours", lost.ours)):
                if value is not None:
                    level, method = line.cell.level, line.cell.method
                    at = float(methods.index(method)) if level is None else level
                    half = lost.noise if whose == "ours" else 0.0
                    marks.append((data, network, method, axis, at, whose, -value, half))
    told = [(line.place, len(line.runs)) for line in lines]
    draw_marks(path, table, marks, told)
    write_csv(path.with_name(f"{path.stem}-picture.csv"), HEADER, marks)


def draw_marks(
    path: Path, table: Table, marks: Sequence[Mark], told: Sequence[tuple[str, int]]
) -> None:
    """Draw the marks of a table; `told` has for each cell what was run, and on how many seeds."""
    panels: dict[tuple[str, str, str], list[Mark]] = {}
    for mark in marks:
        panels.setdefault((mark[0], mark[1], mark[3]), []).append(mark)
    run: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for cell, words in zip(table.cells, told, strict=True):
        run.setdefault((cell.data, cell.network, cell.axis), []).append(words)
    columns = 2 if len(panels) > 1 else 1
    rows = max(1, -(-len(panels) // columns))
    made, _ = figure(6.0 * columns, 3.8 * rows + 0.4, rows, columns, share_x=False)
    for axes, (panel, own) in zip(made.axes, panels.items(), strict=False):
        levels = any(cell.level is not None for cell in table.cells if _panel(cell) == panel)
        _draw(axes, panel[2], own, levels)
        data, network, _ = panel
        published = any(mark[5] == "published" for mark in own)
        printed = f"open: {network} on {data} as published" if published else (
            f"ours alone: the points of {network} are not printed"
        )  # fmt: skip
        axes.set_title(f"{printed}\n{_ours(run[panel])}", fontsize=8)
        axes.set_ylabel("accuracy change (points)")
    for axes in made.axes[len(panels) :]:
        axes.set_axis_off()
    made.suptitle(f"{table.title}\nbars of ours: 95 % interval of the change", fontsize=10)
    save_picture(made, path)


def _panel(cell: Cell) -> tuple[str, str, str]:
    return cell.data, cell.network, cell.axis


def _ours(told: Sequence[tuple[str, int]]) -> str:
    """What our marks of a panel are of: data, network and seeds."""
    steps: dict[str, list[str]] = {}
    for place, seeds in told:
        if seeds:
            words, _, T = place.rpartition(";")[0].rpartition(" T ")
            steps.setdefault(words, []).append(T)
    numbers = sorted({seeds for _, seeds in told if seeds})
    count = "1 seed" if numbers == [1] else f"{' or '.join(map(str, numbers))} seeds"
    places = [f"{words} T {', '.join(dict.fromkeys(each))}" for words, each in steps.items()]
    return f"filled: ours on {' and '.join(places)}; {count}" if places else "ours: not run"


def _draw(axes: Any, axis: str, marks: Sequence[Mark], levels: bool) -> None:
    """Draw one panel: curves over `levels`, or a place for each method."""
    methods = list(dict.fromkeys(mark[2] for mark in marks))
    kept = levels and "sparsity" in axis and max(mark[4] for mark in marks) >= MUCH
    named: set[str] = set()
    for i, method in enumerate(methods):
        for whose in ("published", "ours"):
            own = [mark for mark in marks if (mark[2], mark[5]) == (method, whose)]
            if not own:
                continue
            ours = whose == "ours"
            look: dict[str, Any] = {"capsize": 3 if ours else 0, "markersize": 6 if ours else 7}
            look |= style(i) if levels else {"color": COLOURS[int(ours)], "marker": "o"}
            look |= {"linestyle": ("--" if ours else "-") if levels else ""}
            look |= {"markerfacecolor": None if ours else "white"}
            label = f"{method}, {whose}" if levels else None if whose in named else whose
            named.add(whose)
            xs = [100 * (1 - mark[4]) if kept else mark[4] if levels else i for mark in own]
            halves = [mark[7] or float("nan") for mark in own]  # a reference has no bar
            ys = [mark[6] for mark in own]
            axes.errorbar(xs, ys, yerr=halves if ours else None, label=label, **look)
    if levels:
        axes.set_xlabel(LABELS[axis])
    else:
        axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right", fontsize=7)
        axes.set_xlim(-0.5, len(methods) - 0.5)
    if kept:
        axis_of_kept(axes)
    axes.axhline(0.0, color="#555555", linewidth=1)
    if marks:
        axes.legend(frameon=False, fontsize=6)
