"""Runs of several variants over seeds, side by side: table, CSV and curves."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.search_cost import early_time_table, steps_of_run

COLUMNS = {
    "test accuracy %": ("test_accuracy", 1.0, 2),
    "val %": ("val_accuracy", 1.0, 2),
    "patches removed %": ("sparsity.patch", 100.0, 1),
    "ConvPEP weights removed %": ("sparsity.conv_pep_weight", 100.0, 1),
    "all weights removed %": ("sparsity.total_weight", 100.0, 1),
    "prunable weights removed %": ("ticket.prunable_sparsity", 100.0, 2),
    "search (s)": ("ticket.search_seconds", 1.0, 1),
    "search (epochs x T)": ("search_steps", 1.0, 0),
    "T in search": ("ticket.T_search", 1.0, 1),
    "ConvPEP bits/weight": ("conv_pep_bits_per_weight", 1.0, 2),
    "MACs (M)": ("macs", 1e-6, 2),
    "of real inputs (M)": ("macs_nonspiking", 1e-6, 3),
    "SOPs (M)": ("sops", 1e-6, 3),
    "firing rate": ("mean_firing_rate", 1.0, 3),
}


class Finished(Protocol):
    """A run with a report."""

    @property
    def variant(self) -> str:
        """Row of the table."""

    @property
    def report(self) -> Path:
        """Its report.json."""


@dataclass(frozen=True)
class Row:
    """One variant: the values of each column, one for each seed."""

    variant: str
    values: Mapping[str, list[float]]
    seed: tuple[int, ...] = ()
    """Seed of each run, in the order of the values."""
    dead: int = 0
    """Runs in which a spiking layer never fired."""

    @property
    def seeds(self) -> int:
        """How many runs stand behind the row."""
        return len(self.values["test accuracy %"])

    def cell(self, column: str) -> str:
        """Mean, with the standard deviation where there are several seeds."""
        values, digits = self.values[column], COLUMNS[column][2]
        if not values:
            return "-"
        mean = f"{statistics.fmean(values):.{digits}f}"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{mean} ± {spread:.{digits}f}" if spread else mean


def read_rows(runs: Iterable[Finished]) -> list[Row]:
    """Collect the finished runs, in the order their variants first appear.

    Raises:
        DataError: runs of different test sets or splits, which are not comparable.
    """
    collected: dict[str, dict[str, list[float]]] = {}
    seeds: dict[str, list[int]] = {}
    dead: Counter[str] = Counter()
    splits: dict[str, Path] = {}
    for run in runs:
        if not run.report.exists():
            continue
        report = json.loads(run.report.read_text())
        splits.setdefault(f"{report['dataset']} {report['split_sha256']}", run.report)
        if len(splits) > 1:
            raise DataError(f"runs of different splits are not comparable: {splits}")
        report["mean_firing_rate"] = _mean(report["firing_rate"].values())
        report["search_steps"] = steps_of_run(run.report)
        row = collected.setdefault(run.variant, {column: [] for column in COLUMNS})
        seeds.setdefault(run.variant, []).append(int(report["seed"]))
        dead[run.variant] += bool(report.get("dead_layers"))
        for column, (path, scale, _) in COLUMNS.items():
            value = _dig(report, path)
            if value is not None:
                row[column].append(scale * value)
    return [Row(name, values, tuple(seeds[name]), dead[name]) for name, values in collected.items()]


def write_comparison(
    folder: Path, runs: Iterable[Finished], title: str, level: str = "ConvPEP weights"
) -> str:
    """Write ``comparison.md``, ``.csv``, confusion matrices, curves and ``report.html``.

    Args:
        folder: of the comparison.
        runs: finished or not.
        title: of the table.
        level: what series are a fraction of, unless their name says patches.

    Returns:
        The Markdown table.
    """
    from spikeformer_lt.reports.comparison_page import write_variants_page
    from spikeformer_lt.reports.confusion import write_confusions
    from spikeformer_lt.reports.plots import plot_curves
    from spikeformer_lt.reports.tables import markdown_table, write_csv

    runs = list(runs)
    rows = read_rows(runs)
    columns = [c for c in COLUMNS if not rows or any(r.values[c] for r in rows)]
    header = ["variant", "seeds", *columns]
    cells = [[r.variant, str(r.seeds), *(r.cell(c) for c in columns)] for r in rows]
    table = markdown_table(header, cells)
    asked = Counter(run.variant for run in runs)
    done = {row.variant: row.seeds for row in rows}
    short = [f"{name} ({done.get(name, 0)} of {n})" for name, n in asked.items()
             if done.get(name, 0) < n]  # fmt: skip
    notes = [f"Runs missing, finished of asked: {', '.join(short)}."] if short else []
    silent = [f"{row.variant} ({row.dead} of {row.seeds})" for row in rows if row.dead]
    if silent:
        notes.append(
            "Runs with a spiking layer that never fired, whose few operations are no saving: "
            f"{', '.join(silent)}."
        )
    text = f"# {title}\n\n{table}\n" + "".join(f"\n{note}\n" for note in notes)
    if saved := early_time_table(rows):
        text += (
            "\nEarly-Time against the same search without it, seed by seed (means of the ratios "
            f"with / without):\n\n{saved}\n"
        )
    (folder / "comparison.md").write_text(text)
    write_csv(folder / "comparison.csv", header, cells)
    write_csv(
        folder / "runs.csv",
        ["variant", "seed", "test accuracy %"],
        [
            [r.variant, str(seed), f"{v:.4f}"]
            for r in rows
            for seed, v in zip(r.seed, r.values["test accuracy %"], strict=True)
        ],
    )
    write_confusions(folder, [(run.variant, run.report) for run in runs])
    curves = {}
    for name, series in series_of(rows, level).items():
        dense = [v for r in rows if r.variant == "dense" for v in r.values["test accuracy %"]]
        curves[name] = folder / f"curve-{name.replace(' ', '-')}.png"
        plot_curves(
            curves[name],
            series,
            x_label=f"{name} removed (fraction)",
            y_label="test accuracy (%)",
            reference=_mean(dense) if dense else None,
        )
    reports = [(run.variant, run.report) for run in runs]
    write_variants_page(folder, title, (header, cells), notes, curves, reports)
    return text


def series_of(
    rows: Iterable[Row], usual: str = "ConvPEP weights"
) -> dict[str, dict[str, list[tuple[float, list[float]]]]]:
    """Rows called ``NAME SPARSITY`` as curves: level -> series name -> (x, accuracies) points.

    x is what was removed, which the row's name only asks for: 0.65 of 16 patches are 10.
    """
    found: dict[str, dict[str, list[tuple[float, list[float]]]]] = {}
    for row in rows:
        name, _, number = row.variant.rpartition(" ")
        try:
            asked = float(number)
        except ValueError:
            continue
        if not 0 <= asked < 1:  # a name that ends in a number, such as "Algorithm 1"
            continue
        level = "patches" if "patches" in name else usual
        points = found.setdefault(level, {}).setdefault(name, [])
        x = _mean(row.values[f"{level} removed %"]) / 100
        points.append((x, row.values["test accuracy %"]))
    return {
        level: {name: sorted(points) for name, points in series.items()}
        for level, series in found.items()
    }


def _dig(report: Mapping[str, Any], path: str) -> float | None:
    value: Any = report
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else 0.0
