"""A picture's CSV is what it shows: every published mark, and ours only where a run is."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from paper_rows import line
from papers.drops import Line
from papers.pictures import plot_table
from papers.tables import TABLES, Table


def marks(path: Path) -> list[dict[str, str]]:
    with open(path.with_name(f"{path.stem}-picture.csv"), newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", TABLES)
def test_every_published_table_can_be_drawn_without_a_run(tmp_path, name) -> None:
    table = TABLES[name]
    plot_table(tmp_path / "p.png", table, [Line(cell) for cell in table.cells])
    found = marks(tmp_path / "p.png")
    assert {mark["whose"] for mark in found} <= {"published"}
    assert bool(found) == any(cell.accuracy is not None for cell in table.cells)
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_changes_are_the_negative_drops(tmp_path) -> None:
    rows = (("dense", None, 93.0, 95.0), ("IMP", 0.5, 92.0, 96.0), ("IMP", 0.9, 90.0))
    lines = [line(*row) for row in rows]
    plot_table(tmp_path / "p.png", Table("t", "Title", tuple(x.cell for x in lines)), lines)
    found = [(m["whose"], float(m["level"]), float(m["change"])) for m in marks(tmp_path / "p.png")]
    assert sorted(found) == [
        *(("ours", 0.5, 1.0), ("published", 0.5, -1.0), ("published", 0.9, -3.0)),
    ]  # fmt: skip
