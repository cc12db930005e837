"""What a search cost, and what Early-Time saves of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from spikeformer_lt.reports.tables import markdown_table

WRAPPED = "+et"
"""What the name of a series ends in where Early-Time wraps the search of the same name."""
SECONDS, STEPS, ACCURACY = "search (s)", "search (epochs x T)", "test accuracy %"


class Row(Protocol):
    """One variant of a comparison."""

    @property
    def variant(self) -> str:
        """``SERIES SPARSITY``, such as "imp+et 0.9"."""

    @property
    def values(self) -> Mapping[str, list[float]]:
        """Values of each column, one for each seed."""

    @property
    def seed(self) -> tuple[int, ...]:
        """Seeds, in the order of the values."""


def search_steps(provenance: Mapping[str, Any]) -> float | None:
    """Cost of a search that no machine changes: epochs times time steps, summed over its phases.

    Times the number of training images, this is how often the network saw an image for one step.
    The dense epochs before the probe of Early-Time count with all T, what follows with the fewer
    steps; scoring on single batches (the probe, SNIP, GraSP, SynFlow) is not counted.

    Args:
        provenance: of the ticket that the search left, before any training from it.

    Returns:
        None where the provenance says nothing of the model's T or of the phases.
    """
    T = provenance.get("model", {}).get("args", {}).get("T")
    phases = provenance.get("phases")
    if T is None or phases is None:
        return None
    fewer = provenance.get("early_time", {}).get("T_early", T)
    return float(
        sum(phase["epochs"] * (T if phase["phase"] == "early_time" else fewer) for phase in phases)
    )


def steps_of_run(report: Path) -> float | None:
    """`search_steps` of the ticket beside a run's report; None where no search of weights was."""
    about = report.parent / "ticket" / "ticket.json"
    if not about.is_file():
        return None
    known = json.loads(about.read_text())["provenance"]
    return search_steps(known) if "search_seconds" in known else None


def early_time_table(rows: Sequence[Row]) -> str:
    """Early-Time against the search alone, seed by seed: what it costs and what it loses.

    Args:
        rows: of a comparison; a row "imp+et 0.9" is paired with "imp 0.9".

    Returns:
        A Markdown table of the ratios (with / without) of search seconds and of epochs x T, and
        of the change in accuracy; "" where nothing can be paired.
    """
    known = {row.variant: row for row in rows}
    lines = []
    for row in rows:
        series, _, sparsity = row.variant.rpartition(" ")
        plain = known.get(f"{series.removesuffix(WRAPPED)} {sparsity}")
        if not series.endswith(WRAPPED) or plain is None:
            continue
        pairs = [
            (row.seed.index(seed), plain.seed.index(seed))
            for seed in row.seed
            if seed in plain.seed
        ]
        if not pairs:
            continue
        cells = [row.variant, str(len(pairs)), _mean_cell(row.values["T in search"], ".1f")]
        for column in (SECONDS, STEPS):
            ours, theirs = row.values[column], plain.values[column]
            whole = len(ours) == len(row.seed) and len(theirs) == len(plain.seed)
            ratios = [ours[i] / theirs[j] for i, j in pairs if theirs[j]] if whole else []
            cells.append(_mean_cell(ratios, ".3f"))
            cells.append(_mean_cell([100 * (1 - ratio) for ratio in ratios], ".1f"))
        lost = [row.values[ACCURACY][i] - plain.values[ACCURACY][j] for i, j in pairs]
        lines.append([*cells, _mean_cell(lost, "+.2f")])
    if not lines:
        return ""
    header = ["search", "seeds", "T in search", "seconds, ratio", "saved %", "epochs x T, ratio",
              "saved % ", "accuracy, change"]  # fmt: skip
    return markdown_table(header, lines)


def _mean_cell(values: Sequence[float], form: str) -> str:
    return format(sum(values) / len(values), form) if values else "-"
