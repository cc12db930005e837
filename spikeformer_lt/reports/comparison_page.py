"""``report.html`` of a comparison over variants and seeds, from what its runs left."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeformer_lt.errors import MaskError, TicketError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.page import Page
from spikeformer_lt.reports.result_pictures import plot_anytime
from spikeformer_lt.reports.weight_pictures import plot_mask_distances
from spikeformer_lt.ticket import Ticket


def write_variants_page(
    folder: Path,
    title: str,
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    notes: Sequence[str],
    curves: Mapping[str, Path],
    runs: Iterable[tuple[str, Path]],
) -> Path:
    """Write the page and the pictures that only it needs, with a CSV beside each.

    Args:
        folder: of the comparison.
        title: heading.
        table: header and rows.
        notes: what a reader must know first: runs that are missing, silent networks.
        curves: what is removed -> picture of accuracy against it.
        runs: (variant, report.json) of each run, finished or not.

    Returns:
        The page.
    """
    found = [(variant, path) for variant, path in runs if path.exists()]
    reports = [(variant, json.loads(path.read_text("utf-8"))) for variant, path in found]
    page = Page(title)
    for note in notes:
        page.text(note, notice=True)
    if any(report.get("dataset") in ("digits", "moving_digits") for _, report in reports):
        page.text("A small embedded test bed: its figures stand for no CIFAR or Gesture result.")
    page.section("Table")
    page.text("Mean and, after the sign, standard deviation over the seeds.")
    page.table(*table)
    if curves:
        page.section("Accuracy against sparsity")
    for level, path in curves.items():
        said = f"Test accuracy against the fraction of {level} that is removed: mean and standard "
        page.image(path, f"{said}deviation over seeds, each run a dot, controls dotted.")
    at_t = accuracy_at_t(reports)
    if at_t:
        page.section("Accuracy at t")
        plot_anytime(folder / "anytime.png", at_t)
        said = "Test accuracy from the mean logits of the first t steps, mean over seeds."
        page.image(folder / "anytime.png", said)
    _masks(page, folder, found)
    page.write(folder / "report.html")
    return folder / "report.html"


def accuracy_at_t(reports: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Variant -> accuracy (%) after each step, mean over its runs of the same T."""
    collected: dict[str, list[list[float]]] = {}
    for variant, report in reports:
        if report.get("accuracy_at_t"):
            collected.setdefault(variant, []).append(report["accuracy_at_t"])
    return {
        variant: [statistics.fmean(step) for step in zip(*values, strict=True)]
        for variant, values in collected.items()
        if len({len(one) for one in values}) == 1
    }


def _masks(page: Page, folder: Path, found: Sequence[tuple[str, Path]]) -> None:
    """Distances between the tickets of each variant's first run."""
    masks: dict[str, Mask] = {}
    for variant, path in found:
        if variant not in masks and (path.parent / "ticket").is_dir():
            with contextlib.suppress(TicketError):  # a damaged one has no mask to compare
                masks[variant] = Ticket.load(path.parent / "ticket").mask
    if len(masks) < 2:
        return
    page.section("Masks")
    try:
        plot_mask_distances(folder / "masks.png", list(masks.values()), list(masks))
    except MaskError as differ:
        page.text(f"No distances: {differ}")
    else:
        said = "Fraction of mask entries in which the first tickets of two variants differ."
        page.image(folder / "masks.png", said)
