"""Pictures: headless, colour-blind-safe, with units on the axes and a CSV beside each."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeformer_lt.reports.tables import write_csv

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CONTROL = "random"
"""What a control's name begins with: its curve is dotted."""
Points = Sequence[tuple[float, Sequence[float]]]


def figure(
    width: float = 6.0, height: float = 4.0, rows: int = 1, columns: int = 1, share_x: bool = True
) -> tuple[Any, Any]:
    """A figure that needs no display and leaves matplotlib's global state alone.

    Returns:
        The figure and its uppermost axes; ``.axes`` of the figure are all of them, row by row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    every = made.subplots(rows, columns, sharex=share_x, squeeze=False).ravel()
    for axes in every:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return made, every[0]


def style(at: int) -> tuple[str, str]:
    """Colour and marker of a series by its place: 49 pairs, the first 7 alike in neither."""
    return COLOURS[at % len(COLOURS)], MARKERS[(at + at // len(COLOURS)) % len(MARKERS)]


def plot_curves(
    path: Path,
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    reference: float | None = None,
) -> None:
    """Mean and standard deviation of several series, controls dotted; every run is a faint dot.

    Args:
        path: the picture; the CSV holds mean, spread and count of every point.
        series: name -> points ``(x, one value a run)``.
        x_label, y_label: with units.
        reference: the dense networks' mean, a dashed line.
    """
    made, axes = figure(7.4, 4.2)
    rows: list[list[object]] = []
    for at, (name, points) in enumerate(series.items()):
        colour, marker = style(at)
        xs = [x for x, _ in points]
        means = [statistics.fmean(values) for _, values in points]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
        bars = [s if len(v) > 1 else math.nan for s, (_, v) in zip(spread, points, strict=True)]
        axes.errorbar(
            xs, means, yerr=bars, label=name, color=colour, marker=marker, markersize=5,
            capsize=3, linestyle=":" if name.startswith(CONTROL) else "-",
        )  # fmt: skip
        each = [(x, value) for x, values in points for value in values]
        axes.scatter(*zip(*each, strict=True), color=colour, marker=marker, s=9, alpha=0.4)
        rows += [
            [name, x, m, s, len(v)] for (x, v), m, s in zip(points, means, spread, strict=True)
        ]
    if reference is not None:
        axes.axhline(reference, color="#555555", linestyle="--", label="dense")
        rows.append(["dense", "", reference, "", ""])
    axes.set(xlabel=x_label, ylabel=y_label)
    made.legend(loc="outside right upper", frameon=False, fontsize=8)
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["series", "x", "mean", "sd", "runs"], rows)


def plot_training(summary: Path, folder: Path) -> None:
    """Loss and accuracy of every phase over epochs, from a run's summary.csv, and a CSV of both."""
    with summary.open(newline="") as file:
        table = list(csv.DictReader(file))
    if not table:
        return
    folder.mkdir(parents=True, exist_ok=True)
    made, upper = figure(7.0, 6.0, rows=2)
    lower = made.axes[1]
    rows: list[list[object]] = []
    changes = [i for i in range(1, len(table)) if table[i]["phase"] != table[i - 1]["phase"]]
    for axes, what, unit in ((upper, "accuracy", " (%)"), (lower, "loss", "")):
        for part, colour, marker in (("train", COLOURS[0], "o"), ("val", COLOURS[1], "s")):
            cells = [row.get(f"{part}_{what}") for row in table]
            xs = [i for i, cell in enumerate(cells, start=1) if cell]
            ys = [float(cell) for cell in cells if cell]
            label = "validation" if part == "val" else part
            axes.plot(xs, ys, color=colour, marker=marker, markersize=3, label=label)
            rows += [[f"{part}_{what}", table[x - 1]["phase"], x, y]
                     for x, y in zip(xs, ys, strict=True)]  # fmt: skip
        for at in changes:
            axes.axvline(at + 0.5, color="#999999", linewidth=1)
        axes.set_ylabel(what + unit)
    for at in [0, *changes] if changes else []:
        upper.annotate(
            table[at]["phase"], (at + 0.5, 1.0), (2, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    lower.set_xlabel("epoch (all phases)")
    lower.set_ylim(bottom=0)
    lower.xaxis.get_major_locator().set_params(integer=True)
    shown, names = upper.get_legend_handles_labels()
    made.legend(shown, names, loc="outside upper right", ncols=2, frameon=False)
    made.savefig(folder / "training.png")
    write_csv(folder / "training.csv", ["quantity", "phase", "epoch_of_run", "value"], rows)
