"""Confusion matrices over seeds."""

from __future__ import annotations

from spikeformer_lt.reports.comparison import Row, write_confusions


def test_seeds_add_up_and_runs_without_a_matrix_are_left_out(tmp_path):
    counts = ([[3, 1], [0, 6]], [[4, 0], [2, 4]])
    write_confusions(tmp_path, [Row("a b", [{}, *({"confusion": each} for each in counts)])])
    text = (tmp_path / "confusion.md").read_text()
    assert "2 seeds, 17 of 20 right (85.00 %; always the largest class: 60.00 %)" in text
    rows = (tmp_path / "confusion-a_b.csv").read_text().splitlines()[1:]
    assert rows == ["0,7,1", "1,2,10"]
