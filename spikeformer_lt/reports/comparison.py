"""Runs side by side: variants over seeds from their files, and opened runs with their energy."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikeformer_lt.disk import read_record, write_atomic
from spikeformer_lt.errors import (
    CheckpointError,
    DataError,
    MaskError,
    SpikeformerError,
    TicketError,
    name_of,
)
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports import plots
from spikeformer_lt.reports.energy import (
    HOROWITZ,
    energy_tables,
    measure_energy,
    microjoules,
    write_energy,
)
from spikeformer_lt.reports.finished import FinishedRun, milliseconds, open_ticket, ready
from spikeformer_lt.reports.page import Table, markdown_table, write_csv, write_page
from spikeformer_lt.reports.run_page import (
    FACTS,
    by_search,
    fact,
    interval_of,
    is_dense,
    made_by,
    notices_of,
    number_at,
    samples_told,
)
from spikeformer_lt.reports.statistics import Interval, Outcome, accuracy_interval, contrast, holm
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.surgery import model_from_ticket
from spikeformer_lt.training.evaluate import PREDICTIONS, read_predictions
from spikeformer_lt.training.jobs import Job
from spikeformer_lt.training.run import read_report

WRAPPED = "+et"
"""Ending of the name of a series in which Early-Time wraps the search of the same name."""
SECONDS, STEPS, ACCURACY = "search (s)", "search (epochs x T)", "test accuracy %"
EPOCHS, INTERVAL = "epochs trained", "95 % interval"
MS = "ms per input"
MEASURED = ("weights (bytes)", "energy (uJ)", MS)
COLUMNS = {
    ACCURACY: ("test_accuracy", 1.0, 2),
    "val %": ("val_accuracy", 1.0, 2),
    EPOCHS: ("epochs_trained", 1.0, 1),
    "patches removed %": ("sparsity.patch", 100.0, 1),
    "(token, step) halted %": ("sparsity.halting", 100.0, 1),
    "steps": ("steps", 1.0, 2),
    "ConvPEP weights removed %": ("sparsity.conv_pep_weight", 100.0, 1),
    "all weights removed %": ("sparsity.total_weight", 100.0, 1),
    "prunable weights removed %": ("ticket.prunable_sparsity", 100.0, 2),
    SECONDS: ("ticket.search_seconds", 1.0, 1),
    STEPS: ("search_steps", 1.0, 0),
    "T in search": ("ticket.T_search", 1.0, 1),
    "bits/weight": ("bits_per_weight", 1.0, 2),
    "ConvPEP bits/weight": ("conv_pep_bits_per_weight", 1.0, 2),
    "MACs, all weights (M)": ("macs", 1e-6, 2),
    "MACs, papers' count (M)": ("macs_dense", 1e-6, 2),
    "MACs of real inputs (M)": ("macs_nonspiking", 1e-6, 3),
    "SOPs (M)": ("sops", 1e-6, 3),
    "energy (uJ)": ("energy_pj", 1e-6, 3),
    "weights (kB)": ("weight_bytes", 1e-3, 2),
    MS: ("ms_per_input", 1.0, 3),
    "firing rate": ("mean_firing_rate", 1.0, 3),
}
"""Column -> key of report.json, factor and digits."""
RATE = re.compile(r"(.*?) ?\b(0(?:\.\d+)?|[\d.]+e-\d+)")
CONTROLS = plots.CONTROLS
COLUMNS_SAY = (
    "Mean and, after the sign, standard deviation over the seeds. The interval is Wilson's for one "
    "run, else t over the seeds, and never narrower than one run's."
)
MS_SAYS = (
    " Milliseconds are those of the first seed's network in the form that exports run in, in one "
    "batch of up to 32 test inputs, on the machine that wrote this; median of 11 rounds in turn."
)
DIFFERENCES = (
    "Points of test accuracy. One seed: McNemar's exact test on the saved predictions, with a "
    "paired bootstrap interval. More: the variance over seeds and that of the test samples. A "
    "verdict needs p below 0.05 after Holm's correction over the table."
)
Curves = plots.Curves
UNEQUAL = "Epochs trained differ, so that accuracies compare budgets, too"
WRITTEN = (
    *(
        "comparison.*",
        "runs.csv",
        "differences.csv",
        "report.html",
        "confusion.md",
        "confusion-*.csv",
    ),
    *("curve-*.*", "masks.*", "anytime.*"),
)  # names of the files that a comparison writes beside its runs


@dataclass(frozen=True)
class Row:
    """One variant ``SERIES SPARSITY``, such as "imp+et 0.9", or a name alone; a report a run."""

    variant: str
    reports: Sequence[Mapping[str, Any]]

    def values(self, column: str) -> dict[int, float]:
        """Seed -> value of a column, for the runs that have one."""
        path, scale, _ = COLUMNS[column]
        known = {int(report["seed"]): number_at(report, path) for report in self.reports}
        return {seed: scale * number for seed, number in known.items() if number is not None}

    def interval(self) -> Interval:
        """See `accuracy_interval`."""
        values = list(self.values(ACCURACY).values())
        return accuracy_interval(values, self.reports[0].get("test_count"))

    def outcomes(self) -> dict[int, Outcome]:
        """Seed -> test result, with the predictions that lie beside its report."""
        found = {int(x["seed"]): outcome_of(x, x["folder"]) for x in self.reports}
        return {seed: outcome for seed, outcome in found.items() if outcome is not None}

    def cell(self, column: str) -> str:
        """Mean, with the standard deviation if there are several seeds."""
        values, form = list(self.values(column).values()), f".{COLUMNS[column][2]}f"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return _mean_cell(values, form) + (f" ± {spread:{form}}" if spread else "")


def outcome_of(report: Mapping[str, Any], folder: Path) -> Outcome | None:
    """Test result of a run, with its saved predictions if they are those of the report."""
    if report.get("test_accuracy") is None or not report.get("test_count"):
        return None
    accuracy, count = float(report["test_accuracy"]), int(report["test_count"])
    with contextlib.suppress(CheckpointError):
        found, _ = read_predictions(folder / PREDICTIONS)
        if abs(found.accuracy - accuracy) < 1e-6:
            return Outcome(accuracy, count, found.predicted.numpy(), found.label.numpy())
    return Outcome(accuracy, count)


def differences(sides: Mapping[tuple[str, str], Sequence[tuple[Outcome, Outcome]]]) -> Table:
    """Test accuracy of variants against others, with Holm's p over the whole table.

    Args:
        sides: (variant, what it is compared with) -> both results for each seed that both have.
    """
    found = {names: contrast(pairs) for names, pairs in sides.items() if pairs}
    adjusted = holm({"\0".join(names): one.p for names, one in found.items()})
    header = ["variant", "against", "seeds", "points", INTERVAL, "p", "p (Holm)", "verdict", "test"]
    rows = []
    for names, one in found.items():
        p = adjusted["\0".join(names)]
        points = round(one.difference.value, 2) + 0.0  # never "-0.00"
        numbers = [f"{points:+.2f}", one.difference.ends, f"{one.p:.3g}", f"{p:.3g}"]
        rows.append([*names, str(one.seeds), *numbers, one.verdict(p), one.test])
    return header, rows


def _rows_against(rows: Sequence[Row]) -> Table:
    """Each row against dense, and against the controls of its rate."""
    sides = {}
    results = {row.variant: row.outcomes() for row in rows}
    for variant, ours in results.items():
        for other, theirs in results.items():
            if variant != other and (other == "dense" or _is_control(other, variant)):
                pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
                sides[variant, other] = pairs
    return differences(sides)


def _with_differences(table: Table, against: Table, other: str) -> Table:
    """A table of accuracies with each row's difference to `other` behind its interval."""
    known = {row[0]: [row[3], row[4], row[7]] for row in against[1] if row[1] == other}
    if not known:
        return table
    at = table[0].index(INTERVAL) + 1
    header = [*table[0][:at], f"points to {other}", "their interval", "verdict", *table[0][at:]]
    return header, [[*row[:at], *known.get(row[0], ["-"] * 3), *row[at:]] for row in table[1]]


def _conclusion(results: Mapping[str, Interval], against: Table) -> str:
    """One sentence: the most accurate variant, and which differences are told apart."""
    if not results:
        return "No run has finished."
    best = max(results, key=lambda name: results[name].value)
    text = f"{best} is the most accurate, {results[best].value:.2f} % {results[best].ends}"
    told = [f"{row[0]} is {row[3].lstrip('+-')} points {row[7]} than {row[1]}"
            for row in against[1] if row[7] in ("higher", "lower")]  # fmt: skip
    if against[1]:
        text += f"; of the differences below {len(told) or 'none'} can be told apart"
    more = [f"and {len(told) - 3} more"] if len(told) > 3 else []
    return text + (f": {'; '.join([*told[:3], *more])}." if told else ".")


def _is_control(control: str, variant: str) -> bool:
    """Whether "imp-random 0.9" or "random 0.9" is a control of "imp 0.9".

    So is "random mask 0.9" of "weights 0.9", and "all levels, random mask" of "all levels".
    """
    found = CONTROLS.search(control)
    if variant == "dense" or not found or CONTROLS.search(variant):
        return False
    name, rate = series_and_rate(variant)
    base, same = series_and_rate(CONTROLS.sub("", control).strip())
    if found[2]:
        drawn = "weights" if found[2] == "mask" else found[2]
        return rate == same and name in (base or drawn, f"{base} (default)")
    return rate == same and name.startswith(base)


def series_and_rate(variant: str) -> tuple[str, str]:
    """The name of a variant and the fraction at its end, which can be missing."""
    found = RATE.fullmatch(variant)  # "Algorithm 1" is no rate
    return (found[1], found[2]) if found else (variant, "")


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
        report = read_report(run.report)
        for name in ("dataset", "split_sha256", "firing_rate", "seed"):
            if report.get(name) is None:
                raise DataError(f"{name_of(run.report)} has no {name}: it is no report of a run")
        splits.setdefault(f"{report['dataset']} {report['split_sha256']}", run.report)
        if len(splits) > 1:
            raise DataError(f"runs of different splits are not comparable: {splits}")
        rates = report["firing_rate"].values()
        report["mean_firing_rate"] = statistics.fmean(rates) if rates else None
        report["search_steps"] = steps_of_run(run.report)
        found.setdefault(run.variant, []).append({**report, "folder": run.report.parent})
    return [Row(variant, reports) for variant, reports in found.items()]


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
    known = read_record(about, {"provenance": "names"}, DataError) if about.is_file() else {}
    known = known.get("provenance") or {}
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
        lost = [ours - theirs for ours, theirs in _paired(row, plain, ACCURACY)]
        cells = [row.variant, str(len(lost)), row.cell("T in search")]
        for column in (SECONDS, STEPS):
            ratios = [ours / theirs for ours, theirs in _paired(row, plain, column) if theirs]
            saved = [100 * (1 - ratio) for ratio in ratios]
            cells += [_mean_cell(ratios, ".3f"), _mean_cell(saved, ".1f")]
        if lost:
            lines.append([*cells, _mean_cell(lost, "+.2f")])
    header = ["search", "seeds", "T in search", "seconds, ratio", "saved %", "epochs x T, ratio",
              "saved % ", "accuracy, change"]  # fmt: skip
    return markdown_table(header, lines) if lines else ""


def _paired(row: Row, other: Row, column: str) -> list[tuple[float, float]]:
    """Values of a column of two rows, for the seeds that both have."""
    theirs = other.values(column)
    return [(value, theirs[s]) for s, value in row.values(column).items() if s in theirs]


def _mean_cell(values: Sequence[float], form: str) -> str:
    return format(statistics.fmean(values), form) if values else "-"


def write_comparison(
    folder: Path, runs: Iterable[Job], title: str, level: str = "ConvPEP weights"
) -> str:
    """Write ``comparison.md``, ``.csv``, confusion matrices, curves and ``report.html``.

    `runs` are finished or not; `level` is the set of weights whose removed fraction is the x of
    series, unless their name says patches. The table is returned as Markdown.
    """
    runs = list(runs)
    rows = timed(read_rows(runs))
    columns = [c for c in COLUMNS if not rows or any(r.values(c) for r in rows)]
    header = ["variant", "seeds", ACCURACY, INTERVAL, *columns[1:]]
    cells = [[r.variant, str(len(r.reports)), r.cell(ACCURACY), r.interval().ends,
              *(r.cell(c) for c in columns[1:])] for r in rows]  # fmt: skip
    notes, against = _notes(runs, rows), _rows_against(rows)
    columns_say = COLUMNS_SAY + MS_SAYS * (MS in columns)
    parts = [f"# {title}", markdown_table(header, cells), columns_say, *notes]
    if against[1]:
        parts += ["## Differences in test accuracy", DIFFERENCES, markdown_table(*against)]
        points = against[0].index("points")  # numbers, which no spreadsheet takes for a formula
        numbers = [[*row[:points], float(row[points]), *row[points + 1 :]] for row in against[1]]
        write_csv(folder / "differences.csv", against[0], numbers)
    if saved := early_time_table(rows):
        parts += ["Early-Time against the same search without it, seed by seed (means of the "
                  "ratios with / without):", saved]  # fmt: skip
    text = "\n\n".join(parts) + "\n"
    write_atomic(folder / "comparison.md", text.encode())
    write_csv(folder / "comparison.csv", header, cells)
    single = [[r.variant, str(seed), f"{value:.4f}"]
              for r in rows for seed, value in r.values(ACCURACY).items()]  # fmt: skip
    write_csv(folder / "runs.csv", ["variant", "seed", ACCURACY], single)
    write_confusions(folder, rows)
    dense = [v for r in rows if r.variant == "dense" for v in r.values(ACCURACY).values()]
    first = rows[0].reports[0] if rows else {}
    count, seeds = first.get("test_count"), {x["seed"] for row in rows for x in row.reports}
    told = samples_told(first.get("dataset"), first.get("train_count"), seeds)
    curves = {path: f"Test accuracy against the share of {name} left or removed: mean and standard "
              "deviation over seeds, controls dotted."
              for name, series in series_of(rows, level).items()
              if (path := _plot_curves(folder / f"curve-{name.replace(' ', '-')}.png", series,
                                       dense, name, count, told))}  # fmt: skip
    masks, differ = _plot_masks(folder / "masks.png", _first_masks(rows))
    at_t = accuracy_at_t({row.variant: row.reports for row in rows})
    steps = plots.plot_anytime(folder / "anytime.png", at_t, count)
    write_page(
        folder / "report.html", "variants.html", [*curves, *filter(None, [steps]), *masks],
        title=title, notices=notes, differ=differ, against=against, columns_say=columns_say,
        table=_with_differences((header, cells), against, "dense"), differences=DIFFERENCES,
        conclusion=_conclusion({row.variant: row.interval() for row in rows}, against),
        made=made_by({report["folder"]: report for row in rows for report in row.reports}),
        count=count,
        datasets=[report.get("dataset") for row in rows for report in row.reports],
        curves={path.name: said for path, said in curves.items()},
    )  # fmt: skip
    return text


def unequal(trained: Mapping[str, str]) -> list[str]:
    """Each variant with its epochs of training, if these differ."""
    differ = len(set(trained.values())) > 1
    return [f"{name} {epochs}" for name, epochs in trained.items()] if differ else []


def _notes(runs: Sequence[Job], rows: Sequence[Row]) -> list[str]:
    """What a reader must know first: missing runs and silent networks."""
    done = {row.variant: len(row.reports) for row in rows}
    asked = Counter(run.variant for run in runs)
    short = [f"{name} ({done.get(name, 0)} of {n})" for name, n in asked.items()
             if done.get(name, 0) < n]  # fmt: skip
    dead = {row.variant: sum(bool(x.get("dead_layers")) for x in row.reports) for row in rows}
    silent = [f"{name} ({n} of {done[name]})" for name, n in dead.items() if n]
    budgets = unequal({row.variant: row.cell(EPOCHS) for row in rows})
    notes = {
        "Runs missing, finished of asked": short,
        UNEQUAL: budgets,
        "Runs with a spiking layer that never fired, whose few operations are no saving": silent,
    }
    return [f"{words}: {', '.join(names)}." for words, names in notes.items() if names]


def write_confusions(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``confusion.md`` and a ``confusion-VARIANT.csv`` for each row with matrices.

    Rows are true classes, columns predictions, cells the number of test samples over all seeds.
    """
    found = {row.variant: [x["confusion"] for x in row.reports if "confusion" in x] for row in rows}
    parts = ["# Confusion matrices\n\nRows are true classes, columns predictions; cells count test "
             "samples over all seeds.\n"]  # fmt: skip
    for variant, matrices in found.items():
        if not matrices:
            continue
        sums = np.sum(matrices, axis=0)
        header = ["true \\ predicted", *map(str, range(len(sums)))]
        counts = [[str(k), *map(str, row)] for k, row in enumerate(sums.tolist())]
        total, right = sums.sum(), sums.trace()
        parts.append(
            f"## {variant}\n\n{len(matrices)} seeds, {right} of {total} right "
            f"({100 * right / total:.2f} %; always the largest class: "
            f"{100 * sums.sum(1).max() / total:.2f} %).\n\n{markdown_table(header, counts)}\n"
        )
        write_csv(folder / f"confusion-{variant.replace(' ', '_')}.csv", header, counts)
    if len(parts) > 1:
        write_atomic(folder / "confusion.md", "\n".join(parts).encode())


def series_of(rows: Iterable[Row], usual: str = "ConvPEP weights") -> dict[str, Curves]:
    """Rows called ``NAME SPARSITY`` as curves: level -> series name -> (x, accuracies) points.

    x is the measured fraction, which can differ from the requested one: 0.65 of 16 patches are 10.
    """
    found: dict[str, Curves] = {}
    for row in rows:
        name, rate = series_and_rate(row.variant)
        if not rate:
            continue
        level = "patches" if "patches" in name else usual
        shares = list(row.values(f"{level} removed %").values())
        if shares and not any(shares) and float(rate):
            continue  # the number is of something else
        x = statistics.fmean(shares or [0.0]) / 100
        accuracies = list(row.values(ACCURACY).values())
        found.setdefault(level, {}).setdefault(name, []).append((x, accuracies))
    return {level: {name: sorted(points) for name, points in series.items()}
            for level, series in found.items()}  # fmt: skip


def accuracy_at_t(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Variant -> accuracy (%) after each step, mean over its reports if they have the same T."""
    known = {name: [x["accuracy_at_t"] for x in reports if x.get("accuracy_at_t")]
             for name, reports in runs.items()}  # fmt: skip
    return {name: np.mean(values, axis=0).tolist() for name, values in known.items()
            if len({*map(len, values)}) == 1}  # fmt: skip


def _first_masks(rows: Iterable[Row]) -> dict[str, Mask]:
    """Mask of each variant's first ticket."""
    masks: dict[str, Mask] = {}
    for row in rows:
        for folder in (report["folder"] / "ticket" for report in row.reports):
            if row.variant not in masks and folder.is_dir():
                with contextlib.suppress(TicketError):  # a damaged one has no mask to compare
                    masks[row.variant] = Ticket.load(folder).mask
    return masks


def _plot_curves(
    path: Path, series: Curves, dense: Sequence[float], name: str, count: int | None, told: str
) -> Path | None:
    """Draw accuracy against the removed fraction of `name`."""
    labels = {"x_label": f"{name} removed (fraction)", "y_label": "test accuracy (%)"}
    mean = statistics.fmean(dense) if dense else None
    return plots.plot_curves(path, series, **labels, reference=mean, count=count, title=told)


def _plot_masks(path: Path, masks: Mapping[str, Mask]) -> tuple[list[Path], str]:
    """Draw the distances between masks; returns the picture, or why there is none."""
    known = list(masks.values())
    try:
        found = plots.banded(
            [[one.hamming(other) for other in known[:i]] for i, one in enumerate(known)]
        )
    except MaskError as differ:
        return [], str(differ)
    return [plots.plot_distances(path, found, list(masks))] if len(masks) > 1 else [], ""


def write_comparison_page(
    runs: Sequence[FinishedRun], out: Path, title: str, images: int = 256
) -> Path:
    """Write ``report.html`` of several runs: ledger, accuracy at t, energy, mask distances."""
    folder, named = out / "plots", dict(zip(_names(runs), runs, strict=True))
    energies = {name: measure_energy(run.model, run.batches("test", images), run.model.T)
                for name, run in named.items()}  # fmt: skip
    write_energy(out / "energy", energies)
    clock = milliseconds({name: ready(run) for name, run in named.items()})
    notices = [words for name, run in named.items()
               for words in notices_of(name, run, energies[name])]  # fmt: skip
    if len({run.splits.split_sha256 for run in runs}) > 1:
        notices.append("These runs have different splits: their accuracies do not compare.")
    reports = {name: run.report or {} for name, run in named.items()}
    results = {name: found for name, report in reports.items()
               if (found := outcome_of(report, named[name].path)) is not None}  # fmt: skip
    split = {name: named[name].ticket.provenance["split_sha256"] for name in results}
    # A dense run is what the others are compared with, else the first.
    pruned = {name: not is_dense(named[name].path, reports[name]) for name in results}
    first, *others = sorted(pruned, key=pruned.__getitem__) or [""]
    alike = [name for name in others if split[name] == split[first]]
    against = differences({(n, first): [(results[n], results[first])] for n in alike})
    trained = {name: fact(report, *FACTS["epochs trained"]) for name, report in reports.items()}
    if told := ", ".join(unequal(trained)):
        notices.append(f"{UNEQUAL}: {told}.")
    at_t = accuracy_at_t({name: [report] for name, report in reports.items()})
    curves, dense = by_search(runs)
    count = min((outcome.count for outcome in results.values()), default=None)
    data = ", ".join(dict.fromkeys(run.splits.name for run in runs))
    told = samples_told(data, None, {run.ticket.provenance.get("seed") for run in runs})
    pictures = [
        plots.plot_anytime(folder / "anytime.png", at_t, count),
        _plot_curves(folder / "curves.png", curves, dense, "all weights", count, told),
    ]
    if not all(energy.dead for energy in energies.values()):
        pictures.append(plots.plot_energy(folder / "energy-bars.png", energies))
    masks = {name: run.ticket.mask for name, run in named.items()}
    drawn, differ = _plot_masks(folder / "masks.png", masks)
    (accuracy, known), *rest = FACTS.items()
    rest = [(name, how) for name, how in rest
            if any(number_at(one, how[0]) is not None for one in reports.values())]  # fmt: skip
    header = ["run", accuracy, INTERVAL, *(name for name, _ in rest), *MEASURED]
    rows = [[name, fact(report, *known), interval_of(report),
             *(fact(report, *how) for _, how in rest),
             f"{energies[name].weight_bytes:.0f}",
             microjoules(energies[name].headline_pj(HOROWITZ)), f"{clock[name]:.3f}"]
            for name, report in reports.items()]  # fmt: skip
    table = _with_differences((header, rows), against, first)
    return write_page(
        out / "report.html", "runs.html", [*filter(None, pictures), *drawn],
        title=title, notices=notices, datasets=[run.splits.name for run in runs], differ=differ,
        ledger=table, energy=energy_tables(energies), against=against, differences=DIFFERENCES,
        made=made_by({run.path: run.report or {} for run in runs}), count=count,
        conclusion=_conclusion({n: accuracy_interval([x.accuracy], x.count)
                                for n, x in results.items()}, against),
    )  # fmt: skip


def timed(rows: Sequence[Row]) -> list[Row]:
    """Rows whose first report has its ``ms_per_input``, if its network and data can be opened."""
    opened = {}
    for row in rows:  # of each its data set is let go
        with contextlib.suppress(SpikeformerError):
            opened[row.variant] = ready(open_ticket(row.reports[0]["folder"], model_from_ticket))
    clock = milliseconds(opened)
    return [
        Row(one.variant, [{**one.reports[0], "ms_per_input": ms}, *one.reports[1:]])
        if (ms := clock.get(one.variant))
        else one
        for one in rows
    ]


def side_by_side(
    reports: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]
) -> tuple[Table, Table]:
    """The ledgers of runs by name, and the test accuracy of those on the first's split against it.

    What runs are compared with is the first of them.
    """
    known = {name: outcome_of(report, folders[name]) for name, report in reports.items()}
    if not any(known.values()):
        raise DataError("no report has a test accuracy: finish one of the runs")
    first, *others = [(name, one) for name, one in known.items() if one is not None]
    split = {name: report.get("split_sha256") for name, report in reports.items()}
    alike = [pair for pair in others if split[pair[0]] == split[first[0]]]
    rows = [[name, *(fact(report, *how) for report in reports.values())]
            for name, how in FACTS.items()]  # fmt: skip
    rows.insert(1, [INTERVAL, *map(interval_of, reports.values())])
    against = {(name, first[0]): [(one, first[1])] for name, one in alike}
    return (["quantity", *reports], rows), differences(against)


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Each run's folder; its path if two have one name; counted if one was given twice."""
    names = [run.name for run in runs]
    names = [n if names.count(n) == 1 else str(r.path) for n, r in zip(names, runs, strict=True)]
    before = [names[:at].count(name) for at, name in enumerate(names)]
    return [f"{n} ({b + 1})" if b else n for n, b in zip(names, before, strict=True)]
