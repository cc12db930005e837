"""All pictures of a finished run, drawn from its files and a few of its test inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from spikeformer_lt.paths import safe_name
from spikeformer_lt.reports.energy import Energy, effective_weight, measure_energy
from spikeformer_lt.reports.energy_plots import plot_energy
from spikeformer_lt.reports.finished import FinishedRun
from spikeformer_lt.reports.patch_pictures import (
    plot_keep_frequency,
    plot_kept_clip,
    plot_kept_images,
    show_frames,
    show_images,
)
from spikeformer_lt.reports.plots import plot_training
from spikeformer_lt.reports.probe import Probe, keep_frequency, run_probe
from spikeformer_lt.reports.result_pictures import (
    early_exit,
    plot_anytime,
    plot_confusion,
    plot_early_exit,
)
from spikeformer_lt.reports.spike_pictures import (
    plot_epoch_rates,
    plot_layer_epochs,
    plot_layer_rates,
    plot_membrane,
    plot_raster,
)
from spikeformer_lt.reports.weight_pictures import banded, plot_distances, plot_kernels

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
