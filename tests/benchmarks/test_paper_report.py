"""What is written: published beside ours, and never an unrun number."""

from __future__ import annotations

import csv

from paper_rows import ROWS, line
from papers.drops import NOISE, SAME, Line
from papers.report import budgets, effects, trend, write_table
from papers.tables import Effect, Table


def test_without_a_published_dense_the_first_level_is_the_reference() -> None:
    rows = [
        line("dense", None, None, 95.0),
        line("IMP", 0.5, 92.0, 94.0),
        line("IMP", 0.9, 90.0, 60.0),
    ]
    words = trend(rows)
    assert (
        "IMP at sparsity 0.5 / 0.9, since its first level: published on cifar10 0.00 /" in words[0]
    )
    assert words[0].endswith("2.00, ours on digits 0.00 / 34.00")
    assert words[-1].startswith("rows with both drops: 1 same direction, 0 opposite")


def test_with_a_published_dense_the_whole_curve_is_against_it() -> None:
    assert trend(ROWS)[0] == (
        "net IMP at sparsity 0.5 / 0.9, against dense: published on cifar10 -0.50 / 3.00, "
        "ours on digits 0.00 / 14.50"
    )


def test_effects_stand_beside_ours_or_not_run() -> None:
    rows = [line("C", t, None, *ours, axis="T", against="") for t, ours in
            ((1, (70.0,)), (4, ()), (8, (80.0,)))]  # fmt: skip
    table = Table("t", "A title", tuple(r.cell for r in rows), (), (Effect("net", "T", 1, 8, 2.3),))
    assert "T 1 to 8 in net: published up to +2.3 points, ours +10.00 ±" in effects(table, rows)[0]
    assert effects(table, [*rows[:2], line("C", 8, None, axis="T", against="")])[0].endswith(
        "not run"
    )


def test_what_is_written_holds_every_row_and_no_unrun_number(tmp_path) -> None:
    table = Table("t", "A title", tuple(r.cell for r in ROWS), ("A note.",))
    text = write_table(tmp_path, table, "digits", ROWS)
    assert (tmp_path / "t-digits.md").read_text() == text
    with open(tmp_path / "t-digits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [
        "dense", "IMP, sparsity 0.5", "IMP, sparsity 0.9", "EB, sparsity 0.5", "EB, sparsity 0.9"
    ]  # fmt: skip
    assert [row["ours %"] for row in rows] == [
        "96.00 ± 1.41", "96.00 ± 0.71", "81.50 ± 2.12", "not run", "60.00"
    ]  # fmt: skip
    unrun = rows[3]
    assert (unrun["published %"], unrun["published drop"]) == ("92.0", "1.0")
    ours = ("95 % interval", "our drop", "±", "ours since first", "direction")
    assert {unrun[c] for c in ours} == {"not run"}
    assert rows[4]["95 % interval"] == "[55.13, 64.68]"  # Wilson's, 240 of 400
    assert rows[0]["95 % interval"] == "[83.29, 100.00]"  # t, of two seeds
    assert (unrun["ours on"], unrun["seeds"]) == ("not run", "0")
    assert rows[4]["direction"] == SAME and rows[1]["direction"] == NOISE
    assert rows[0]["ours on"] == "digits; toy T 5; 8 epochs"
    assert "4 of 5 rows" in text and "- A note." in text and "7 runs on a processor" in text
    with open(tmp_path / "t-digits-runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 7 and runs[0]["run id"] == "toy-dense" + "None"
    assert runs[0]["command"] == "recipe.py --x 1"
    assert (tmp_path / "t-digits.png").stat().st_size > 5000


def test_rows_of_another_budget_are_named() -> None:
    dense, row = line("dense", None, 93.0, 95.0), line("IMP", 0.5, 92.0, 94.0)
    for each, epochs in ((dense, 8.0), (row, 16.0)):
        each.runs[0].report["epochs_trained"] = epochs
    assert budgets([dense, row])[0].endswith(
        "t cifar10 net IMP sparsity 0.5: 16.0 epochs against 8.0."
    )
    row.runs[0].report["epochs_trained"] = 8.0
    assert budgets([dense, row]) == []


def test_a_refused_run_is_named(tmp_path) -> None:
    cell = ROWS[1].cell
    lines = [ROWS[0], Line(cell, missing="is of another configuration: epochs: 80 -> 8")]
    text = write_table(tmp_path, Table("t", "A title", (ROWS[0].cell, cell)), "digits", lines)
    assert "found and not taken\n\n- t cifar10 net IMP sparsity 0.5: is of another" in text
