"""``report.html`` of a run, and of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from spikeformer_lt.errors import MaskError
from spikeformer_lt.reports.energy import Energy, measure_energy
from spikeformer_lt.reports.energy_costs import COSTS
from spikeformer_lt.reports.energy_plots import plot_energy
from spikeformer_lt.reports.energy_tables import (
    ESTIMATE,
    headline_table,
    layer_table,
    memory_table,
    sensitivity_table,
    write_energy,
)
from spikeformer_lt.reports.finished import FinishedRun
from spikeformer_lt.reports.gallery import draw_run
from spikeformer_lt.reports.page import Page
from spikeformer_lt.reports.plots import plot_curves
from spikeformer_lt.reports.result_pictures import plot_anytime
from spikeformer_lt.reports.weight_pictures import plot_mask_distances

FACTS = {
    "test accuracy (%)": ("test_accuracy", 1.0, "{:.2f}"),
    "test inputs": ("test_count", 1.0, "{:.0f}"),
    "validation accuracy (%)": ("val_accuracy", 1.0, "{:.2f}"),
    "patches removed (%)": ("sparsity.patch", 100.0, "{:.1f}"),
    "ConvPEP weights removed (%)": ("sparsity.conv_pep_weight", 100.0, "{:.1f}"),
    "all weights removed (%)": ("sparsity.total_weight", 100.0, "{:.1f}"),
    "bits per ConvPEP weight": ("conv_pep_bits_per_weight", 1.0, "{:.2f}"),
    "parameters": ("params", 1.0, "{:,.0f}"),
    "MACs per input": ("macs", 1.0, "{:,.0f}"),
    "SOPs per input": ("sops", 1.0, "{:,.0f}"),
}


def fact(report: Mapping[str, Any] | None, path: str, scale: float, form: str) -> str:
    """One figure of a report, or a dash where it was not measured."""
    value: Any = report or {}
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return "-" if value is None else form.format(scale * float(value))


def write_run_page(run: FinishedRun, out: Path, images: int = 256) -> Path:
    """Draw a run's pictures into ``plots/`` below `out` and write its ``report.html``.

    Returns:
        The page.
    """
    pictures, energy = draw_run(run, out / "plots", images)
    write_energy(out / "energy", {run.name: energy})
    report = run.report or {}
    page = Page(f"{run.name}: {report.get('run_id', run.path.name)}")
    _notices(page, run, energy)
    _test_bed(page, [run])
    page.section("Ledger")
    rows = [[name, fact(run.report, *how)] for name, how in FACTS.items()]
    known = run.ticket.provenance
    rows += [["data set", known["dataset"]], ["split", str(known["split_sha256"])[:12]]]
    rows += [["seed", known.get("seed", "-")], ["search", known.get("search", "-")]]
    page.table(["quantity", "value"], rows)
    for section, group in groupby(pictures, key=lambda picture: picture.section):
        page.section(section)
        for picture in group:
            page.image(picture.path, picture.caption)
    _energy_tables(page, {run.name: energy})
    page.section("Layers")
    page.text("Operations of one sample over all time steps; the last row is their sum.")
    page.table(*layer_table(energy))
    page.write(out / "report.html")
    return out / "report.html"


def write_comparison_page(
    runs: Sequence[FinishedRun], out: Path, title: str, images: int = 256
) -> Path:
    """Write the ``report.html`` of several runs: ledger, accuracy at t, energy, mask distances.

    Returns:
        The page.
    """
    plots = out / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    names = _names(runs)
    energies = {
        name: measure_energy(run.model, run.batches("test", images), run.model.T)
        for name, run in zip(names, runs, strict=True)
    }
    write_energy(out / "energy", energies)
    page = Page(title)
    for run, energy in zip(runs, energies.values(), strict=True):
        _notices(page, run, energy)
    _test_bed(page, runs)
    if len({run.ticket.provenance["split_sha256"] for run in runs}) > 1:
        page.text("These runs have different splits: their accuracies do not compare.", True)
    page.section("Ledger")
    rows = [[name, *(fact(run.report, *how) for run in runs)] for name, how in FACTS.items()]
    page.table(["quantity", *names], rows)
    found = {
        name: run.report["accuracy_at_t"]
        for name, run in zip(names, runs, strict=True)
        if run.report and "accuracy_at_t" in run.report
    }
    if found:
        page.section("Accuracy")
        plot_anytime(plots / "anytime.png", found)
        page.image(plots / "anytime.png", "Test accuracy from the first t steps.")
    curves, dense = by_search(runs)
    if curves:
        page.section("Accuracy against sparsity")
        what = "weights removed (fraction of all convolution and linear weights)"
        plot_curves(plots / "curves.png", curves, x_label=what, y_label="test accuracy (%)",
                    reference=fmean(dense) if dense else None)  # fmt: skip
        said = "Test accuracy against what is removed, by search; mean and standard deviation."
        page.image(plots / "curves.png", said)
    page.section("Energy")
    if not all(energy.dead for energy in energies.values()):
        plot_energy(plots / "energy-bars.png", energies)
        page.image(plots / "energy-bars.png", "Energy by group of layers, counted and by formula.")
    _energy_tables(page, energies)
    try:
        plot_mask_distances(plots / "masks.png", [run.ticket.mask for run in runs], names)
    except MaskError as differ:
        page.section("Masks")
        page.text(f"No distances: {differ}")
    else:
        page.section("Masks")
        page.image(plots / "masks.png", "Fraction of mask entries in which two runs differ.")
    page.write(out / "report.html")
    return out / "report.html"


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Each run's folder; its path where two have one name; counted where one was given twice."""
    names = [run.name for run in runs]
    names = [n if names.count(n) == 1 else str(r.path) for n, r in zip(names, runs, strict=True)]
    before = [names[:at].count(name) for at, name in enumerate(names)]
    return [f"{n} ({b + 1})" if b else n for n, b in zip(names, before, strict=True)]


def by_search(
    runs: Sequence[FinishedRun],
) -> tuple[dict[str, list[tuple[float, list[float]]]], list[float]]:
    """Curves of the runs with a report: search -> (weights removed, accuracies), by sparsity.

    Returns:
        The curves, and the accuracies of the runs that removed neither weight nor patch.
    """
    found: dict[str, dict[float, list[float]]] = {}
    dense: list[float] = []
    for run in runs:
        report = run.report or {}
        removed = report.get("sparsity", {}).get("total_weight")
        if removed is None or "test_accuracy" not in report:
            continue
        if not any(report["sparsity"].values()):
            dense.append(report["test_accuracy"])
        else:
            name = str(run.ticket.provenance.get("search", run.name))
            points = found.setdefault(name, {})
            points.setdefault(round(removed, 4), []).append(report["test_accuracy"])
    return {name: sorted(points.items()) for name, points in found.items()}, dense


def _notices(page: Page, run: FinishedRun, energy: Energy) -> None:
    if run.report is None:
        page.text(f"{run.name}: a ticket without report.json; accuracies are not known.", True)
    if run.untrained:
        page.text(
            f"{run.name}: a ticket with its start weights; spikes, patches and energy are those of "
            "a network that is not trained.", True,
        )  # fmt: skip
    if not run.own_split:
        page.text(f"{run.name}: measured on another split than its own.", True)
    if energy.dead:
        page.text(f"{run.name}: energy {energy.refusal()}.", True)


def _test_bed(page: Page, runs: Sequence[FinishedRun]) -> None:
    for name in sorted({run.splits.name for run in runs} & {"digits", "moving_digits"}):
        said = "is a small embedded test bed; its figures stand for no CIFAR or Gesture result."
        page.text(f"{name} {said}")


def _energy_tables(page: Page, energies: Mapping[str, Energy]) -> None:
    page.text(ESTIMATE)
    page.table(*headline_table(energies))
    for costs in COSTS.values():
        page.text(f"{costs.name}: {costs.source}.")
    page.text("Sensitivity: the counted energy with each constant halved and doubled.")
    page.table(*sensitivity_table(energies))
    page.text("Memory and biases, apart: every weight and input read once a sample.")
    page.table(*memory_table(energies))
