"""Runs side by side: variants over seeds from their files, and opened runs with their energy."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikeformer_lt.disk import write_atomic
from spikeformer_lt.errors import DataError, MaskError, TicketError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.energy import energy_tables, measure_energy, write_energy
from spikeformer_lt.reports.finished import FinishedRun
from spikeformer_lt.reports.page import markdown_table, write_csv, write_page
from spikeformer_lt.reports.plots import (
    banded,
    plot_anytime,
    plot_curves,
    plot_distances,
    plot_energy,
)
from spikeformer_lt.reports.run_page import FACTS, fact, notices_of, number_at
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.jobs import Job

WRAPPED = "+et"
"""Ending of the name of a series in which Early-Time wraps the search of the same name."""
SECONDS, STEPS, ACCURACY = "search (s)", "search (epochs x T)", "test accuracy %"
COLUMNS = {
    ACCURACY: ("test_accuracy", 1.0, 2),
    "val %": ("val_accuracy", 1.0, 2),
    "patches removed %": ("sparsity.patch", 100.0, 1),
    "ConvPEP weights removed %": ("sparsity.conv_pep_weight", 100.0, 1),
    "all weights removed %": ("sparsity.total_weight", 100.0, 1),
    "prunable weights removed %": ("ticket.prunable_sparsity", 100.0, 2),
    SECONDS: ("ticket.search_seconds", 1.0, 1),
    STEPS: ("search_steps", 1.0, 0),
    "T in search": ("ticket.T_search", 1.0, 1),
    "ConvPEP bits/weight": ("conv_pep_bits_per_weight", 1.0, 2),
    "MACs, all weights (M)": ("macs", 1e-6, 2),
    "MACs of real inputs (M)": ("macs_nonspiking", 1e-6, 3),
    "SOPs (M)": ("sops", 1e-6, 3),
    "firing rate": ("mean_firing_rate", 1.0, 3),
}
"""Column -> key of report.json, factor and digits."""
Curves = dict[str, list[tuple[float, list[float]]]]  # series -> points (x, one accuracy a run)


@dataclass(frozen=True)
class Row:
    """One variant: the values of each column, one for each seed."""

    variant: str  # ``SERIES SPARSITY``, such as "imp+et 0.9", or a name alone
    values: Mapping[str, list[float]]
    seed: tuple[int, ...] = ()  # seed of each run, in the order of the values
    dead: int = 0  # runs in which a spiking layer never fired

    @property
    def seeds(self) -> int:
        """Number of runs of the row."""
        return len(self.values[ACCURACY])

    def cell(self, column: str) -> str:
        """Mean, with the standard deviation if there are several seeds."""
        values, form = self.values[column], f".{COLUMNS[column][2]}f"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return _mean_cell(values, form) + (f" ± {spread:{form}}" if spread else "")


def read_rows(runs: Iterable[Job]) -> list[Row]:
    """Collect the finished runs, in the order their variants first appear.

    Raises:
        DataError: runs of different test sets or splits, which are not comparable.
    """
    found: dict[str, list[dict[str, Any]]] = {}
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
        found.setdefault(run.variant, []).append(report)
    rows = []
    for variant, reports in found.items():
        values = {column: [scale * number for report in reports
                           if (number := number_at(report, path)) is not None]
                  for column, (path, scale, _) in COLUMNS.items()}  # fmt: skip
        seeds = tuple(int(report["seed"]) for report in reports)
        dead = sum(bool(report.get("dead_layers")) for report in reports)
        rows.append(Row(variant, values, seeds, dead))
    return rows


def search_steps(provenance: Mapping[str, Any]) -> float | None:
    """Cost of a search that no machine changes: epochs x time steps, summed over its phases.

    `provenance` is of the ticket that the search left, before any training from it; None if it
    lacks the model's T or the phases. The epochs before the probe of Early-Time count with all T;
    scoring on single batches is not counted.
    """
    T, phases = provenance.get("model", {}).get("args", {}).get("T"), provenance.get("phases")
    if T is None or phases is None:
        return None
    fewer = provenance.get("early_time", {}).get("T_early", T)
    return float(sum(p["epochs"] * (T if p["phase"] == "early_time" else fewer) for p in phases))


def steps_of_run(report: Path) -> float | None:
    """`search_steps` of the ticket beside a run's report; None if no search of weights was run."""
    about = report.parent / "ticket" / "ticket.json"
    known = json.loads(about.read_text())["provenance"] if about.is_file() else {}
    return search_steps(known) if "search_seconds" in known else None


def early_time_table(rows: Sequence[Row]) -> str:
    """Early-Time against the search alone, seed by seed: a row "imp+et 0.9" against "imp 0.9".

    A Markdown table of the ratios (with / without) of search seconds and of epochs x T, and of the
    change in accuracy; "" if no row has a partner.
    """
    known = {row.variant: row for row in rows}
    lines = []
    for row in rows:
        series, _, sparsity = row.variant.rpartition(" ")
        plain = known.get(f"{series.removesuffix(WRAPPED)} {sparsity}")
        if not series.endswith(WRAPPED) or plain is None:
            continue
        pairs = [(i, plain.seed.index(s)) for i, s in enumerate(row.seed) if s in plain.seed]
        if not pairs:
            continue
        cells = [row.variant, str(len(pairs)), _mean_cell(row.values["T in search"], ".1f")]
        for column in (SECONDS, STEPS):
            ours, theirs = row.values[column], plain.values[column]
            whole = len(ours) == len(row.seed) and len(theirs) == len(plain.seed)
            ratios = [ours[i] / theirs[j] for i, j in pairs if theirs[j]] if whole else []
            saved = [100 * (1 - ratio) for ratio in ratios]
            cells += [_mean_cell(ratios, ".3f"), _mean_cell(saved, ".1f")]
        lost = [row.values[ACCURACY][i] - plain.values[ACCURACY][j] for i, j in pairs]
        lines.append([*cells, _mean_cell(lost, "+.2f")])
    header = ["search", "seeds", "T in search", "seconds, ratio", "saved %", "epochs x T, ratio",
              "saved % ", "accuracy, change"]  # fmt: skip
    return markdown_table(header, lines) if lines else ""


def _mean_cell(values: Sequence[float], form: str) -> str:
    return format(_mean(values), form) if values else "-"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else 0.0


def write_comparison(
    folder: Path, runs: Iterable[Job], title: str, level: str = "ConvPEP weights"
) -> str:
    """Write ``comparison.md``, ``.csv``, confusion matrices, curves and ``report.html``.

    `runs` are finished or not; `level` is the set of weights whose removed fraction is the x of
    series, unless their name says patches. The table is returned as Markdown.
    """
    runs = list(runs)
    rows = read_rows(runs)
    columns = [c for c in COLUMNS if not rows or any(r.values[c] for r in rows)]
    header = ["variant", "seeds", *columns]
    cells = [[r.variant, str(r.seeds), *(r.cell(c) for c in columns)] for r in rows]
    notes = _notes(runs, rows)
    parts = [f"# {title}", markdown_table(header, cells), *notes]
    if saved := early_time_table(rows):
        parts += ["Early-Time against the same search without it, seed by seed (means of the "
                  "ratios with / without):", saved]  # fmt: skip
    text = "\n\n".join(parts) + "\n"
    write_atomic(folder / "comparison.md", text.encode())
    write_csv(folder / "comparison.csv", header, cells)
    single = [[r.variant, str(seed), f"{value:.4f}"] for r in rows
              for seed, value in zip(r.seed, r.values[ACCURACY], strict=True)]  # fmt: skip
    write_csv(folder / "runs.csv", ["variant", "seed", ACCURACY], single)
    found = [(run.variant, run.report) for run in runs if run.report.exists()]
    write_confusions(folder, found)
    reports = [(variant, json.loads(path.read_text("utf-8"))) for variant, path in found]
    dense = [v for r in rows if r.variant == "dense" for v in r.values[ACCURACY]]
    curves = {_plot_curves(folder / f"curve-{name.replace(' ', '-')}.png", series, dense, name):
              f"Test accuracy against the fraction of {name} that is removed: mean and standard "
              "deviation over seeds, each run a dot, controls dotted."
              for name, series in series_of(rows, level).items()}  # fmt: skip
    masks, differ = _plot_masks(folder / "masks.png", _first_masks(found))
    at_t = accuracy_at_t(reports)
    steps = [plot_anytime(folder / "anytime.png", at_t)] if at_t else []
    write_page(
        folder / "report.html", "variants.html", [*curves, *steps, *masks],
        title=title, notices=notes, table=(header, cells), differ=differ,
        datasets=[report.get("dataset") for _, report in reports],
        curves={path.name: said for path, said in curves.items()},
    )  # fmt: skip
    return text


def _notes(runs: Sequence[Job], rows: Sequence[Row]) -> list[str]:
    """What a reader must know first: missing runs and silent networks."""
    asked, done = Counter(run.variant for run in runs), {row.variant: row.seeds for row in rows}
    short = [f"{name} ({done.get(name, 0)} of {n})" for name, n in asked.items()
             if done.get(name, 0) < n]  # fmt: skip
    silent = [f"{row.variant} ({row.dead} of {row.seeds})" for row in rows if row.dead]
    notes = {
        "Runs missing, finished of asked": short,
        "Runs with a spiking layer that never fired, whose few operations are no saving": silent,
    }
    return [f"{words}: {', '.join(names)}." for words, names in notes.items() if names]


def write_confusions(folder: Path, runs: Iterable[tuple[str, Path]]) -> None:
    """Write ``confusion.md`` and a ``confusion-VARIANT.csv`` of runs (variant, report.json).

    Rows are true classes, columns predictions, cells the number of test samples over all seeds.
    """
    found: dict[str, list[list[list[int]]]] = {}
    for variant, path in runs:
        counts = json.loads(path.read_text()).get("confusion") if path.exists() else None
        if counts is not None:
            found.setdefault(variant, []).append(counts)
    parts = ["# Confusion matrices\n\nRows are true classes, columns predictions; cells count test "
             "samples over all seeds.\n"]  # fmt: skip
    for variant, matrices in found.items():
        sums = np.sum(matrices, axis=0)
        header = ["true \\ predicted", *map(str, range(len(sums)))]
        rows = [[str(k), *map(str, row)] for k, row in enumerate(sums.tolist())]
        total, right = sums.sum(), sums.trace()
        parts.append(
            f"## {variant}\n\n{len(matrices)} seeds, {right} of {total} right "
            f"({100 * right / total:.2f} %; always the largest class: "
            f"{100 * sums.sum(1).max() / total:.2f} %).\n\n{markdown_table(header, rows)}\n"
        )
        write_csv(folder / f"confusion-{variant.replace(' ', '_')}.csv", header, rows)
    if found:
        write_atomic(folder / "confusion.md", "\n".join(parts).encode())


def series_of(rows: Iterable[Row], usual: str = "ConvPEP weights") -> dict[str, Curves]:
    """Rows called ``NAME SPARSITY`` as curves: level -> series name -> (x, accuracies) points.

    x is the measured fraction, which can differ from the requested one: 0.65 of 16 patches are 10.
    """
    found: dict[str, Curves] = {}
    for row in rows:
        name, _, number = row.variant.rpartition(" ")
        if not re.fullmatch(r"0(\.\d+)?|[\d.]+e-\d+", number):  # "Algorithm 1" is no rate
            continue
        level = "patches" if "patches" in name else usual
        x = _mean(row.values[f"{level} removed %"]) / 100
        found.setdefault(level, {}).setdefault(name, []).append((x, row.values[ACCURACY]))
    return {
        level: {name: sorted(points) for name, points in series.items()}
        for level, series in found.items()
    }


def accuracy_at_t(reports: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Variant -> accuracy (%) after each step, mean over its runs of the same T."""
    collected: dict[str, list[list[float]]] = {}
    for variant, report in reports:
        if report.get("accuracy_at_t"):
            collected.setdefault(variant, []).append(report["accuracy_at_t"])
    alike = {v: values for v, values in collected.items() if len({*map(len, values)}) == 1}
    return {variant: np.mean(values, axis=0).tolist() for variant, values in alike.items()}


def _first_masks(found: Sequence[tuple[str, Path]]) -> dict[str, Mask]:
    """Mask of each variant's first ticket."""
    masks: dict[str, Mask] = {}
    for variant, path in found:
        if variant not in masks and (path.parent / "ticket").is_dir():
            with contextlib.suppress(TicketError):  # a damaged one has no mask to compare
                masks[variant] = Ticket.load(path.parent / "ticket").mask
    return masks


def _plot_curves(path: Path, series: Curves, dense: Sequence[float], name: str) -> Path:
    """Draw accuracy against the removed fraction of `name`."""
    labels = {"x_label": f"{name} removed (fraction)", "y_label": "test accuracy (%)"}
    return plot_curves(path, series, **labels, reference=_mean(dense) if dense else None)


def _plot_masks(path: Path, masks: Mapping[str, Mask]) -> tuple[list[Path], str]:
    """Draw the distances between masks; returns the picture, or why there is none."""
    known = list(masks.values())
    try:
        found = banded([[one.hamming(other) for other in known[:i]] for i, one in enumerate(known)])
    except MaskError as differ:
        return [], str(differ)
    return [plot_distances(path, found, list(masks))] if len(masks) > 1 else [], ""


def write_comparison_page(
    runs: Sequence[FinishedRun], out: Path, title: str, images: int = 256
) -> Path:
    """Write ``report.html`` of several runs: ledger, accuracy at t, energy, mask distances."""
    plots, named = out / "plots", dict(zip(_names(runs), runs, strict=True))
    energies = {name: measure_energy(run.model, run.batches("test", images), run.model.T)
                for name, run in named.items()}  # fmt: skip
    write_energy(out / "energy", energies)
    notices = [words for name, run in named.items()
               for words in notices_of(name, run, energies[name])]  # fmt: skip
    if len({run.ticket.provenance["split_sha256"] for run in runs}) > 1:
        notices.append("These runs have different splits: their accuracies do not compare.")
    reports = {name: run.report or {} for name, run in named.items()}
    at_t = accuracy_at_t(reports.items())
    pictures = [plot_anytime(plots / "anytime.png", at_t)] if at_t else []
    curves, dense = by_search(runs)
    if curves:
        pictures.append(_plot_curves(plots / "curves.png", curves, dense, "all weights"))
    if not all(energy.dead for energy in energies.values()):
        pictures.append(plot_energy(plots / "energy-bars.png", energies))
    masks = {name: run.ticket.mask for name, run in named.items()}
    drawn, differ = _plot_masks(plots / "masks.png", masks)
    rows = [[name, *(fact(report, *how) for report in reports.values())]
            for name, how in FACTS.items()]  # fmt: skip
    return write_page(
        out / "report.html", "runs.html", [*pictures, *drawn],
        title=title, notices=notices, datasets=[run.splits.name for run in runs], differ=differ,
        ledger=(["quantity", *named], rows), energy=energy_tables(energies),
    )  # fmt: skip


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Each run's folder; its path if two have one name; counted if one was given twice."""
    names = [run.name for run in runs]
    names = [n if names.count(n) == 1 else str(r.path) for n, r in zip(names, runs, strict=True)]
    before = [names[:at].count(name) for at, name in enumerate(names)]
    return [f"{n} ({b + 1})" if b else n for n, b in zip(names, before, strict=True)]


def by_search(runs: Sequence[FinishedRun]) -> tuple[Curves, list[float]]:
    """Curves of the runs with a report: search -> (all weights removed, accuracies), by sparsity.

    The accuracies of the runs that removed neither weight nor patch come beside them.
    """
    found: dict[str, dict[float, list[float]]] = {}
    dense: list[float] = []
    for run in runs:
        removed = number_at(run.report, "sparsity.total_weight")
        accuracy = number_at(run.report, "test_accuracy")
        if run.report is None or removed is None or accuracy is None:
            continue
        if not any(run.report["sparsity"].values()):
            dense.append(accuracy)
        else:
            name = str(run.ticket.provenance.get("search", run.name))
            found.setdefault(name, {}).setdefault(round(removed, 4), []).append(accuracy)
    return {name: sorted(points.items()) for name, points in found.items()}, dense
