"""The leaderboard: its page is up to date, and no published row is beside what it is not."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spikeformer_lt import list_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published() -> list[dict[str, str]]:
    with (ROOT / "models" / "published.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_is_what_its_sources_give() -> None:
    command = [sys.executable, "-P", "benchmarks/leaderboard.py", "--check"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "up to date\n"), ended.stderr


def test_a_published_row_says_where_it_is_from_and_what_chose_it(
    published: list[dict[str, str]],
) -> None:
    assert len({tuple(row.values()) for row in published}) == len(published)
    models = [(row["model"], row["data"], row["T"]) for row in published if row["model"]]
    assert {name for name, *_ in models} <= set(list_models())
    assert len(set(models)) == len(models), "a model has one published accuracy a data set"
    for row in published:
        assert re.search(r"arXiv \d{4}\.\d{5}", row["source"]), row
        assert row["best on test"] in ("yes", "no", "not said"), row
        assert 10 < float(row["test accuracy %"]) < 100, row
        assert not row["weights removed %"] or 0 <= float(row["weights removed %"]) < 100, row
        assert (row["method"] == "dense") <= (float(row["weights removed %"] or 1) == 0), row


def test_digits_have_no_published_row_beside_them(published: list[dict[str, str]]) -> None:
    page = (ROOT / "docs" / "results" / "leaderboard.html").read_text("utf-8")
    beds = re.findall(r"<h2[^>]*>([^<]*test bed[^<]*)</h2>(.*?)(?=<h2|</main>)", page, re.S)
    assert len(beds) == 3 and not {name for name, _ in beds} & {row["data"] for row in published}
    assert all("arXiv" not in text for _, text in beds)
    assert "-inf" not in page
