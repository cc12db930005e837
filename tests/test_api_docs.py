"""The API reference: every public name has its words, and the pages can be made."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    p for f in ("spikeformer_lt", "models", "datasets") for p in sorted((ROOT / f).rglob("*.py"))
]
COMPILED = "spikeformer_lt/layers/kernels"  # numba's: each file's head tells what its functions do
NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def undocumented(source: str) -> list[str]:
    """Public classes, functions and methods without a docstring, and the module itself."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ["the module"]

    def visit(body: list[ast.stmt], where: str) -> None:
        for node in body:
            if not isinstance(node, NAMED) or node.name.startswith("_"):
                continue
            overloads = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
            if not ast.get_docstring(node) and not overloads & {"overload", "setter"}:
                found.append(f"{where}{node.name}")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{where}{node.name}.")

    visit(tree.body, "")
    return found


def test_every_public_name_is_documented() -> None:
    assert len(FILES) > 80
    faults = {
        str(p.relative_to(ROOT)): names
        for p in FILES
        if not str(p.relative_to(ROOT)).startswith(COMPILED)
        and (names := undocumented(p.read_text()))
    }
    assert not faults


def test_a_name_without_words_is_found() -> None:
    source = '"""M."""\nclass A:\n    """A."""\n    def f(self): pass\n    def _g(self): pass\n'
    assert undocumented(source) == ["A.f"]
    assert undocumented("def f(): pass") == ["the module", "f"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="the extra docs: pdoc")
def test_the_pages_are_made(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", str(ROOT / ".ci" / "api_docs.py"), str(tmp_path / "api")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    made = {p.relative_to(tmp_path / "api").as_posix() for p in (tmp_path / "api").rglob("*.html")}
    assert {
        "index.html",
        "spikeformer_lt/ticket.html",
        "spikeformer_lt/models/spikformer.html",
    } <= made
    assert len(made) > 80
    page = (tmp_path / "api" / "spikeformer_lt" / "ticket.html").read_text()
    assert "provenance" in page and "Raises" in page
