"""The pages that name tests name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
TEXT = (DOCS / "faults.md").read_text("utf-8")
ALL = "".join(page.read_text("utf-8") for page in sorted(DOCS.rglob("*.md")))
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", ALL)))


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > 60
    missing = [
        f"{file}::{name}"
        for file, name in NAMED
        if not re.search(rf"^def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE)
    ]
    assert not missing


def test_every_fault_of_the_page_has_a_behaviour_and_a_test_or_says_why_not() -> None:
    rows = [line.split(" | ") for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]
    numbers = [int(row[0].strip("| ")) for row in rows]
    assert sorted(numbers) == [*range(1, 51)]
    without = [n for n, row in zip(numbers, rows, strict=True) if "::" not in row[-1]]
    assert without == [44]
