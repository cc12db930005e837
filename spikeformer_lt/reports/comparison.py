"""What a search cost, and what Early-Time saves of it.

Runs of several variants over seeds, side by side: table, CSV and curves.

``report.html`` of a comparison over variants and seeds, from what its runs left.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spikeformer_lt.errors import DataError, MaskError, TicketError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.page import Page, markdown_table
from spikeformer_lt.reports.pictures import plot_anytime, plot_mask_distances
from spikeformer_lt.ticket import Ticket

WRAPPED = "+et"
"""What the name of a series ends in where Early-Time wraps the search of the same name."""
SECONDS, STEPS, ACCURACY = "search (s)", "search (epochs x T)", "test accuracy %"


class CostRow(Protocol):
    """One variant of a comparison."""

    @property
    def variant(self) -> str:
        """``SERIES SPARSITY``, such as "imp+et 0.9"."""

    @property
    def values(self) -> Mapping[str, list[float]]:
        """Values of each column, one for each seed."""

    @property
    def seed(self) -> tuple[int, ...]:
        """Seeds, in the order of the values."""


def search_steps(provenance: Mapping[str, Any]) -> float | None:
    """Cost of a search that no machine changes: epochs times time steps, summed over its phases.

    Times the number of training images, this is how often the network saw an image for one step.
    The dense epochs before the probe of Early-Time count with all T, what follows with the fewer
    steps; scoring on single batches (the probe, SNIP, GraSP, SynFlow) is not counted.

    Args:
        provenance: of the ticket that the search left, before any training from it.

    Returns:
        None where the provenance says nothing of the model's T or of the phases.
    """
    T = provenance.get("model", {}).get("args", {}).get("T")
    phases = provenance.get("phases")
    if T is None or phases is None:
        return None
    fewer = provenance.get("early_time", {}).get("T_early", T)
    return float(
        sum(phase["epochs"] * (T if phase["phase"] == "early_time" else fewer) for phase in phases)
    )


def steps_of_run(report: Path) -> float | None:
    """`search_steps` of the ticket beside a run's report; None where no search of weights was."""
    about = report.parent / "ticket" / "ticket.json"
    if not about.is_file():
        return None
    known = json.loads(about.read_text())["provenance"]
    return search_steps(known) if "search_seconds" in known else None


def early_time_table(rows: Sequence[CostRow]) -> str:
    """Early-Time against the search alone, seed by seed: what it costs and what it loses.

    Args:
        rows: of a comparison; a row "imp+et 0.9" is paired with "imp 0.9".

    Returns:
        A Markdown table of the ratios (with / without) of search seconds and of epochs x T, and
        of the change in accuracy; "" where nothing can be paired.
    """
    known = {row.variant: row for row in rows}
    lines = []
    for row in rows:
        series, _, sparsity = row.variant.rpartition(" ")
        plain = known.get(f"{series.removesuffix(WRAPPED)} {sparsity}")
        if not series.endswith(WRAPPED) or plain is None:
            continue
        pairs = [
            (row.seed.index(seed), plain.seed.index(seed))
            for seed in row.seed
            if seed in plain.seed
        ]
        if not pairs:
            continue
        cells = [row.variant, str(len(pairs)), _mean_cell(row.values["T in search"], ".1f")]
        for column in (SECONDS, STEPS):
            ours, theirs = row.values[column], plain.values[column]
            whole = len(ours) == len(row.seed) and len(theirs) == len(plain.seed)
            ratios = [ours[i] / theirs[j] for i, j in pairs if theirs[j]] if whole else []
            cells.append(_mean_cell(ratios, ".3f"))
            cells.append(_mean_cell([100 * (1 - ratio) for ratio in ratios], ".1f"))
        lost = [row.values[ACCURACY][i] - plain.values[ACCURACY][j] for i, j in pairs]
        lines.append([*cells, _mean_cell(lost, "+.2f")])
    if not lines:
        return ""
    header = ["search", "seeds", "T in search", "seconds, ratio", "saved %", "epochs x T, ratio",
              "saved % ", "accuracy, change"]  # fmt: skip
    return markdown_table(header, lines)


def _mean_cell(values: Sequence[float], form: str) -> str:
    return format(sum(values) / len(values), form) if values else "-"


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
    from spikeformer_lt.reports.page import markdown_table, write_csv
    from spikeformer_lt.reports.plots import plot_curves, write_confusions

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


def write_variants_page(
    folder: Path,
    title: str,
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    notes: Sequence[str],
    curves: Mapping[str, Path],
    runs: Iterable[tuple[str, Path]],
) -> Path:
    """Write the page and the pictures that only it needs, with a CSV beside each.

    Args:
        folder: of the comparison.
        title: heading.
        table: header and rows.
        notes: what a reader must know first: runs that are missing, silent networks.
        curves: what is removed -> picture of accuracy against it.
        runs: (variant, report.json) of each run, finished or not.

    Returns:
        The page.
    """
    found = [(variant, path) for variant, path in runs if path.exists()]
    reports = [(variant, json.loads(path.read_text("utf-8"))) for variant, path in found]
    page = Page(title)
    for note in notes:
        page.text(note, notice=True)
    if any(report.get("dataset") in ("digits", "moving_digits") for _, report in reports):
        page.text("A small embedded test bed: its figures stand for no CIFAR or Gesture result.")
    page.section("Table")
    page.text("Mean and, after the sign, standard deviation over the seeds.")
    page.table(*table)
    if curves:
        page.section("Accuracy against sparsity")
    for level, path in curves.items():
        said = f"Test accuracy against the fraction of {level} that is removed: mean and standard "
        page.image(path, f"{said}deviation over seeds, each run a dot, controls dotted.")
    at_t = accuracy_at_t(reports)
    if at_t:
        page.section("Accuracy at t")
        plot_anytime(folder / "anytime.png", at_t)
        said = "Test accuracy from the mean logits of the first t steps, mean over seeds."
        page.image(folder / "anytime.png", said)
    _masks(page, folder, found)
    page.write(folder / "report.html")
    return folder / "report.html"


def accuracy_at_t(reports: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Variant -> accuracy (%) after each step, mean over its runs of the same T."""
    collected: dict[str, list[list[float]]] = {}
    for variant, report in reports:
        if report.get("accuracy_at_t"):
            collected.setdefault(variant, []).append(report["accuracy_at_t"])
    return {
        variant: [statistics.fmean(step) for step in zip(*values, strict=True)]
        for variant, values in collected.items()
        if len({len(one) for one in values}) == 1
    }


def _masks(page: Page, folder: Path, found: Sequence[tuple[str, Path]]) -> None:
    """Distances between the tickets of each variant's first run."""
    masks: dict[str, Mask] = {}
    for variant, path in found:
        if variant not in masks and (path.parent / "ticket").is_dir():
            with contextlib.suppress(TicketError):  # a damaged one has no mask to compare
                masks[variant] = Ticket.load(path.parent / "ticket").mask
    if len(masks) < 2:
        return
    page.section("Masks")
    try:
        plot_mask_distances(folder / "masks.png", list(masks.values()), list(masks))
    except MaskError as differ:
        page.text(f"No distances: {differ}")
    else:
        said = "Fraction of mask entries in which the first tickets of two variants differ."
        page.image(folder / "masks.png", said)
