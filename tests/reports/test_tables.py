"""Tables that align, and cells that no spreadsheet runs."""

from __future__ import annotations

import csv

from spikeformer_lt.reports.page import markdown_table, write_csv


def test_a_markdown_table_is_aligned_and_escaped():
    text = markdown_table(["name", "x"], [["a|b", "1"], ["long name", "22"]])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "a\\|b" in lines[2]
    assert set(lines[1]) == {"|", "-"}


def test_a_formula_in_a_cell_is_defused(tmp_path):
    write_csv(tmp_path / "t.csv", ["a", "b"], [["=cmd()", 1.5], ["x,y", -2]])
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["a", "b"], ["'=cmd()", "1.5"], ["x,y", "-2"]]
