"""Spikes: rasters, firing rates by layer and over epochs, membrane traces."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spikeformer_lt.reports.patch_pictures import bare_figure
from spikeformer_lt.reports.plots import COLOURS, MARKERS, figure
from spikeformer_lt.reports.tables import write_csv

NEURONS = 200
"""Neurons of a layer that a raster shows, evenly chosen."""


def plot_raster(path: Path, spikes: Mapping[str, Tensor], layers: int = 6) -> None:
    """Spikes over time of some layers, one panel each: layer -> ``[T, neurons]``."""
    names = list(spikes)
    if len(names) > layers:  # first, last, and evenly between
        names = [names[round(i * (len(names) - 1) / (layers - 1))] for i in range(layers)]
    columns = min(3, len(names))
    height = -(-len(names) // columns)
    made, axes = bare_figure(height, columns, 3.0 * columns, 2.3 * height)
    rows: list[list[object]] = []
    for at, where in enumerate(axes.flat):
        if at >= len(names):
            where.set_axis_off()
            continue
        name, all_spikes = names[at], spikes[names[at]]
        T, neurons = all_spikes.shape
        chosen = torch.linspace(0, neurons - 1, min(NEURONS, neurons)).round().long()
        fired = all_spikes[:, chosen].nonzero()
        where.scatter(fired[:, 0] + 1, chosen[fired[:, 1]], s=6, marker="|", color=COLOURS[0],
                      linewidths=1.2)  # fmt: skip
        rate = float(all_spikes.float().mean())
        where.set_title(f"{name}\nrate {rate:.3f}", fontsize=7)
        where.set(xlim=(0.5, T + 0.5), ylim=(-0.5, neurons - 0.5))
        where.set_xticks(range(1, T + 1, max(1, T // 8)))
        where.tick_params(labelsize=7)
        where.set_xlabel("time step", fontsize=7)
        where.set_ylabel("neuron", fontsize=7)
        rows += [[name, int(t) + 1, int(chosen[n])] for t, n in fired]
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["layer", "t", "neuron"], rows)


def plot_layer_rates(path: Path, rates: Mapping[str, float]) -> None:
    """Firing rate of every layer as bars; dead layers are marked by name."""
    names = list(rates)
    made, axes = figure(6.5, 0.24 * len(names) + 1.2)
    values = [rates[name] for name in names]
    axes.barh(range(len(names)), values, color=COLOURS[0])
    for i, value in enumerate(values):
        text = "dead" if value == 0 else f"{value:.3f}"
        axes.text(value, i, f" {text}", va="center", fontsize=7,
                  color=COLOURS[1] if value == 0 else "black")  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("firing rate (spikes per neuron and step)")
    axes.grid(axis="y", visible=False)
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["layer", "firing_rate"], list(rates.items()))


def plot_epoch_rates(path: Path, summary: Path) -> bool:
    """Mean firing rate, and the sparsities where they are recorded, over the epochs of a run.

    Returns:
        Whether there was anything to draw.
    """
    with summary.open(newline="") as file:
        table = list(csv.DictReader(file))
    wanted = {
        "firing_rate": "firing rate",
        "weight_sparsity": "weights removed",
        "patch_sparsity": "patches removed",
    }
    found = {
        column: [(i, float(row[column])) for i, row in enumerate(table, 1) if row.get(column)]
        for column in wanted
    }
    if not found["firing_rate"]:
        return False
    made, axes = figure(7.0, 3.4)
    for (column, points), colour, marker in zip(found.items(), COLOURS, "os^", strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3,
                      label=wanted[column])  # fmt: skip
    axes.set(xlabel="epoch (all phases)", ylabel="fraction")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    made.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    made.savefig(path)
    write_csv(
        path.with_suffix(".csv"),
        ["quantity", "epoch", "value"],
        [[column, *point] for column, points in found.items() for point in points],
    )
    return True


def plot_layer_epochs(path: Path, firing: Path) -> bool:
    """Heat map of each spiking layer's firing rate in every epoch, from a run's firing.csv.

    A layer without a spike in an epoch is crossed; one that did not run there is blank.

    Returns:
        Whether there was anything to draw.
    """
    with firing.open(newline="") as file:
        table = [row for row in csv.DictReader(file) if row.get("epoch")]
    layers = [name for name in (table[0] if table else {}) if name not in ("phase", "epoch")]
    if not layers:
        return False
    rates = torch.tensor([[float(row[name] or "nan") for row in table] for name in layers])
    epochs = len(table)
    made, axes = bare_figure(1, 1, min(11.0, 4.2 + 0.22 * epochs), 0.19 * len(layers) + 1.4)
    where = axes[0, 0]
    top = max(float(rates.nan_to_num().max()), 1e-9)
    drawn = where.imshow(
        rates.numpy(), cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="nearest",
        extent=(0.5, epochs + 0.5, len(layers) - 0.5, -0.5),
    )  # fmt: skip
    dead = (rates == 0).nonzero()
    if len(dead):
        where.scatter(dead[:, 1] + 1, dead[:, 0], marker="x", s=14, color=COLOURS[1], label="dead")
        made.legend(loc="outside upper right", frameon=False, fontsize=8)
    for at in range(1, epochs):
        if table[at]["phase"] != table[at - 1]["phase"]:
            where.axvline(at + 0.5, color="white", linewidth=1.5)
    where.set_yticks(range(len(layers)), layers, fontsize=7)
    where.xaxis.get_major_locator().set_params(integer=True)
    where.set_xlabel("epoch (all phases)")
    made.colorbar(drawn, label="firing rate (spikes per\nneuron and step)")
    made.savefig(path)
    write_csv(
        path.with_suffix(".csv"),
        ["layer", "phase", "epoch", "firing_rate"],
        [[name, row["phase"], row["epoch"], row[name]] for name in layers for row in table],
    )
    return True


def plot_membrane(
    path: Path,
    trace: Tensor,
    spikes: Tensor,
    threshold: float,
    layer: str,
    neurons: Sequence[int],
) -> None:
    """Membranes ``[T, n]`` of `neurons` after each step, with the steps at which they fired."""
    T = len(trace)
    made, axes = figure(6.5, 3.6)
    steps = torch.arange(1, T + 1)
    gap = 0.05 * max(threshold - min(float(trace.min()), 0.0), 1e-9)  # of the picture's height
    rows: list[list[object]] = []
    for n, (neuron, colour, marker) in enumerate(zip(neurons, COLOURS, MARKERS, strict=False)):
        axes.plot(steps, trace[:, n], color=colour, marker=marker, markersize=4,
                  label=f"neuron {neuron}")  # fmt: skip
        fired = spikes[:, n] > 0
        axes.plot(steps[fired], torch.full((int(fired.sum()),), threshold + gap * (n + 1)),
                  linestyle="", marker="|", color=colour, markersize=6)  # fmt: skip
        rows += [[neuron, int(t), float(trace[t - 1, n]), int(spikes[t - 1, n])] for t in steps]
    axes.axhline(threshold, color="#555555", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="time step", ylabel="membrane after the step (dimensionless)",
             title=f"{layer}: membranes of some neurons; ticks above are spikes")  # fmt: skip
    axes.title.set_fontsize(8)
    axes.set_xticks(steps.tolist())
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["neuron", "t", "membrane", "spike"], rows)
