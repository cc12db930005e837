"""All pictures of a finished run, drawn from its files and a few of its test inputs.

``report.html`` of a run, and of several runs side by side.

The report of a run: test once, count what is left, write it down.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from spikeformer_lt.disk import safe_name
from spikeformer_lt.errors import MaskError
from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.reports.energy import (
    COSTS,
    ESTIMATE,
    Energy,
    effective_weight,
    headline_table,
    layer_table,
    measure_energy,
    memory_table,
    sensitivity_table,
    write_energy,
)
from spikeformer_lt.reports.finished import FinishedRun
from spikeformer_lt.reports.ledger import audit, build_ledger
from spikeformer_lt.reports.page import Page
from spikeformer_lt.reports.pictures import (
    banded,
    early_exit,
    plot_anytime,
    plot_confusion,
    plot_distances,
    plot_early_exit,
    plot_epoch_rates,
    plot_keep_frequency,
    plot_kept_clip,
    plot_kept_images,
    plot_kernels,
    plot_layer_epochs,
    plot_layer_rates,
    plot_mask_distances,
    plot_membrane,
    plot_raster,
    show_frames,
    show_images,
)
from spikeformer_lt.reports.plots import plot_curves, plot_energy, plot_training
from spikeformer_lt.reports.probe import Probe, keep_frequency, run_probe
from spikeformer_lt.runtime import describe_environment
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.evaluate import PREDICTIONS, Metrics, evaluate
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.ranks import digest

SHOWN_IMAGES = 8


@dataclass(frozen=True)
class Picture:
    """A drawn file, the section it belongs to, and what it shows."""

    section: str
    path: Path
    caption: str


def draw_run(run: FinishedRun, folder: Path, images: int = 256) -> tuple[list[Picture], Energy]:
    """Draw everything that can be drawn of a run.

    Args:
        run: opened by `open_run`.
        folder: for the pictures and the CSV beside each; made if missing.
        images: test inputs that rates, keep frequencies and energy are measured on.

    Returns:
        The pictures in the order of a report, and the energy ledger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(run.labelled("test", images))
    batches = [x for x, _ in pairs]
    labels = torch.cat([y for _, y in pairs])
    energy = measure_energy(run.model, batches, run.model.T)
    probe = run_probe(run.model, batches[0])
    drawn = [*_training(run, folder), *_results(run, folder, batches, labels)]
    drawn += _patches(run, folder, probe, pairs[0][1].tolist(), batches)
    drawn += _spikes(run, folder, probe)
    drawn += _weights(run, folder)
    if not energy.dead:
        plot_energy(folder / "energy-bars.png", {run.name: energy})
        said = "Energy by group of layers, an estimate: counted, and by the papers' formula."
        drawn.append(Picture("Energy", folder / "energy-bars.png", said))
    return drawn, energy


def _weights(run: FinishedRun, folder: Path) -> Iterator[Picture]:
    stem = getattr(run.model, "conv_pep", None)
    title = "Kernels" if stem is None else "ConvPEP weights"
    for name, module in run.model.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("" if stem is None else "conv_pep."):
            path = folder / f"kernels-{safe_name(name)}.png"
            plot_kernels(path, effective_weight(module), name)
            yield Picture(title, path, f"Signs of the kernels of {name}.")
    distances = run.ticket.provenance.get("mask_distances")
    if distances:
        path = folder / "mask-distances.png"
        epochs = [str(epoch + 1) for epoch in range(len(distances))]
        plot_distances(path, banded(distances), epochs, "epoch of the search")
        said = "Early-Bird: each epoch's mask against those before it in the window; grey was not"
        yield Picture("Masks", path, f"{said} compared.")


def _training(run: FinishedRun, folder: Path) -> Iterator[Picture]:
    summary = run.path / "summary.csv"
    if not summary.exists():
        return
    plot_training(summary, folder)
    yield Picture("Training", folder / "training.png", "Accuracy and loss over the epochs.")
    if plot_epoch_rates(folder / "epoch-rates.png", summary):
        said = "Mean firing rate, and what is removed, over the epochs."
        yield Picture("Training", folder / "epoch-rates.png", said)
    firing, path = run.path / "firing.csv", folder / "layer-epoch-rates.png"
    if firing.exists() and plot_layer_epochs(path, firing):
        yield Picture("Training", path, "Firing rate of every spiking layer in every epoch.")


@torch.no_grad()
def _results(
    run: FinishedRun, folder: Path, batches: list[torch.Tensor], labels: torch.Tensor
) -> Iterator[Picture]:
    logits = torch.cat([run.model(x) for x in batches])
    report = run.report or {}
    steps = torch.arange(1, logits.shape[1] + 1)[None, :, None]
    here = ((logits.cumsum(1) / steps).argmax(2) == labels[:, None]).double().mean(0) * 100
    at_t = report.get("accuracy_at_t") or here.tolist()
    on = "the test set" if report.get("accuracy_at_t") else f"{len(labels)} test inputs"
    plot_anytime(folder / "anytime.png", {run.name: at_t})
    said = f"Accuracy on {on} from the mean logits of the first t steps."
    yield Picture("Accuracy", folder / "anytime.png", said)
    plot_early_exit(folder / "early-exit.png", early_exit(logits, labels))
    said = f"Early exit on {len(labels)} test inputs: stop once the best class is this probable."
    yield Picture("Accuracy", folder / "early-exit.png", said)
    if "confusion" in report:
        plot_confusion(folder / "confusion.png", report["confusion"])
        yield Picture("Accuracy", folder / "confusion.png", "Confusion on the test set.")


def _patches(
    run: FinishedRun, folder: Path, probe: Probe, labels: list[int], batches: list[torch.Tensor]
) -> Iterator[Picture]:
    if probe.grid is None:
        return
    few = min(SHOWN_IMAGES, len(probe.inputs))
    kept = None if probe.kept is None else probe.kept[:few]
    names = [f"class {label}" for label in labels[:few]]
    x = probe.inputs[:few]
    static = x.ndim == 4
    pixels = show_images(x, run.splits.mean, run.splits.std) if static else show_frames(x.sum(1))
    plot_kept_images(folder / "kept-patches.png", pixels, kept, probe.grid, names)
    said = "Test inputs, and below what is kept of them; removed patches are grey."
    yield Picture("Patches", folder / "kept-patches.png", said)
    if not static:
        own = None if kept is None else kept[0]
        plot_kept_clip(folder / "kept-clip.png", x[0], own, probe.grid)
        said = "One clip: the same patches are kept at every step."
        yield Picture("Patches", folder / "kept-clip.png", said)
        yield Picture("Patches", folder / "kept-clip.gif", "The same clip, moving.")
    often = keep_frequency(run.model, batches)
    if often is not None:
        count = sum(map(len, batches))
        plot_keep_frequency(folder / "keep-frequency.png", often, count)
        said = f"How often each patch is kept, over {count} test inputs."
        yield Picture("Patches", folder / "keep-frequency.png", said)


def _spikes(run: FinishedRun, folder: Path, probe: Probe) -> Iterator[Picture]:
    if probe.spikes:
        plot_raster(folder / "raster.png", probe.spikes)
        said = "Spikes of the first test input, in layers from first to last."
        yield Picture("Spikes", folder / "raster.png", said)
        rates = (run.report or {}).get("firing_rate")
        on = "the report's inputs" if rates else "one test input"
        rates = rates or {n: float(s.float().mean()) for n, s in probe.spikes.items()}
        plot_layer_rates(folder / "layer-rates.png", rates)
        yield Picture("Spikes", folder / "layer-rates.png", f"Firing rate by layer, on {on}.")
    for name, (trace, spikes, threshold) in probe.membrane.items():
        neurons = probe.neurons[name]
        plot_membrane(folder / "membrane.png", trace, spikes, threshold, name, neurons)
        yield Picture("Spikes", folder / "membrane.png", f"Membranes in {name}, first test input.")


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


log = logging.getLogger(__name__)
LEDGER_IMAGES = 256
"""Test images that firing rates, SOPs and the purity audit are measured on."""


def describe(
    model: nn.Module, data: Splits, split: str, accelerator: Any, batch_size: int = 256
) -> tuple[Metrics, dict[str, Any]]:
    """Evaluate one split and build the ledger on its first images."""
    dataset = getattr(data, split)
    metrics = evaluate(model, dataset, data, accelerator, batch_size=batch_size)
    loader = eval_loader(dataset, min(64, len(dataset)))
    some = islice(loader, max(1, LEDGER_IMAGES // 64))
    batches = [images.to(accelerator.device) for images, _, _ in some]
    model.eval()
    return metrics, {**build_ledger(model, batches), "purity": audit(model, batches[0])}


def save_predictions(
    path: str | Path, metrics: Metrics, model: nn.Module, data: Splits, split: str, run_id: str
) -> None:
    """Save the predictions of an evaluation with the data, split, run and weights they are of.

    Raises:
        CheckpointError: the file in the way holds no predictions, or the disk refuses.
    """
    classes = getattr(getattr(data, split), "classes", None)
    facts = {
        "dataset": data.name,
        "split": split,
        "split_sha256": data.split_sha256,
        "run_id": run_id,
        "weights_sha256": digest(model.state_dict()),
        "classes": list(classes) if classes else None,
    }
    metrics.predictions.save(path, facts)


def write_report(experiment: Experiment, model: nn.Module, ticket: Ticket | None) -> dict[str, Any]:
    """Evaluate the finished network on the test set, once; write predictions and ``report.json``.

    The report holds what design and papers ask for: accuracies, sparsities apart, bits per
    ConvPEP weight, firing rates, MACs, SOPs, the split's hash, versions and every choice made.
    Where the ticket holds start weights, the network trained from it goes into ``trained``.
    """
    trainer = experiment.trainer
    metrics, ledger = describe(model, experiment.data, "test", trainer.accelerator)
    phases = ticket.provenance.get("phases", []) if ticket else []
    report: dict[str, Any] = {
        "run_id": experiment.run.run_id,
        "seed": experiment.cfg.train.seed,
        "dataset": experiment.data.name,
        "split_sha256": experiment.data.split_sha256,
        "test_accuracy": metrics.accuracy,
        "test_count": metrics.count,
        "test_loss": metrics.loss,
        "top5": metrics.top5,
        "accuracy_at_t": list(metrics.accuracy_at_t),
        "confusion": metrics.confusion.tolist(),
        "val_accuracy": phases[-1]["val_accuracy"] if phases else None,
        "best_on_test": phases[-1].get("best_on_test") if phases else None,
        "seconds": sum(phase["seconds"] for phase in phases),
        "choices": ticket.provenance.get("config", {}) if ticket else {},
        **ledger,
        "ticket": _about(ticket) if ticket else {},
        "mask_sha256": ticket.mask.sha256 if ticket else None,
        "versions": describe_environment()["versions"],
    }
    if trainer.main:
        if ticket is not None and ticket.provenance.get("trained") is False:
            known = {**ticket.provenance, "trained": True}
            trained = Ticket.of(model, ticket.mask, known)
            trained.save(experiment.run.path / "trained", overwrite=True)
        run_id, file = experiment.run.run_id, experiment.run.path / PREDICTIONS
        save_predictions(file, metrics, model, experiment.data, "test", run_id)
        experiment.run.write_report(report)
        plot_training(experiment.run.path / "summary.csv", experiment.run.path / "plots")
        log.info("test %.2f %% of %d images", metrics.accuracy, metrics.count)
        shares = {k: round(v, 4) for k, v in report["sparsity"].items() if v is not None}
        log.info("sparsity %s", shares)
        if report["dead_layers"]:
            log.warning("no energy headline: %s", report["energy_note"])
        log.info("report: %s", experiment.run.path / "report.json")
    return report


def _about(ticket: Ticket) -> dict[str, Any]:
    """What a ticket says of its search: names, sparsities, cost."""
    known = ticket.provenance
    names = ("search", "trained", "prunable_sparsity", "total_sparsity", "search_seconds")
    found = {name: known.get(name) for name in names}
    if "ledger" in known:
        found["ledger"] = known["ledger"]
    steps = known.get("early_time", {}).get("T_early")
    return found if steps is None else {**found, "T_search": steps}
