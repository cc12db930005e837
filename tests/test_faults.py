"""docs/faults.md lists every fault with the tests that show it; pages name tests that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
PAGE = (DOCS / "faults.md").read_text("utf-8")

_spec = importlib.util.spec_from_file_location("faults", TESTS.parent / ".ci" / "faults.py")
assert _spec and _spec.loader
faults = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)


def test_every_test_that_a_page_names_exists() -> None:
    text = "\n".join(path.read_text("utf-8") for path in DOCS.rglob("*.md"))
    named = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", text)))
    assert len(named) > 60
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (TESTS / file).is_file()
        or not re.search(rf"^def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE)
    ]
    assert not missing


def test_every_fault_of_the_page_is_shown_by_a_test_or_says_why_not() -> None:
    numbers = faults.rows(PAGE)
    assert len(numbers) == len(set(numbers)) and {*range(1, 51)} <= set(numbers)
    shown = faults.marked(TESTS)
    assert set(numbers) - set(shown) == {44}
    assert set(shown) <= set(numbers)


def test_the_appendix_is_current() -> None:
    assert faults.with_appendix(PAGE, faults.marked(TESTS)) == PAGE, "run .ci/faults.py --write"


def test_markers_become_an_appendix(tmp_path: Path) -> None:
    text = "@pytest.mark.fault(2, 1)\ndef test_a(): ...\n\n@pytest.mark.slow\ndef test_b(): ...\n"
    (tmp_path / "test_x.py").write_text(f"import pytest\n{text}")
    found = faults.marked(tmp_path)
    assert found == {1: ["test_x.py::test_a"], 2: ["test_x.py::test_a"]}
    page = faults.with_appendix("# Page\n", found)
    assert page.endswith("\n- **1**\n  `test_x.py::test_a`\n\n- **2**\n  `test_x.py::test_a`\n")
    assert faults.with_appendix(page, found) == page
