"""recipes/report.py, as a user runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.recipe


def test_a_run_and_a_comparison_get_one_page_each(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    ended = recipes.run("report", "--runs", finished.path, "--out", one, "--images", 16)
    assert (ended.code, ended.err) == (0, ""), ended.err
    text = (one / "report.html").read_text()
    assert finished.report["run_id"] in text
    assert f"{finished.report['test_accuracy']:.2f}" in text
    drawn = {path.name for path in (one / "plots").glob("*.png")}
    assert {"training.png", "confusion.png", "kept-patches.png", "epoch-rates.png"} <= drawn
    assert {"layer-epoch-rates.png", "raster.png", "membrane.png", "anytime.png"} <= drawn
    assert all((one / "plots" / name).with_suffix(".csv").exists() for name in drawn)
    assert (one / "report.html").stat().st_size < 2e6
    assert text.count("data:image/png") == len(drawn)
    assert "http://www.w3.org" in text and text.count("http") == 2  # names of SVG and CSP alone
    (one / "energy" / "energy.md").write_text("mine")
    ended = recipes.run("report", "--runs", finished.path, "--out", one, "--images", 16)
    assert "energy.md' is there, and not as this command wrote it" in ended.error
    both = tmp_path / "both"
    ticket = finished.path / "ticket"
    ended = recipes.run("report", "--runs", finished.path, ticket, "--out", both, "--images", 16)
    assert (ended.code, ended.err) == (0, ""), ended.err
    text = (both / "report.html").read_text()
    assert "a ticket without report.json" in text and "Comparison of tickets" in text


def test_what_is_missing_is_one_line(recipes: Any, finished: Any) -> None:
    assert "--runs DIR" in recipes.run("report").error
    assert "out" in recipes.run("report", "--runs", finished.path, finished.path).error
