"""benchmarks/central.py: the page of CIFAR-10 says what the tables of its folder say."""

from __future__ import annotations

from pathlib import Path

import central
import pytest
from run_queue import QUEUE, read_csv

PAGES = pytest.mark.parametrize(("prefix", "page"), [(p, f) for p, (f, _) in central.PAGES.items()])


@PAGES
def test_a_pages_table_is_that_of_its_folder(prefix: str, page: Path) -> None:
    text = (page / "README.md").read_text("utf-8")
    shown = text.partition(central.MARKS[0])[2].partition(central.MARKS[1])[0]
    assert shown.strip().split("\n") == central.lines(page)


@PAGES
def test_a_row_of_the_queue_has_a_variant_and_files_when_it_is_done(
    prefix: str, page: Path
) -> None:
    rows = {row["run"]: row for row in read_csv(QUEUE) if row["run"].startswith(prefix)}
    own = {run.removeprefix(prefix): row for run, row in rows.items()}
    if prefix == "c10-":  # other networks and data have no page yet; not every variant has a row
        own = {n: row for n, row in own.items() if row["state"] != "cut" and "modern-" not in n}
        assert set(own) < set(central.VARIANTS)
    else:
        assert set(own) == set(central.VARIANTS)
    for name, row in own.items():
        assert (page / name / "report.json").exists() == (row["state"] == "done"), name
    folders = {f.parent.name for f in page.glob("*/report.json")}
    assert folders <= set(own)
    shown = {row["variant"] for row in read_csv(page / "comparison.csv")}
    assert shown == {central.VARIANTS[name] for name in folders}
    assert {row["variant"] for row in read_csv(page / "cost.csv")} == shown
