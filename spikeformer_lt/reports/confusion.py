"""Confusion matrices of finished runs, summed over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from spikeformer_lt.reports.tables import markdown_table, write_csv


def write_confusions(folder: Path, runs: Iterable[tuple[str, Path]]) -> None:
    """Write ``confusion.md`` and one ``confusion-VARIANT.csv`` for each variant.

    Args:
        folder: where to.
        runs: (variant, report.json) of each run; runs without one are left out.

    Rows are true classes, columns predictions, cells the number of test samples over all seeds.
    """
    sums: dict[str, list[list[int]]] = {}
    seeds: dict[str, int] = {}
    for variant, path in runs:
        if not path.exists():
            continue
        counts = json.loads(path.read_text()).get("confusion")
        if counts is None:
            continue
        before = sums.get(variant, [[0] * len(row) for row in counts])
        sums[variant] = [
            [a + b for a, b in zip(x, y, strict=True)] for x, y in zip(before, counts, strict=True)
        ]
        seeds[variant] = seeds.get(variant, 0) + 1
    parts = ["# Confusion matrices\n\nRows are true classes, columns predictions; cells count test "
             "samples over all seeds.\n"]  # fmt: skip
    for variant, counts in sums.items():
        header = ["true \\ predicted", *(str(k) for k in range(len(counts)))]
        rows = [[str(k), *map(str, row)] for k, row in enumerate(counts)]
        total, right = sum(map(sum, counts)), sum(row[k] for k, row in enumerate(counts))
        largest = max(sum(row) for row in counts)
        parts.append(
            f"## {variant}\n\n{seeds[variant]} seeds, {right} of {total} right "
            f"({100 * right / total:.2f} %; always the largest class: "
            f"{100 * largest / total:.2f} %).\n\n{markdown_table(header, rows)}\n"
        )
        write_csv(folder / f"confusion-{variant.replace(' ', '_')}.csv", header, rows)
    if sums:
        (folder / "confusion.md").write_text("\n".join(parts))
