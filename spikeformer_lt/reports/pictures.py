"""Patches that are kept: over images, over event clips (with a GIF), and how often over a set.

Spikes: rasters, firing rates by layer and over epochs, membrane traces.

Weights: mosaics of ConvPEP kernels (+, 0, -), and distances between masks.

Results: accuracy after t steps, early exit, and the confusion matrix.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.errors import DataError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.page import write_csv
from spikeformer_lt.reports.plots import COLOURS, MARKERS, figure, style

ON, OFF = (0.90, 0.62, 0.0), (0.0, 0.45, 0.70)
"""Orange and blue of Okabe and Ito's palette: brighter and darker events."""
FADED = 0.18
GIF_MS = 120

Array = NDArray[Any]


def bare_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A headless figure with a grid of axes ``[rows, columns]`` and no grid lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False)


def show_images(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Undo the normalisation: ``[B, C, H, W]`` -> ``[B, H, W, 3]`` in [0, 1]."""
    channels = images.shape[1]
    factor = torch.tensor(std).view(-1, 1, 1)
    pixels = (images.cpu() * factor + torch.tensor(mean).view(-1, 1, 1)).clamp(0, 1)
    return pixels.expand(-1, 3 if channels == 1 else channels, -1, -1).permute(0, 2, 3, 1).numpy()


def show_frames(frames: Tensor) -> Array:
    """Event frames ``[T, 2, H, W]`` (off, on) -> ``[T, H, W, 3]``: white, orange on, blue off."""
    counts = frames.float().cpu()
    top = counts.flatten().quantile(0.995).clamp_min(1e-9)
    off, on = (counts[:, i, :, :, None] / top for i in range(2))
    amount = (off + on).clamp(0, 1)
    share = on / (off + on).clamp_min(1e-9)
    colour = share * torch.tensor(ON) + (1 - share) * torch.tensor(OFF)
    return (1 - amount + amount * colour).numpy()


def keep_map(kept: Tensor | None, grid: tuple[int, int], size: tuple[int, int]) -> Array:
    """Kept tokens ``[K]`` as a map ``[H, W]`` of booleans; all True where nothing is removed."""
    rows, columns = grid
    if size[0] % rows or size[1] % columns:
        raise DataError(f"a grid of {rows} x {columns} patches does not divide {size} pixels")
    flat = torch.ones(rows * columns, dtype=torch.bool)
    if kept is not None:
        flat[:] = False
        flat[kept.cpu()] = True
    grown = flat.view(rows, columns).repeat_interleave(size[0] // rows, 0)
    return grown.repeat_interleave(size[1] // columns, 1).numpy()


def fade(pixels: Array, keep: Array) -> Array:
    """Removed patches grey out: ``[..., H, W, 3]`` by ``[H, W]``."""
    grey = 0.75 + FADED * (pixels - 0.75)
    return np.where(keep[..., None], pixels, grey)


def plot_kept_images(
    path: Path, pixels: Array, kept: Tensor | None, grid: tuple[int, int], labels: Sequence[str]
) -> None:
    """Each image above what is kept of it; the CSV lists the kept tokens of each image."""
    count = len(pixels)
    made, axes = bare_figure(2, count, 1.15 * count + 0.4, 2.9)
    rows: list[list[object]] = []
    for i in range(count):
        own = None if kept is None else kept[i]
        keep = keep_map(own, grid, pixels[i].shape[:2])
        for at, image in ((0, pixels[i]), (1, fade(pixels[i], keep))):
            axes[at, i].imshow(image, interpolation="nearest")
            axes[at, i].set(xticks=[], yticks=[])
        axes[0, i].set_title(labels[i], fontsize=8)
        tokens = range(grid[0] * grid[1]) if own is None else own.tolist()
        rows.append([i, labels[i], " ".join(map(str, tokens))])
    axes[0, 0].set_ylabel("input", fontsize=8)
    axes[1, 0].set_ylabel("kept", fontsize=8)
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["image", "label", "kept_tokens"], rows)


def plot_kept_clip(
    path: Path, frames: Tensor, kept: Tensor | None, grid: tuple[int, int], columns: int = 8
) -> None:
    """One event clip ``[T, 2, H, W]`` with its kept patches, the same at every step; and a GIF."""
    from PIL import Image

    pixels = show_frames(frames)
    keep = keep_map(kept, grid, pixels.shape[1:3])
    shown = fade(pixels, keep)
    columns = min(columns, len(shown))
    height = -(-len(shown) // columns)
    made, axes = bare_figure(height, columns, 1.15 * columns + 0.4, 1.35 * height + 0.4)
    for t, where in enumerate(axes.flat):
        where.set_axis_off()
        if t < len(shown):
            where.imshow(shown[t], interpolation="nearest")
            where.set_title(f"t = {t + 1}", fontsize=8)
    made.suptitle("events: orange brighter, blue darker; grey patches are removed", fontsize=8)
    made.savefig(path)
    scale = max(1, 256 // shown.shape[1])
    grown = shown.repeat(scale, 1).repeat(scale, 2)
    stills = [Image.fromarray((255 * one).astype(np.uint8)) for one in grown]
    stills[0].save(
        path.with_suffix(".gif"), save_all=True, append_images=stills[1:], duration=GIF_MS, loop=0
    )
    events = frames.float().sum((2, 3)).tolist()
    header = ["t", "off_events", "on_events"]
    write_csv(path.with_suffix(".csv"), header, [[t + 1, *row] for t, row in enumerate(events)])


def plot_keep_frequency(path: Path, frequency: Tensor, images: int) -> None:
    """Heat map ``[rows, columns]``: the fraction of images in which each patch is kept."""
    made, axes = bare_figure(1, 1, 4.4, 3.6)
    drawn = axes[0, 0].imshow(frequency.numpy(), cmap="cividis", vmin=0, vmax=1)
    rows, columns = frequency.shape
    if rows * columns <= 64:
        for i in range(rows):
            for j in range(columns):
                value = float(frequency[i, j])
                colour = "white" if value < 0.5 else "black"
                axes[0, 0].text(j, i, f"{value:.2f}", ha="center", va="center", color=colour,
                                fontsize=8)  # fmt: skip
    axes[0, 0].set(xlabel="patch column", ylabel="patch row",
                   xticks=range(columns), yticks=range(rows))  # fmt: skip
    made.colorbar(drawn, label=f"fraction of {images} inputs that keep it")
    made.savefig(path)
    write_csv(
        path.with_suffix(".csv"),
        ["row", "column", "kept_fraction"],
        [[i, j, float(frequency[i, j])] for i in range(rows) for j in range(columns)],
    )


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


PLUS, ZERO, MINUS = "#D55E00", "#F2F2F2", "#0072B2"
KERNELS = 16
"""Filters and channels of a mosaic, each at most so many."""


def plot_kernels(path: Path, weight: Tensor, layer: str) -> None:
    """Signs of a convolution's kernels: filters down, input channels across.

    Args:
        path: the picture; the CSV holds counts of +, 0 and - of every filter.
        weight: ``[out, in, kh, kw]``.
        layer: its name.
    """
    if weight.ndim != 4:
        raise DataError(f"{layer} has shape {list(weight.shape)}; a convolution has four axes")
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    signs = weight.detach().cpu().sign()
    part = signs[:KERNELS, :KERNELS]
    filters, channels, kh, kw = part.shape
    canvas = torch.full((filters * (kh + 1) - 1, channels * (kw + 1) - 1), float("nan"))
    for i in range(filters):
        for j in range(channels):
            top, left = i * (kh + 1), j * (kw + 1)
            canvas[top : top + kh, left : left + kw] = part[i, j]
    width = max(4.2, min(5.6, 0.09 * canvas.shape[1]) + 1.0)
    height = max(2.4, min(5.6, 0.09 * canvas.shape[0]) + 0.7)
    made, axes = bare_figure(1, 1, width, height)
    colours = ListedColormap([MINUS, ZERO, PLUS])
    axes[0, 0].set_facecolor("#777777")
    axes[0, 0].imshow(
        canvas.numpy(), cmap=colours, norm=BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3),
        interpolation="nearest",
    )  # fmt: skip
    axes[0, 0].set(xticks=[], yticks=[])
    axes[0, 0].set_xlabel(f"input channel (first {channels} of {weight.shape[1]})", fontsize=8)
    axes[0, 0].set_ylabel(f"filter (first {filters} of {weight.shape[0]})", fontsize=8)
    gone = float((signs == 0).double().mean())
    axes[0, 0].set_title(f"{layer}: {100 * gone:.1f} % of the weights removed", fontsize=8)
    handles = [Patch(facecolor=c, edgecolor="#777777", label=n)
               for c, n in ((PLUS, "+"), (ZERO, "0"), (MINUS, "-"))]  # fmt: skip
    made.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    made.savefig(path)
    flat = signs.flatten(1)
    counts = [[i, *(int((row == s).sum()) for s in (1, 0, -1))] for i, row in enumerate(flat)]
    write_csv(path.with_suffix(".csv"), ["filter", "plus", "zero", "minus"], counts)


def mask_distances(masks: Sequence[Mask]) -> Tensor:
    """Symmetric ``[n, n]`` matrix of Hamming distances in [0, 1], 0 on the diagonal."""
    n = len(masks)
    found = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i):
            found[i, j] = found[j, i] = masks[i].hamming(masks[j])
    return found


def plot_mask_distances(path: Path, masks: Sequence[Mask], names: Sequence[str]) -> Tensor:
    """Matrix of distances between masks: of epochs (Early-Bird), rounds, or seeds.

    Returns:
        The matrix.

    Raises:
        MaskError: masks of different layers.
        DataError: not one name for each mask.
    """
    if len(names) != len(masks) or not masks:
        raise DataError(f"{len(masks)} masks and {len(names)} names; give one for each")
    found = mask_distances(masks)
    plot_distances(path, found, names)
    return found


def banded(distances: Sequence[Sequence[float]]) -> Tensor:
    """What an Early-Bird search compared, as a symmetric ``[n, n]`` matrix; NaN where it did not.

    Args:
        distances: for each mask, those to the ones before it that were in the window, oldest first.
    """
    n = len(distances)
    found = torch.full((n, n), float("nan"), dtype=torch.float64)
    for i, row in enumerate(distances):
        found[i, i] = 0.0
        for j, value in enumerate(row, start=i - len(row)):
            found[i, j] = found[j, i] = value
    return found


def plot_distances(path: Path, found: Tensor, names: Sequence[str], label: str = "") -> None:
    """A symmetric matrix of distances between masks; NaN is grey: not compared."""
    n = len(names)
    size = min(0.55 * n + 2.6, 9.0)
    made, axes = bare_figure(1, 1, size + 0.9, size)
    axes[0, 0].set_facecolor("#BBBBBB")
    top = max(float(found.nan_to_num().max()), 1e-9)
    drawn = axes[0, 0].imshow(found.numpy(), cmap="cividis", vmin=0, vmax=top)
    shown = range(0, n, -(-n // 24))
    marks = [names[i] for i in shown]
    axes[0, 0].set_xticks(shown, marks, fontsize=7)
    if max(map(len, marks)) > 4:
        axes[0, 0].tick_params("x", rotation=60)
    axes[0, 0].set_yticks(shown, marks, fontsize=7)
    axes[0, 0].set(xlabel=label, ylabel=label)
    for i, j in (~found.isnan()).nonzero().tolist() if n <= 12 else ():
        value = float(found[i, j])
        axes[0, 0].text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=6,
                        color="white" if value < top / 2 else "black")  # fmt: skip
    made.colorbar(drawn, label="distance (fraction of entries that differ)")
    made.savefig(path)
    write_csv(
        path.with_suffix(".csv"),
        ["mask", *names],
        [
            [name, *("" if value != value else value for value in row)]
            for name, row in zip(names, found.tolist(), strict=True)
        ],
    )


CONFIDENCES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def plot_anytime(path: Path, accuracy_at_t: Mapping[str, Sequence[float]]) -> None:
    """Accuracy (%) from the mean logits of the first t steps: network -> one value a step."""
    made, axes = figure(6.8, max(4.0, 0.2 * len(accuracy_at_t) + 0.6))
    longest = max(len(values) for values in accuracy_at_t.values())
    for at, (name, values) in enumerate(accuracy_at_t.items()):
        colour, marker = style(at)
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, color=colour, marker=marker, label=name)
    axes.set(xlabel="time steps used", ylabel="accuracy (%)", xticks=range(1, longest + 1))
    if len(accuracy_at_t) > 1:
        made.legend(loc="outside right upper", frameon=False, fontsize=8)
    made.savefig(path)
    rows = [[n, t, v] for n, values in accuracy_at_t.items() for t, v in enumerate(values, start=1)]
    write_csv(path.with_suffix(".csv"), ["network", "t", "accuracy"], rows)


def early_exit(
    logits: Tensor, labels: Tensor, confidences: Sequence[float] = CONFIDENCES
) -> list[tuple[float, float, float]]:
    """Stop at the first step whose mean logits are sure enough.

    Args:
        logits: ``[B, T, K]``.
        labels: ``[B]``.
        confidences: least softmax probabilities of the best class; at the last step all stop.

    Returns:
        For each: confidence, mean steps used, accuracy (%).
    """
    T = logits.shape[1]
    mean = logits.cumsum(1) / torch.arange(1, T + 1)[None, :, None]
    best, answer = mean.softmax(2).max(2)
    found = []
    for confidence in confidences:
        sure = best >= confidence
        sure[:, -1] = True
        at = sure.int().argmax(1)
        right = answer.gather(1, at[:, None])[:, 0] == labels
        steps = float((at + 1).double().mean())
        found.append((confidence, steps, 100 * float(right.double().mean())))
    return found


def plot_early_exit(path: Path, points: Sequence[tuple[float, float, float]]) -> None:
    """Accuracy against the mean steps used, by confidence; of `early_exit`."""
    made, axes = figure()
    axes.plot([p[1] for p in points], [p[2] for p in points], color=COLOURS[0], marker="o")
    for at, (confidence, steps, accuracy) in enumerate(points):
        axes.annotate(f"{confidence:g}", (steps, accuracy), (0, 6 if at % 2 else -12),
                      textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
    axes.set(xlabel="mean time steps used", ylabel="accuracy (%)",
             title="early exit, by the confidence that is asked for")  # fmt: skip
    axes.title.set_fontsize(9)
    axes.margins(0.12)
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["confidence", "mean_steps", "accuracy"], points)


def plot_confusion(path: Path, confusion: Sequence[Sequence[int]]) -> None:
    """Counts ``[K, K]``, rows are true classes; colours are fractions of each row."""
    counts = torch.tensor(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise DataError(f"a confusion matrix is square; this one is {list(counts.shape)}")
    classes = len(counts)
    share = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    made, axes = bare_figure(1, 1, 5.6, 4.8)
    drawn = axes[0, 0].imshow(share.numpy(), cmap="cividis", vmin=0, vmax=1)
    if classes <= 20:
        for i in range(classes):
            for j in range(classes):
                if counts[i, j]:
                    colour = "white" if share[i, j] < 0.5 else "black"
                    axes[0, 0].text(j, i, int(counts[i, j]), ha="center", va="center",
                                    fontsize=7, color=colour)  # fmt: skip
        axes[0, 0].set(xticks=range(classes), yticks=range(classes))
    right = int(counts.diagonal().sum())
    axes[0, 0].set(xlabel="predicted class", ylabel="true class",
                   title=f"{right} of {int(counts.sum())} right")  # fmt: skip
    made.colorbar(drawn, label="fraction of the true class")
    made.savefig(path)
    rows = [[i, *row] for i, row in enumerate(counts.tolist())]
    write_csv(path.with_suffix(".csv"), ["true", *range(classes)], rows)
