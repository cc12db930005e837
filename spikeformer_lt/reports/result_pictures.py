"""Results: accuracy after t steps, early exit, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.patch_pictures import bare_figure
from spikeformer_lt.reports.plots import COLOURS, figure, style
from spikeformer_lt.reports.tables import write_csv

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
