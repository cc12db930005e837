"""The report of a run: ``report.json`` when it ends, and ``report.html`` from its files.

`write_report` reads the test set once and counts what is left; `write_run_page` draws a finished
run's pictures from its files and a few test inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.disk import safe_name
from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.reports.energy import (
    COSTS,
    ESTIMATE,
    Energy,
    headline_table,
    layer_table,
    memory_table,
    sensitivity_table,
    write_energy,
)
from spikeformer_lt.reports.finished import FinishedRun
from spikeformer_lt.reports.ledger import (
    build_ledger,
    count_operations,
    effective_weight,
    stem_layers,
)
from spikeformer_lt.reports.page import Page
from spikeformer_lt.reports.plots import (
    banded,
    plot_anytime,
    plot_confusion,
    plot_distances,
    plot_early_exit,
    plot_energy,
    plot_epoch_rates,
    plot_keep_frequency,
    plot_kept_clip,
    plot_kept_images,
    plot_kernels,
    plot_layer_epochs,
    plot_layer_rates,
    plot_membrane,
    plot_raster,
    plot_training,
    show_frames,
    show_images,
)
from spikeformer_lt.reports.probe import Probe, early_exit, keep_frequency, recording
from spikeformer_lt.runtime import describe_environment
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.evaluate import Metrics, evaluate
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.predictions import PREDICTIONS
from spikeformer_lt.training.ranks import digest

log = logging.getLogger(__name__)
LEDGER_IMAGES = 256
"""Test images that firing rates, operations and the purity audit are measured on."""
SHOWN_IMAGES = 8
FACTS = {
    "test accuracy (%)": ("test_accuracy", 1.0, "{:.2f}"),
    "test inputs": ("test_count", 1.0, "{:.0f}"),
    "validation accuracy (%)": ("val_accuracy", 1.0, "{:.2f}"),
    "patches removed (%)": ("sparsity.patch", 100.0, "{:.1f}"),
    "ConvPEP weights removed (%)": ("sparsity.conv_pep_weight", 100.0, "{:.1f}"),
    "prunable weights removed (%)": ("ticket.prunable_sparsity", 100.0, "{:.1f}"),
    "all weights removed (%)": ("sparsity.total_weight", 100.0, "{:.1f}"),
    "bits per ConvPEP weight": ("conv_pep_bits_per_weight", 1.0, "{:.2f}"),
    "parameters": ("params", 1.0, "{:,.0f}"),
    "MACs per input, all weights": ("macs", 1.0, "{:,.0f}"),
    "MACs per input, of real values": ("macs_nonspiking", 1.0, "{:,.0f}"),
    "SOPs per input": ("sops", 1.0, "{:,.0f}"),
}
"""Row of the ledger's table -> key of report.json, factor and format."""


def number_at(report: Mapping[str, Any] | None, path: str) -> float | None:
    """Number of a report at a dotted path; None if it was not measured."""
    value: Any = report
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def fact(report: Mapping[str, Any] | None, path: str, scale: float, form: str) -> str:
    """One number of a report as text, or a dash if it was not measured."""
    value = number_at(report, path)
    return "-" if value is None else form.format(scale * value)


def describe(
    model: nn.Module, data: Splits, split: str, accelerator: Any, batch_size: int = 256
) -> tuple[Metrics, dict[str, Any]]:
    """Evaluate one split and build the ledger on its first images."""
    dataset = getattr(data, split)
    metrics = evaluate(model, dataset, data, accelerator, batch_size=batch_size)
    loader = eval_loader(dataset, min(64, len(dataset)))
    some = islice(loader, max(1, LEDGER_IMAGES // 64))
    return metrics, build_ledger(model, [x.to(accelerator.device) for x, _, _ in some])


def save_predictions(
    path: str | Path, metrics: Metrics, model: nn.Module, data: Splits, split: str, run_id: str
) -> None:
    """Save the predictions of an evaluation with the data, split, run and weights they are of.

    Raises:
        CheckpointError: another file than predictions has this name, or the disk refuses.
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

    The report holds accuracies, sparsities apart, bits per ConvPEP weight, firing rates, MACs,
    SOPs, the split's hash, versions and every choice made. If the ticket holds start weights, the
    network trained from it is saved as ``trained``.
    """
    trainer, run = experiment.trainer, experiment.run
    metrics, ledger = describe(model, experiment.data, "test", trainer.accelerator)
    phases = ticket.provenance.get("phases", []) if ticket else []
    report: dict[str, Any] = {
        "run_id": run.run_id,
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
            trained = Ticket.of(model, ticket.mask, {**ticket.provenance, "trained": True})
            trained.save(run.path / "trained", overwrite=True)
        save_predictions(
            run.path / PREDICTIONS, metrics, model, experiment.data, "test", run.run_id
        )
        run.write_report(report)
        plot_training(run.path / "summary.csv", run.path / "plots")
        log.info("test %.2f %% of %d images", metrics.accuracy, metrics.count)
        shares = {k: round(v, 4) for k, v in report["sparsity"].items() if v is not None}
        log.info("sparsity (removed of all patches, ConvPEP weights, all weights) %s", shares)
        if report["dead_layers"]:
            log.warning("no energy headline: %s", report["energy_note"])
        log.info("report: %s", run.path / "report.json")
    return report


def _about(ticket: Ticket) -> dict[str, Any]:
    """Name, sparsities and cost of a ticket's search."""
    known = ticket.provenance
    names = ("search", "trained", "prunable_sparsity", "total_sparsity", "search_seconds")
    found = {name: known.get(name) for name in names}
    if "ledger" in known:
        found["ledger"] = known["ledger"]
    steps = known.get("early_time", {}).get("T_early")
    return found if steps is None else {**found, "T_search": steps}


@dataclass(frozen=True)
class Picture:
    """A drawn file, the section it belongs to, and what it shows."""

    section: str
    path: Path
    caption: str


def draw_run(run: FinishedRun, folder: Path, images: int = 256) -> tuple[list[Picture], Energy]:
    """Draw everything that can be drawn of a run, from its files and one pass over test inputs.

    Args:
        run: opened by `open_run`.
        folder: for the pictures and the CSV beside each; made if missing.
        images: test inputs that rates, keep frequencies and energy are measured on.

    Returns:
        The pictures in the order of a report, and the energy ledger.
    """
    pairs = list(run.labelled("test", images))
    labels = torch.cat([y for _, y in pairs])
    with recording(run.model) as probe:
        counted = count_operations(run.model, [x for x, _ in pairs], run.model.T)
    energy = Energy.of(counted)
    drawn = [
        *_training(run, folder),
        *_results(run, folder, torch.cat(counted.logits), labels),
        *_patches(run, folder, probe, labels.tolist(), counted.kept_tokens),
        *_spikes(run, folder, probe),
        *_weights(run, folder),
    ]
    if not energy.dead:
        plot_energy(folder / "energy-bars.png", {run.name: energy})
        said = "Energy by group of layers, an estimate: counted, and by the papers' formula."
        drawn.append(Picture("Energy", folder / "energy-bars.png", said))
    return drawn, energy


def _training(run: FinishedRun, folder: Path) -> Iterator[Picture]:
    summary, firing = run.path / "summary.csv", run.path / "firing.csv"
    if not summary.exists():
        return
    plot_training(summary, folder)
    yield Picture("Training", folder / "training.png", "Accuracy and loss over the epochs.")
    if plot_epoch_rates(folder / "epoch-rates.png", summary):
        said = "Mean firing rate and removed fractions over the epochs."
        yield Picture("Training", folder / "epoch-rates.png", said)
    path = folder / "layer-epoch-rates.png"
    if firing.exists() and plot_layer_epochs(path, firing):
        yield Picture("Training", path, "Firing rate of every spiking layer in every epoch.")


def _results(run: FinishedRun, folder: Path, logits: Tensor, labels: Tensor) -> Iterator[Picture]:
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
    run: FinishedRun, folder: Path, probe: Probe, labels: list[int], every: list[Tensor]
) -> Iterator[Picture]:
    if probe.grid is None:
        return
    x = probe.inputs[:SHOWN_IMAGES]
    names = [f"class {label}" for label in labels[: len(x)]]
    static = x.ndim == 4
    pixels = show_images(x, run.splits.mean, run.splits.std) if static else show_frames(x.sum(1))
    plot_kept_images(folder / "kept-patches.png", pixels, probe.kept, probe.grid, names)
    said = "Test inputs, each above its kept patches; removed patches are grey."
    yield Picture("Patches", folder / "kept-patches.png", said)
    if not static:
        own = None if probe.kept is None else probe.kept[0]
        plot_kept_clip(folder / "kept-clip.png", x[0], own, probe.grid)
        said = "One clip: the same patches are kept at every step."
        yield Picture("Patches", folder / "kept-clip.png", said)
        yield Picture("Patches", folder / "kept-clip.gif", "The same clip, moving.")
    if every:
        count = sum(map(len, every))
        path = folder / "keep-frequency.png"
        plot_keep_frequency(path, keep_frequency(every, probe.grid), count)
        yield Picture("Patches", path, f"How often each patch is kept, over {count} test inputs.")


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


def _weights(run: FinishedRun, folder: Path) -> Iterator[Picture]:
    stem = stem_layers(run.model)
    for name, module in run.model.named_modules():
        if isinstance(module, nn.Conv2d) and (not stem or module in stem):
            path = folder / f"kernels-{safe_name(name)}.png"
            plot_kernels(path, effective_weight(module), name)
            title = "ConvPEP weights" if stem else "Kernels"
            yield Picture(title, path, f"Signs of the kernels of {name}.")
    distances = run.ticket.provenance.get("mask_distances")
    if distances:
        path = folder / "mask-distances.png"
        epochs = [str(epoch + 1) for epoch in range(len(distances))]
        plot_distances(path, banded(distances), epochs, "epoch of the search")
        said = "Early-Bird: distance of each epoch's mask to those before it in the window; grey"
        yield Picture("Masks", path, f"{said} pairs were not compared.")


def write_run_page(run: FinishedRun, out: Path, images: int = 256) -> Path:
    """Draw a run's pictures into ``plots/`` below `out` and write its ``report.html``.

    Returns:
        The page.
    """
    pictures, energy = draw_run(run, out / "plots", images)
    write_energy(out / "energy", {run.name: energy})
    known = run.ticket.provenance
    page = Page(f"{run.name}: {(run.report or {}).get('run_id', run.path.name)}")
    add_notices(page, {run.name: (run, energy)})
    page.section("Ledger")
    rows = [[name, fact(run.report, *how)] for name, how in FACTS.items()]
    rows += [["data set", known["dataset"]], ["split", str(known["split_sha256"])[:12]]]
    rows += [["seed", known.get("seed", "-")], ["search", known.get("search", "-")]]
    page.table(["quantity", "value"], rows)
    for section, group in groupby(pictures, key=lambda picture: picture.section):
        page.section(section)
        for picture in group:
            page.image(picture.path, picture.caption)
    add_energy_tables(page, {run.name: energy})
    page.section("Layers")
    page.text("Operations of one sample over all time steps; the last row is their sum.")
    page.table(*layer_table(energy))
    page.write(out / "report.html")
    return out / "report.html"


def add_notices(page: Page, runs: Mapping[str, tuple[FinishedRun, Energy]]) -> None:
    """Add what a reader must know of runs before their numbers."""
    for name, (run, energy) in runs.items():
        notices = {
            "a ticket without report.json; accuracies are not known": run.report is None,
            "a ticket with its start weights; spikes, patches and energy are those of a network "
            "that is not trained": run.untrained,
            "measured on another split than its own": not run.own_split,
            f"energy {energy.refusal()}": bool(energy.dead),
        }
        for words, holds in notices.items():
            if holds:
                page.text(f"{name}: {words}.", True)
    add_test_beds(page, {run.splits.name for run, _ in runs.values()})


def add_test_beds(page: Page, names: Iterable[str]) -> None:
    """Say of embedded data sets that their numbers are no results of published ones."""
    for name in sorted({"digits", "moving_digits"} & set(names)):
        said = "is a small embedded test bed; its figures stand for no CIFAR or Gesture result."
        page.text(f"{name} {said}")


def add_energy_tables(page: Page, energies: Mapping[str, Energy]) -> None:
    """Add the energies, their sensitivity to the constants, and memory apart."""
    page.text(ESTIMATE)
    page.table(*headline_table(energies))
    for costs in COSTS.values():
        page.text(f"{costs.name}: {costs.source}.")
    page.text("Sensitivity: the counted energy with each constant halved and doubled.")
    page.table(*sensitivity_table(energies))
    page.text("Memory and biases, apart: every weight and input read once a sample.")
    page.table(*memory_table(energies))
