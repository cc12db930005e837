"""Every figure of the reports: headless, colour-blind-safe, with a CSV of its numbers beside it."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.disk import write_atomic
from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.energy import GROUPS, HOROWITZ, Costs, Energy
from spikeformer_lt.reports.page import read_table, write_csv

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
ON, OFF = (0.90, 0.62, 0.0), (0.0, 0.45, 0.70)
"""Orange and blue of the same palette: brighter and darker events."""
PLUS, ZERO, MINUS = "#D55E00", "#F2F2F2", "#0072B2"
Curves = dict[str, list[tuple[float, list[float]]]]  # series -> points (x, one accuracy a run)
CONTROLS = re.compile(
    r"(?:, time |, |-)?\b(random|shuffled?|fresh|control)\b(?: (mask|patches)\b)?"
)
"""What names of controls say; their curves are dotted."""
MUCH = 0.9  # fraction removed from which a curve's axis is what is kept, on a log scale
FADED, GIF_MS = 0.18, 120
NEURONS = 200  # neurons of a layer that a raster shows, evenly chosen
KERNELS = 16  # largest number of filters, and of channels, in a mosaic

Array = NDArray[Any]
Points = Sequence[tuple[float, Sequence[float]]]
Rows = Sequence[Sequence[object]]


def figure(
    width: float = 6.0, height: float = 4.0, rows: int = 1, columns: int = 1, share_x: bool = True,
    *, bare: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """A figure, in inches, and its uppermost axes; `bare` axes, for images, have no grid lines."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    every = made.subplots(rows, columns, sharex=share_x and not bare, squeeze=False).ravel()
    for axes in () if bare else every:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return made, every[0]


def style(at: int) -> dict[str, str]:
    """Colour and marker of a series by its index: 49 pairs, the first 7 alike in neither."""
    marker = MARKERS[(at + at // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[at % len(COLOURS)], "marker": marker}


def _panels(count: int, most: int, width: float, height: float, more: float = 0.0) -> Any:
    """A figure of `count` bare axes, at most `most` a row; widths and heights are of one panel."""
    columns = min(most, count)
    rows = -(-count // columns)
    made, _ = figure(width * columns + more, height * rows + more, rows, columns, bare=True)
    for axes in made.axes[count:]:
        axes.set_axis_off()
    return made


def save_picture(made: Any, path: Path) -> Path:
    """Write a figure as PNG, whose Description are the words that are drawn in it."""
    from matplotlib.text import Text

    found = (" ".join(text.get_text().split()) for text in made.findobj(Text) if text.get_visible())
    image = io.BytesIO()
    made.savefig(image, metadata={"Description": "\n".join(dict.fromkeys(filter(None, found)))})
    write_atomic(path, image.getvalue(), DataError)
    return path


def _on_any_ground(made: Any) -> None:
    """Let a figure of photographs lie on a light or a dark page."""
    from matplotlib.text import Text

    made.set_facecolor("none")
    for text in made.findobj(Text):
        text.set_color("#7F868D")


def _save(made: Any, path: Path, header: Sequence[str], rows: Rows) -> Path:
    """Write a figure and its numbers; returns the path of the figure."""
    write_csv(path.with_suffix(".csv"), header, rows)
    return save_picture(made, path)


def _heat_map(
    size: tuple[float, float], values: Tensor, top: float, label: str,
    texts: Mapping[tuple[int, int], str] | None = None, **how: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Draw a matrix from 0 to `top` with a colour bar, and `texts` into its cells."""
    made, axes = figure(*size, bare=True)
    drawn = axes.imshow(values.numpy(), cmap="cividis", vmin=0, vmax=top, **how)
    made.colorbar(drawn, label=label)
    for (i, j), text in (texts or {}).items():
        colour = "white" if float(values[i, j]) < top / 2 else "black"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    return made, axes


def _epochs(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch (all phases)")


def _least_span(axes: Any, count: int | None = None) -> None:
    """Widen an axis of accuracies, %: one of `count` test samples is at most a twentieth of it."""
    low, high = axes.get_ylim()
    short = min(100.0, max(2.0, 2000 / count if count else 5.0)) - (high - low)
    if short > 0:
        axes.set_ylim(low - short / 2, high + short / 2)


def axis_of_kept(axes: Any) -> None:
    """Turn an axis whose marks are what is kept, in %, into a log scale from all to little."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xlabel(axes.get_xlabel().replace("removed (fraction)", "kept (%), log scale"))
    axes.set_xscale("log")
    axes.invert_xaxis()
    marks = [lead * 10.0**power for power in range(-3, 3) for lead in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _legend(made: Any, place: str = "right upper", **how: Any) -> None:
    made.legend(loc=f"outside {place}", frameon=False, fontsize=8, **how)


def _plot_points(axes: Any, points: Sequence[tuple[int, float]], label: str, at: int) -> None:
    """Draw a line through points ``(x, y)``, which can be none, in the style of a series."""
    xs, ys = zip(*points, strict=True) if points else ((), ())
    axes.plot(xs, ys, **style(at), markersize=3, label=label)


def _column(table: Sequence[Mapping[str, str]], name: str) -> list[tuple[int, float]]:
    """Points (epoch of the run, value) of a column of summary.csv that can have gaps."""
    return [(epoch, float(row[name])) for epoch, row in enumerate(table, 1) if row.get(name)]


def _changes(table: Sequence[Mapping[str, str]]) -> list[int]:
    """Epochs after which another phase begins."""
    return [i for i in range(1, len(table)) if table[i]["phase"] != table[i - 1]["phase"]]


def plot_curves(
    path: Path, series: Mapping[str, Points], *, x_label: str, y_label: str,
    reference: float | None = None, count: int | None = None, title: str = "",
) -> Path | None:  # fmt: skip
    """Mean and standard deviation of several series, controls dotted; every run is a faint dot.

    Series are points ``(x, one value a run)``; `reference`, the dense mean, is a dashed line. If x,
    a fraction removed, reaches 0.9, the axis is what is kept, on a log scale. None if no series has
    two points. `count` is the number of test samples; `title` says what data and seeds these are.
    """
    if max(map(len, series.values()), default=0) < 2:
        return None
    made, axes = figure(7.4, 4.2)
    kept = max(x for points in series.values() for x, _ in points) >= MUCH
    many = any(len(values) > 1 for points in series.values() for _, values in points)
    rows: list[list[object]] = []
    for at, (name, points) in enumerate(series.items()):
        means = [statistics.fmean(values) for _, values in points]
        spread = [statistics.stdev(v) if len(v) > 1 else math.nan for _, v in points]
        axes.errorbar(
            [100 * (1 - x) if kept else x for x, _ in points], means, yerr=spread, label=name,
            markersize=5, capsize=3, linestyle=":" if CONTROLS.search(name) else "-",
            **style(at),
        )  # fmt: skip
        each = [(100 * (1 - x) if kept else x, value) for x, values in points for value in values]
        axes.scatter(*zip(*each, strict=True), **style(at), s=9, alpha=0.4)
        rows += [[name, x, mean, 0.0 if math.isnan(sd) else sd, len(values)]
                 for (x, values), mean, sd in zip(points, means, spread, strict=True)]  # fmt: skip
    if reference is not None:
        axes.axhline(reference, color="#555555", linestyle="--", label="dense")
        rows.append(["dense", "", reference, "", ""])
    axes.set(xlabel=x_label, ylabel=y_label)
    bars = "bars: standard deviation over seeds" if many else "one run each: no bars"
    axes.set_title(f"{title}{'; ' * bool(title)}{bars}; faint dots: single runs", fontsize=8)
    if kept:
        axis_of_kept(axes)
    _least_span(axes, count)
    _legend(made)
    return _save(made, path, ["series", "x", "mean", "sd", "runs"], rows)


def plot_training(summary: Path, folder: Path, title: str = "") -> Path | None:
    """Loss and accuracy of every phase over epochs, from a run's summary.csv, and a CSV of both.

    `title` says what data and seed these are.
    """
    table = read_table(summary)
    if len(table) < 2:
        return None
    made, upper = figure(7.0, 6.0, rows=2)
    lower, changes = made.axes[1], _changes(table)
    rows: list[list[object]] = []
    for axes, what, unit in ((upper, "accuracy", " (%)"), (lower, "loss", "")):
        for at, (part, label) in enumerate((("train", "train"), ("val", "validation"))):
            points = _column(table, f"{part}_{what}")
            _plot_points(axes, points, label, at)
            rows += [[f"{part}_{what}", table[x - 1]["phase"], x, y] for x, y in points]
        for at in changes:
            axes.axvline(at + 0.5, color="#999999", linewidth=1)
        axes.set_ylabel(what + unit)
    for at in [0, *changes] if changes else []:
        upper.annotate(table[at]["phase"], (at + 0.5, 1.0), (2, 2), fontsize=8,
                       xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    _least_span(upper)
    lower.set_ylim(bottom=0)
    _epochs(lower)
    made.supxlabel(f"{title}{'; ' * bool(title)}one run: no bars", x=0.99, ha="right", fontsize=8)
    _legend(made, "upper right", handles=upper.get_lines()[:2], ncols=2)
    header = ["quantity", "phase", "epoch_of_run", "value"]
    return _save(made, folder / "training.png", header, rows)


def plot_epoch_rates(path: Path, summary: Path) -> Path | None:
    """Mean firing rate, sparsities and costs over the epochs of a run; None without two."""
    wanted = {"firing_rate": "firing rate", "weight_sparsity": "masked weights removed",
              "patch_sparsity": "patches removed"}  # fmt: skip
    costs = {"sops": "SOPs per input", "weight_bytes": "bytes of weights"}
    table = read_table(summary)
    found = {column: _column(table, column) for column in (*wanted, *costs)}
    if len(found["firing_rate"]) < 2:
        return None
    known = [column for column in costs if len(found[column]) > 1]
    made, axes = figure(7.0, 3.4 + 1.8 * len(known), rows=1 + len(known))
    for at, (column, label) in enumerate(wanted.items()):
        if found[column]:
            _plot_points(axes, found[column], label, at)
    axes.set_ylabel("fraction")
    for below, column in zip(made.axes[1:], known, strict=True):
        _plot_points(below, found[column], costs[column], 0)
        below.set_ylabel(costs[column])
    for each in made.axes:
        each.set_ylim(bottom=0)
    _epochs(made.axes[-1])
    _legend(made, "upper right", ncols=3, handles=axes.get_lines())
    drawn = {column: points for column, points in found.items() if column in (*wanted, *known)}
    rows = [[column, *point] for column, points in drawn.items() for point in points]
    return _save(made, path, ["quantity", "epoch", "value"], rows)


def plot_layer_epochs(path: Path, firing: Path) -> Path | None:
    """Heat map of each layer's firing rate by epoch, from firing.csv; dead layers are crossed."""
    table = [row for row in read_table(firing) if row.get("epoch")]
    layers = [name for name in (table[0] if table else {}) if name not in ("phase", "epoch")]
    if not layers:
        return None
    rates = torch.tensor([[float(row[name] or "nan") for row in table] for name in layers])
    size = min(11.0, 4.2 + 0.22 * len(table)), 0.19 * len(layers) + 1.4
    made, axes = _heat_map(
        size, rates, max(float(rates.nan_to_num().max()), 1e-9),
        "firing rate (spikes per\nneuron and step)", aspect="auto", interpolation="nearest",
        extent=(0.5, len(table) + 0.5, len(layers) - 0.5, -0.5),
    )  # fmt: skip
    dead = (rates == 0).nonzero()
    if len(dead):
        axes.scatter(dead[:, 1] + 1, dead[:, 0], marker="x", s=14, color=COLOURS[1], label="dead")
        _legend(made, "upper right")
    for at in _changes(table):
        axes.axvline(at + 0.5, color="white", linewidth=1.5)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    _epochs(axes)
    rows = [[name, row["phase"], row["epoch"], row[name]] for name in layers for row in table]
    return _save(made, path, ["layer", "phase", "epoch", "firing_rate"], rows)


def plot_energy(path: Path, networks: Mapping[str, Energy], costs: Costs = HOROWITZ) -> Path:
    """Stacked bars, uJ a sample; a network with a dead layer gets a label instead of a bar."""
    many = len(networks) > 4
    made, axes = figure(2.6 + (1.05 if many else 1.7) * len(networks), 4.0)
    rows: list[list[object]] = []
    for at, (name, energy) in enumerate(networks.items()):
        label, foot = "\n".join(wrap(name.replace("_", " "), 12 if many else 18)), (2 * at + 0.5, 0)
        axes.annotate(label, foot, (0, -24), textcoords="offset points", ha="center", va="top",
                      fontsize=8, annotation_clip=False)  # fmt: skip
        if energy.dead:
            axes.annotate("refused:\ndead layers", foot, ha="center", va="bottom", fontsize=9)
            continue
        base = [0.0, 0.0]
        for group, values in energy.by_group(costs).items():
            known = any(group == row[2] for row in rows)
            bars = axes.bar([2 * at, 2 * at + 1], [pj / 1e6 for pj in values], bottom=base,
                            color=COLOURS[GROUPS.index(group)], label=None if known else group,
                            width=0.8, hatch=["", "//"], linewidth=0.5,
                            edgecolor="white")  # fmt: skip
            base = [bar.get_y() + bar.get_height() for bar in bars]
            rows += [[name, kind, group, pj / 1e6]
                     for kind, pj in zip(("counted", "formula"), values, strict=True)]  # fmt: skip
    ticks = ["c.", "f."] if many else ["counted", "formula"]
    axes.set_xticks(range(2 * len(networks)), ticks * len(networks), fontsize=8)
    axes.set_ylabel(f"energy per sample (uJ, estimate, {costs.name})")
    if many:
        axes.set_title("c.: counted; f. (hatched): the papers' formula", fontsize=8)
    axes.grid(axis="x", visible=False)
    if rows:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _save(made, path, ["network", "kind", "group", "energy_uj"], rows)


def plot_raster(path: Path, spikes: Mapping[str, Tensor], layers: int = 6) -> Path:
    """Spikes over time of some layers, one panel each: layer -> ``[T, neurons]``."""
    names = list(spikes)
    if len(names) > layers:  # first, last, and evenly between
        names = [names[round(i * (len(names) - 1) / (layers - 1))] for i in range(layers)]
    made = _panels(len(names), 3, 3.0, 2.3)
    rows: list[list[object]] = []
    for name, axes in zip(names, made.axes, strict=False):
        T, neurons = spikes[name].shape
        chosen = torch.linspace(0, neurons - 1, min(NEURONS, neurons)).round().long()
        fired = spikes[name][:, chosen].nonzero()
        axes.scatter(fired[:, 0] + 1, chosen[fired[:, 1]], s=6, marker="|", color=COLOURS[0],
                     linewidths=1.2)  # fmt: skip
        axes.set_title(f"{name}\nrate {float(spikes[name].float().mean()):.3f}", fontsize=7)
        axes.set(xlim=(0.5, T + 0.5), ylim=(-0.5, neurons - 0.5), xlabel="time step",
                 ylabel="neuron", xticks=range(1, T + 1, max(1, T // 8)))  # fmt: skip
        rows += [[name, int(t) + 1, int(chosen[n])] for t, n in fired]
    return _save(made, path, ["layer", "t", "neuron"], rows)


def plot_layer_rates(path: Path, rates: Mapping[str, float]) -> Path:
    """Firing rate of every layer as bars; dead layers are marked by name."""
    names = list(rates)
    made, axes = figure(6.5, 0.24 * len(names) + 1.2)
    axes.barh(range(len(names)), list(rates.values()), color=COLOURS[0])
    for i, value in enumerate(rates.values()):
        text, colour = ("dead", COLOURS[1]) if value == 0 else (f"{value:.3f}", "black")
        axes.text(value, i, f" {text}", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("firing rate (spikes per neuron and step)")
    axes.grid(axis="y", visible=False)
    return _save(made, path, ["layer", "firing_rate"], list(rates.items()))


def plot_membrane(
    path: Path, trace: Tensor, spikes: Tensor, threshold: float, layer: str, neurons: Sequence[int]
) -> Path:
    """Membranes ``[T, n]`` of `neurons` after each step, with the steps at which they fired."""
    made, axes = figure(6.5, 3.6)
    steps = torch.arange(1, len(trace) + 1)
    gap = 0.05 * max(threshold - min(float(trace.min()), 0.0), 1e-9)  # of the picture's height
    rows: list[list[object]] = []
    for n, neuron in enumerate(neurons):
        axes.plot(steps, trace[:, n], **style(n), markersize=4, label=f"neuron {neuron}")
        fired = steps[spikes[:, n] > 0]
        above = torch.full(fired.shape, threshold + gap * (n + 1))
        axes.plot(fired, above, linestyle="", marker="|", color=COLOURS[n], markersize=6)
        rows += [[neuron, int(t), float(trace[t - 1, n]), int(spikes[t - 1, n])] for t in steps]
    axes.axhline(threshold, color="#555555", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="time step", ylabel="membrane after the step (dimensionless)",
             xticks=steps.tolist())  # fmt: skip
    axes.set_title(f"{layer}: membranes of some neurons; ticks above are spikes", fontsize=8)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _save(made, path, ["neuron", "t", "membrane", "spike"], rows)


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
    flat = torch.full((rows * columns,), kept is None)
    if kept is not None:
        flat[kept.cpu()] = True
    patch = np.ones((size[0] // rows, size[1] // columns), dtype=bool)
    return np.kron(flat.view(rows, columns).numpy(), patch)


def fade(pixels: Array, keep: Array) -> Array:
    """Grey out removed patches: ``[..., H, W, 3]`` by ``[H, W]``."""
    grey = 0.75 + FADED * (pixels - 0.75)
    return np.where(keep[..., None], pixels, grey)


def plot_kept_images(
    path: Path, pixels: Array, kept: Tensor | None, grid: tuple[int, int], labels: Sequence[str]
) -> Path:
    """Each image above its kept patches; the CSV lists the kept tokens of each image."""
    count = len(pixels)
    made, _ = figure(1.15 * count + 0.4, 2.9, 2, count, bare=True)
    inputs, below = made.axes[:count], made.axes[count:]
    rows: list[list[object]] = []
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        own = None if kept is None else kept[i]
        keep = keep_map(own, grid, image.shape[:2])
        for axes, drawn in ((inputs[i], image), (below[i], fade(image, keep))):
            axes.imshow(drawn, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        inputs[i].set_title(label, fontsize=8)
        tokens = range(grid[0] * grid[1]) if own is None else own.tolist()
        rows.append([i, label, " ".join(map(str, tokens))])
    inputs[0].set_ylabel("input", fontsize=8)
    below[0].set_ylabel("kept", fontsize=8)
    _on_any_ground(made)
    return _save(made, path, ["image", "label", "kept_tokens"], rows)


def plot_kept_clip(
    path: Path, frames: Tensor, kept: Tensor | None, grid: tuple[int, int], columns: int = 8
) -> Path:
    """One event clip ``[T, 2, H, W]`` with its kept patches, the same at every step; and a GIF."""
    from PIL import Image

    pixels = show_frames(frames)
    shown = fade(pixels, keep_map(kept, grid, pixels.shape[1:3]))
    made = _panels(len(shown), columns, 1.15, 1.35, 0.4)
    for t, (axes, still) in enumerate(zip(made.axes, shown, strict=False), start=1):
        axes.set_axis_off()
        axes.imshow(still, interpolation="nearest")
        axes.set_title(f"t = {t}", fontsize=8)
    made.suptitle("events: orange brighter, blue darker; grey patches are removed", fontsize=8)
    _on_any_ground(made)
    scale = max(1, 256 // shown.shape[1])
    grown = shown.repeat(scale, 1).repeat(scale, 2)
    stills = [Image.fromarray((255 * one).astype(np.uint8)) for one in grown]
    events = [[t + 1, *row] for t, row in enumerate(frames.float().sum((2, 3)).tolist())]
    _save(made, path, ["t", "off_events", "on_events"], events)
    how: dict[str, Any] = {"append_images": stills[1:], "duration": GIF_MS, "loop": 0}
    film = io.BytesIO()
    stills[0].save(film, "GIF", save_all=True, **how)
    write_atomic(path.with_suffix(".gif"), film.getvalue(), DataError)
    return path


def plot_keep_frequency(path: Path, frequency: Tensor, images: int) -> Path:
    """Heat map ``[rows, columns]``: the fraction of images in which each patch is kept."""
    rows, columns = frequency.shape
    cells = {(i, j): float(value) for (i, j), value in np.ndenumerate(frequency.numpy())}
    texts = {at: f"{value:.2f}" for at, value in cells.items()} if len(cells) <= 64 else {}
    label = f"fraction of {images} inputs that keep it"
    made, axes = _heat_map((4.4, 3.6), frequency, 1, label, texts)
    axes.set(xlabel="patch column", ylabel="patch row", xticks=range(columns), yticks=range(rows))
    lines = [[*at, value] for at, value in cells.items()]
    return _save(made, path, ["row", "column", "kept_fraction"], lines)


def plot_kernels(path: Path, weight: Tensor, layer: str) -> Path:
    """Signs of a convolution's kernels ``[out, in, kh, kw]``: filters down, channels across."""
    if weight.ndim != 4:
        raise DataError(f"{layer} has shape {list(weight.shape)}; a convolution has four axes")
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    signs = weight.detach().cpu().sign()
    part = torch.nn.functional.pad(signs[:KERNELS, :KERNELS], (0, 1, 0, 1), value=math.nan)
    filters, channels = part.shape[:2]
    canvas = part.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:-1, :-1]
    width = max(4.2, min(5.6, 0.09 * canvas.shape[1]) + 1.0)
    made, axes = figure(width, max(2.4, min(5.6, 0.09 * canvas.shape[0]) + 0.7), bare=True)
    axes.set_facecolor("#777777")
    axes.imshow(
        canvas.numpy(), cmap=ListedColormap([MINUS, ZERO, PLUS]),
        norm=BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3), interpolation="nearest",
    )  # fmt: skip
    axes.set(xticks=[], yticks=[], ylabel=f"filter (first {filters} of {weight.shape[0]})",
             xlabel=f"input channel (first {channels} of {weight.shape[1]})")  # fmt: skip
    gone = 100 * float((signs == 0).double().mean())
    axes.set_title(f"{layer}: {gone:.1f} % of its weights removed", fontsize=8)
    handles = [Patch(facecolor=c, edgecolor="#777777", label=n)
               for c, n in ((PLUS, "+"), (ZERO, "0"), (MINUS, "-"))]  # fmt: skip
    _legend(made, handles=handles)
    counts = [[i, *(int((row == s).sum()) for s in (1, 0, -1))] for i, row in enumerate(signs)]
    return _save(made, path, ["filter", "plus", "zero", "minus"], counts)


def banded(distances: Sequence[Sequence[float]]) -> Tensor:
    """Distances of each mask to the last ones before it, as a symmetric matrix, NaN elsewhere."""
    n = len(distances)
    found = torch.full((n, n), math.nan, dtype=torch.float64)
    for i, row in enumerate(distances):
        found[i, i] = 0.0
        for j, value in enumerate(row, start=i - len(row)):
            found[i, j] = found[j, i] = value
    return found


def plot_distances(path: Path, found: Tensor, names: Sequence[str], label: str = "") -> Path:
    """A symmetric matrix of distances between masks; NaN is grey: not compared."""
    n, top = len(names), max(float(found.nan_to_num().max()), 1e-9)
    size = min(0.55 * n + 2.6, 9.0)
    known = (~found.isnan()).nonzero().tolist() if n <= 12 else []
    texts = {(i, j): f"{float(found[i, j]):.3f}" for i, j in known}
    what = "distance (fraction of entries that differ)"
    made, axes = _heat_map((size + 0.9, size), found, top, what, texts)
    shown = range(0, n, -(-n // 24))
    marks = [names[i] for i in shown]
    axes.set_xticks(shown, marks, fontsize=7, rotation=60 if max(map(len, marks)) > 4 else 0)
    axes.set_yticks(shown, marks, fontsize=7)
    axes.set(xlabel=label, ylabel=label, facecolor="#BBBBBB")
    rows = [[name, *("" if v != v else v for v in row)]
            for name, row in zip(names, found.tolist(), strict=True)]  # fmt: skip
    return _save(made, path, ["mask", *names], rows)


def plot_anytime(
    path: Path, accuracy_at_t: Mapping[str, Sequence[float]], count: int | None = None
) -> Path | None:
    """Accuracy (%) from the mean logits of the first t steps: network -> one value a step.

    None if no network takes two steps. `count` is the number of test samples.
    """
    if max(map(len, accuracy_at_t.values()), default=0) < 2:
        return None
    made, axes = figure(6.8, max(4.0, 0.2 * len(accuracy_at_t) + 0.6))
    longest = max(len(values) for values in accuracy_at_t.values())
    for at, (name, values) in enumerate(accuracy_at_t.items()):
        axes.plot(range(1, len(values) + 1), values, **style(at), label=name)
    axes.set(xlabel="time steps used", ylabel="accuracy (%)", xticks=range(1, longest + 1))
    _least_span(axes, count)
    if len(accuracy_at_t) > 1:
        _legend(made)
    rows = [[n, t, v] for n, values in accuracy_at_t.items() for t, v in enumerate(values, start=1)]
    return _save(made, path, ["network", "t", "accuracy"], rows)


def plot_early_exit(
    path: Path, points: Sequence[tuple[float, float, float]], count: int | None = None
) -> Path | None:
    """Accuracy against the mean steps used, by confidence; of `early_exit` on `count` samples.

    None if every confidence takes as many steps.
    """
    if len({steps for _, steps, _ in points}) < 2:
        return None
    made, axes = figure()
    axes.plot([p[1] for p in points], [p[2] for p in points], color=COLOURS[0], marker="o")
    for at, (confidence, steps, accuracy) in enumerate(points):
        axes.annotate(f"{confidence:g}", (steps, accuracy), (0, 6 if at % 2 else -12),
                      textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
    axes.set(xlabel="mean time steps used", ylabel="accuracy (%)")
    axes.set_title("early exit, by the required confidence", fontsize=9)
    axes.margins(0.12)
    _least_span(axes, count)
    return _save(made, path, ["confidence", "mean_steps", "accuracy"], points)


def plot_confusion(path: Path, confusion: Sequence[Sequence[int]]) -> Path:
    """Counts ``[K, K]``, rows are true classes; colours are fractions of each row."""
    counts = torch.tensor(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise DataError(f"a confusion matrix is square; this one is {list(counts.shape)}")
    classes = len(counts)
    share = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    few = classes <= 20
    texts = {(i, j): str(int(counts[i, j])) for i, j in counts.nonzero().tolist()} if few else {}
    made, axes = _heat_map((5.6, 4.8), share, 1, "fraction of the true class", texts)
    if few:
        axes.set(xticks=range(classes), yticks=range(classes))
    right = int(counts.diagonal().sum())
    axes.set(xlabel="predicted class", ylabel="true class",
             title=f"{right} of {int(counts.sum())} right")  # fmt: skip
    rows = [[i, *row] for i, row in enumerate(counts.tolist())]
    return _save(made, path, ["true", *map(str, range(classes))], rows)
