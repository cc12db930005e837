"""Weights: mosaics of ConvPEP kernels (+, 0, -), and distances between masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spikeformer_lt.errors import DataError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.patch_pictures import bare_figure
from spikeformer_lt.reports.tables import write_csv

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
