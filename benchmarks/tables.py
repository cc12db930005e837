"""What the pages of finished runs share: a comparison's tables, their rows, the lines of a page."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from run_queue import Row, read_csv

from spikeformer_lt.export import export_run
from spikeformer_lt.export.file import TENSORS
from spikeformer_lt.reports.comparison import write_comparison
from spikeformer_lt.training.jobs import Job


def compare(to: Path, jobs: Sequence[Job], title: str) -> None:
    """Write a comparison's tables, and no page, to a folder."""
    to.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as place:
        write_comparison(Path(place), jobs, title)
        for file in ("comparison.md", "comparison.csv", "differences.csv", "runs.csv"):
            if (Path(place) / file).exists():
                shutil.copy(Path(place) / file, to)


def rows(folder: Path) -> list[Row]:
    """Rows of a comparison, with `test` and, where a dense run is there, `points` to it."""
    pairs = read_csv(folder / "differences.csv")
    against = {row["variant"]: row for row in pairs if row["against"] == "dense"}
    found = read_csv(folder / "comparison.csv")
    for row in found:
        row["test"] = f"{row['test accuracy %']} {row['95 % interval']}"
        if diff := against.get(row["variant"]):
            points, ends = float(diff["points"]), diff["95 % interval"]
            row["points"] = f"{points:+.2f} {ends}, p {diff['p (Holm)']}"
    return found


def exported(run: Path) -> tuple[str, str]:
    """Bytes of an export's tensors, and their bits a weight beside the bound's."""
    with TemporaryDirectory() as place:
        done = export_run(run, Path(place) / "export")
        size = (done.folder / TENSORS).stat().st_size
    return f"{size:,}", f"{done.bits[0]:.2f} ({done.bits[1]:.2f})"


def put(page: Path, marks: tuple[str, str], lines: Sequence[str]) -> None:
    """Replace the lines of a page between its marks."""
    start, end = marks
    before, _, rest = page.read_text("utf-8").partition(start)
    after = rest.partition(end)[2]
    if not after:
        sys.exit(f"{page} lacks the marks {start} and {end}")
    page.write_text(f"{before}{start}\n" + "\n".join(lines) + f"\n{end}{after}", "utf-8")
