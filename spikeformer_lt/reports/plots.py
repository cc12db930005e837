"""Pictures: headless, colour-blind-safe, with units on the axes and a CSV beside each.

Energy bars: each network by layer group, counted and by the papers' formula.

Confusion matrices of finished runs, summed over seeds.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from spikeformer_lt.reports.energy import HOROWITZ, Costs, Energy, LayerEnergy
from spikeformer_lt.reports.page import markdown_table, write_csv

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


GROUPS = ("first layer", "ConvPEP", "convolutions", "attention", "linear maps", "head")


def group_of(row: LayerEnergy, first: bool) -> str:
    """Which bar a layer belongs to."""
    if first:
        return "first layer"
    if row.name.startswith("conv_pep"):
        return "ConvPEP"
    if row.name == "head":
        return "head"
    kinds = {"attention": "attention", "convolution": "convolutions", "linear": "linear maps"}
    return kinds[row.operation]


def energy_by_group(energy: Energy, costs: Costs) -> dict[str, tuple[float, float]]:
    """Group -> (counted, formula) energy in pJ, of the groups there are; they sum to the whole."""
    found: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(energy.layers):
        name = group_of(row, i == 0)
        counted, formula = found.get(name, (0.0, 0.0))
        found[name] = (
            counted + costs.energy_pj(row.macs, row.acs),
            formula + costs.energy_pj(row.formula_macs, row.formula_acs),
        )
    return {name: found[name] for name in GROUPS if name in found}


def plot_energy(path: Path, networks: Mapping[str, Energy], costs: Costs = HOROWITZ) -> None:
    """Stacked bars, uJ a sample; a network with a dead layer gets a label instead of a bar."""
    many = len(networks) > 4
    made, axes = figure(2.6 + (1.05 if many else 1.7) * len(networks), 4.0)
    rows: list[list[object]] = []
    ticks: list[str] = []
    labelled: set[str] = set()
    for at, (name, energy) in enumerate(networks.items()):
        label = "\n".join(wrap(name.replace("_", " "), 12 if many else 18))
        ticks += ["c.", "f."] if many else ["counted", "formula"]
        axes.annotate(
            label, (2 * at + 0.5, 0), (0, -24), textcoords="offset points", ha="center", va="top",
            fontsize=8, annotation_clip=False,
        )  # fmt: skip
        if energy.dead:
            axes.annotate(
                "refused:\ndead layers", (2 * at + 0.5, 0), ha="center", va="bottom", fontsize=9
            )
            continue
        base = [0.0, 0.0]
        for group, values in energy_by_group(energy, costs).items():
            colour = COLOURS[GROUPS.index(group)]
            for kind, pj in enumerate(values):
                shown = group if group not in labelled else None
                labelled.add(group)
                axes.bar(
                    2 * at + kind, pj / 1e6, bottom=base[kind], color=colour, label=shown,
                    width=0.8, hatch="//" if kind else None, edgecolor="white", linewidth=0.5,
                )  # fmt: skip
                base[kind] += pj / 1e6
                rows.append([name, ("counted", "formula")[kind], group, pj / 1e6])
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set_ylabel(f"energy per sample (uJ, estimate, {costs.name})")
    if many:
        axes.set_title("c.: counted; f. (hatched): the papers' formula", fontsize=8)
    axes.grid(axis="x", visible=False)
    if labelled:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["network", "kind", "group", "energy_uj"], rows)


def write_confusions(folder: Path, runs: Iterable[tuple[str, Path]]) -> None:
    """Write ``confusion.md`` and one ``confusion-VARIANT.csv`` for each variant.

    Args:
        folder: where to.
        runs: (variant, report.json) of each run; runs without one are left out.

    Rows are true classes, columns predictions, cells the number of test samples over all seeds.
    """
    sums: dict[str, list[list[int]]] = {}
    seeds: dict[str, int] = {}
    for variant, path in runs:
        if not path.exists():
            continue
        counts = json.loads(path.read_text()).get("confusion")
        if counts is None:
            continue
        before = sums.get(variant, [[0] * len(row) for row in counts])
        sums[variant] = [
            [a + b for a, b in zip(x, y, strict=True)] for x, y in zip(before, counts, strict=True)
        ]
        seeds[variant] = seeds.get(variant, 0) + 1
    parts = ["# Confusion matrices\n\nRows are true classes, columns predictions; cells count test "
             "samples over all seeds.\n"]  # fmt: skip
    for variant, counts in sums.items():
        header = ["true \\ predicted", *(str(k) for k in range(len(counts)))]
        rows = [[str(k), *map(str, row)] for k, row in enumerate(counts)]
        total, right = sum(map(sum, counts)), sum(row[k] for k, row in enumerate(counts))
        largest = max(sum(row) for row in counts)
        parts.append(
            f"## {variant}\n\n{seeds[variant]} seeds, {right} of {total} right "
            f"({100 * right / total:.2f} %; always the largest class: "
            f"{100 * largest / total:.2f} %).\n\n{markdown_table(header, rows)}\n"
        )
        write_csv(folder / f"confusion-{variant.replace(' ', '_')}.csv", header, rows)
    if sums:
        (folder / "confusion.md").write_text("\n".join(parts))
