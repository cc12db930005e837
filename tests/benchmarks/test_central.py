"""benchmarks/central.py: the page of CIFAR-10 says what the tables of its folder say."""

from __future__ import annotations

import central
from run_queue import QUEUE, read_csv


def test_the_pages_table_is_that_of_its_folder() -> None:
    page = (central.PAGE / "README.md").read_text("utf-8")
    shown = page.partition(central.MARKS[0])[2].partition(central.MARKS[1])[0]
    assert shown.strip().split("\n") == central.lines()


def test_each_row_of_the_queue_has_a_variant_and_files_when_it_is_done() -> None:
    rows = {row["run"]: row for row in read_csv(QUEUE) if row["run"].startswith(central.PREFIX)}
    names = {run.removeprefix(central.PREFIX) for run in rows}
    assert names == set(central.VARIANTS)
    for run, row in rows.items():
        done = central.PAGE / run.removeprefix(central.PREFIX) / "report.json"
        assert done.exists() == (row["state"] == "done"), run
    costs = {row["variant"] for row in read_csv(central.PAGE / "cost.csv")}
    assert costs == {row["variant"] for row in read_csv(central.PAGE / "comparison.csv")}
