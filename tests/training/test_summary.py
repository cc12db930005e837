from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.run import Summary


def table(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_rows_are_on_disk_after_each_append(tmp_path):
    path = tmp_path / "summary.csv"
    summary = Summary(path)
    assert len(summary) == 0
    assert not path.exists()
    for epoch in range(3):
        summary.append({"epoch": epoch, "loss": 1 / (epoch + 1)})
        assert len(table(path)) == epoch + 2
    assert path.read_bytes() == b"epoch,loss\n0,1.0\n1,0.5\n2,0.3333333333333333\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.csv"]


def test_numbers_come_back_exactly_whatever_library_they_are_of(tmp_path):
    summary = Summary(tmp_path / "s.csv")
    values = [0.1 + 0.2, -1e-300, np.float64(0.1), np.float32(0.5), np.int64(3), torch.tensor(2.5)]
    summary.append({f"c{i}": value for i, value in enumerate(values)})
    cells = table(summary.path)[1]
    assert [float(cell) for cell in cells] == [float(value) for value in values]
    summary.append({"c0": float("nan"), "c1": None, "c2": True})
    assert table(summary.path)[2][:3] == ["nan", "", "True"]


def test_a_new_column_goes_to_the_right_and_the_others_keep_their_places(tmp_path):
    summary = Summary(tmp_path / "s.csv")
    summary.append({"phase": "a", "loss": 1})
    summary.append({"val": 2, "loss": 3, "phase": "b"})
    summary.append({"loss": 4})
    assert table(summary.path) == [
        ["phase", "loss", "val"],
        ["a", "1", ""],
        ["b", "3", "2"],
        ["", "4", ""],
    ]


def test_a_killed_run_that_is_resumed_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    rows = [{"epoch": e, "loss": math.exp(-e), **({"val": e} if e % 2 else {})} for e in range(6)]
    straight = Summary(tmp_path / "straight.csv")
    for row in rows:
        straight.append(row)
    killed = Summary(tmp_path / "killed.csv")
    for row in rows[:4]:
        killed.append(row)
    resumed = Summary(tmp_path / "killed.csv")
    assert len(resumed) == 4
    resumed.truncate(2)
    assert len(table(resumed.path)) == 3
    for row in rows[2:]:
        resumed.append(row)
    assert resumed.path.read_bytes() == straight.path.read_bytes()


def test_truncating_to_the_rows_that_are_there_writes_nothing(tmp_path):
    summary = Summary(tmp_path / "s.csv")
    summary.truncate(0)
    assert not summary.path.exists()


def test_rows_that_were_lost_leave_gaps_so_that_later_counts_fit(tmp_path, caplog):
    summary = Summary(tmp_path / "s.csv")
    summary.append({"epoch": 0, "loss": 1})
    summary.truncate(3)
    assert "has lost 2 of its 3 rows" in caplog.text
    summary.append({"epoch": 3, "loss": 4})
    again = Summary(summary.path)
    assert len(again) == 4
    again.truncate(3)
    assert table(summary.path) == [["epoch", "loss"], ["0", "1"], ["", ""], ["", ""]]


@settings(max_examples=40)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_no_text_becomes_a_formula_a_second_line_or_a_second_cell(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("csv") / "s.csv"
    summary = Summary(path)
    summary.append({f"c{i}": text for i, text in enumerate(texts)})
    lines = path.read_text().split("\n")
    assert len(lines) == 3
    cells = table(path)[1]
    assert len(cells) == len(texts)
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in cells)
    before = path.read_bytes()
    again = Summary(path)
    again.append({"c0": 1})
    again.truncate(1)
    assert path.read_bytes() == before, "reading and writing again changes nothing"


def test_a_hostile_column_name_is_disarmed_too(tmp_path):
    summary = Summary(tmp_path / "s.csv")
    summary.append({"=cmd|' /C calc'!A0": 1, "two\nlines": 2})
    assert table(summary.path)[0] == ["'=cmd|' /C calc'!A0", "two\\nlines"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2,3\n", "row 2: 3 cells under 2 columns"),
        (b"a,a\n1,2\n", "under 2 columns"),
        (b'a,b\n"1,2\n', "not a CSV table"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_a_file_that_is_no_table_of_ours_is_refused_and_kept(tmp_path, data, message):
    path = tmp_path / "s.csv"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        Summary(path)
    assert path.read_bytes() == data


def test_a_folder_in_the_place_of_the_file_is_an_error_with_its_path(tmp_path):
    summary = Summary(tmp_path / "s.csv")
    summary.path.mkdir()
    with pytest.raises(ConfigError, match=r"cannot write .*s\.csv"):
        summary.append({"a": 1})
    with pytest.raises(ConfigError, match=r"cannot read .*s\.csv"):
        Summary(summary.path)
