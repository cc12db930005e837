"""benchmarks/families.py: each run of the queue has a table, and the page says what those say."""

from __future__ import annotations

import csv
from pathlib import Path

import families

COUNTED = [list(families.COLUMNS).index(name) + 2 for name in ("bytes", "bits")]


def cells(line: str) -> list[str]:
    """A line of a table without its first cell and those that need the networks."""
    found = [cell.strip() for cell in line.split("|")]
    return [cell for at, cell in enumerate(found) if at not in (1, *COUNTED)]


def test_every_run_of_the_queue_belongs_to_one_table(tmp_path: Path) -> None:
    with (families.PAGE / "queue.csv").open(newline="") as file:
        asked = [row["run"] for row in csv.DictReader(file)]
    found = [
        job.folder.name
        for prefix in families.SETS
        for family in families.FAMILIES
        for job in families.jobs_of(tmp_path, family, prefix)
    ]
    assert sorted(found) == sorted(asked)


def test_the_pages_tables_are_those_of_the_folders() -> None:
    page = (families.PAGE / "README.md").read_text()
    for prefix, data in families.SETS.items():
        start, end = families.marks(data)
        shown = [cells(line) for line in page.partition(start)[2].partition(end)[0].split("\n")]
        for family in families.FAMILIES:
            folder = families.folder_of(family, prefix)
            for line in families.table(folder, family, prefix, {}) if folder.exists() else []:
                assert cells(line) in shown, f"{family} on {data}"
