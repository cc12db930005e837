"""Write the appendix of docs/faults.md from the tests: python .ci/faults.py [--write].

A test shows the faults that its marker numbers: ``@pytest.mark.fault(1, 2)``. Without ``--write``
the exit status says whether the page is current.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
HEAD = """## Appendix: the test that shows each fault

Written by `.ci/faults.py` from the marker `fault` of the tests; paths are under `tests/`.
"""


def marked(tests: Path) -> dict[int, list[str]]:
    """Tests by the number of the fault that they show, as path::name."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    name = f"{path.relative_to(tests).as_posix()}::{node.name}"
                    for number in mark.args:
                        found[ast.literal_eval(number)].append(name)
    return dict(sorted(found.items()))


def rows(text: str) -> list[int]:
    """Numbers of the faults that the page lists."""
    return [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]


def with_appendix(text: str, found: dict[int, list[str]]) -> str:
    """The page with its appendix written anew."""
    lines = [
        f"\n- **{number}**\n" + "".join(f"  `{name}`\n" for name in found[number])
        for number in found
    ]
    return text.partition(HEAD.splitlines()[0])[0].rstrip() + "\n\n" + HEAD + "".join(lines)


def main() -> int:
    """Compare or write the page."""
    text = PAGE.read_text("utf-8")
    made = with_appendix(text, marked(ROOT / "tests"))
    if "--write" in sys.argv:
        PAGE.write_text(made, "utf-8")
        return 0
    return int(made != text)


if __name__ == "__main__":
    sys.exit(main())
