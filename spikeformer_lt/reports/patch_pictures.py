"""Patches that are kept: over images, over event clips (with a GIF), and how often over a set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.tables import write_csv

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
