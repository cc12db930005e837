"""The documentation site: every public name has its words, every page is reached, no dead link."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    p for f in ("spikeformer_lt", "models", "datasets") for p in sorted((ROOT / f).rglob("*.py"))
]
COMPILED = "spikeformer_lt/layers/kernels"  # numba's: each file's head tells what its functions do
NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


BANNED = r"\b(doors?|anew|lies|stands|amid|strangers|nobody|shall)\b"  # for what they are not
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_in_plain_words(page: Path) -> None:
    """A text says what it is, not that something stands, lies or is drawn anew."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    found = [found[0] for found in re.finditer(rf".*{BANNED}.*", prose, re.IGNORECASE)]
    assert not found, found


def test_the_release_check_names_the_last_reading_of_the_claims(tmp_path: Path) -> None:
    """By the recipe's own line, which fails without a date and a commit."""
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\nrelease-check:")[2]
    line = recipe.partition("\t@")[2].partition("\n\t@")[0].replace("\\\n", "")
    claims = (ROOT / "docs" / "claims.md").read_text("utf-8")
    assert claims.count("\n| ") == 1 + int(re.findall(r"^\| (\d+) ", claims, re.MULTILINE)[-1])
    for text, status, told in ((claims, 0, ", commit "), ("# Claims\n", 1, "it needs a line")):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / "claims.md").write_text(text, "utf-8")
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == status and told in done.stdout, done
        assert done.stdout.startswith("docs/claims.md: ")


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


class Page(HTMLParser):
    """The anchors of a page, and what it leads to or loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := known.get(name))}
        self.targets |= {value for name in ("href", "src") if (value := known.get(name))}
        loaded = known.get("src") or (known.get("href") if tag == "link" else None)
        assert not re.match(r"(https?:)?//", loaded or ""), f"a page loads {loaded}"


def crawl(start: Path) -> tuple[set[Path], list[str]]:
    """Pages that can be reached from one, and the links that lead nowhere or out of the site."""
    pages, dead, waiting = {start: Page(start)}, [], [start]
    while waiting:
        here = waiting.pop()
        for target in sorted(pages[here].targets):
            address, _, anchor = unquote(target).partition("#")
            if re.match(r"(data|mailto|javascript|https?):", address):
                continue
            path = (here.parent / address.partition("?")[0]).resolve() if address else here
            if not path.is_file():
                dead.append(f"{here.name}: {target}")
            elif path.suffix == ".html":
                if path not in pages:
                    pages[path] = Page(path)
                    waiting.append(path)
                if anchor and anchor not in pages[path].anchors:
                    dead.append(f"{here.name}: {target}")
    return set(pages), dead


def test_the_crawl_finds_dead_links_and_lost_pages(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a><a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<a id="x" href="a.html#y">a</a><a href="https://a.b">')
    (tmp_path / "d.html").write_text("")
    found, dead = crawl(tmp_path / "a.html")
    assert {path.name for path in found} == {"a.html", "b.html"}
    assert dead == ["a.html: c.html", "b.html: a.html#y"]
    (tmp_path / "d.html").write_text('<script src="https://a.b/c.js"></script>')
    with pytest.raises(AssertionError, match="loads https"):
        crawl(tmp_path / "d.html")


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on quiet cores
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("pdoc", "material")),
    reason="the extra docs: mkdocs-material and pdoc",
)
def test_every_page_of_the_site_is_reached_and_no_link_is_dead(tmp_path: Path) -> None:
    site = tmp_path / "site"
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found, dead = crawl(site / "index.html")
    assert dead == []
    made = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert made == {
        path.relative_to(site).as_posix() for path in found if path.is_relative_to(site)
    }
    pages = {name.removeprefix("api/") for name in made if name.startswith("api/")}
    names = ("ticket", "models/spikformer", "tickets", "reports", "export")
    assert {f"spikeformer_lt/{name}.html" for name in names} | {"spikeformer_lt.html"} <= pages
    for door in sorted((ROOT / "spikeformer_lt").glob("*/__init__.py")):
        page = (site / "api" / "spikeformer_lt" / f"{door.parent.name}.html").read_text()
        public = importlib.import_module(f"spikeformer_lt.{door.parent.name}").__all__
        assert [name for name in public if f'id="{name}"' not in page] == [], door.parent.name
