"""What reports are written as: Markdown tables, CSV files and self-contained HTML pages."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeformer_lt.disk import csv_cell, write_atomic
from spikeformer_lt.errors import DataError, shown

if TYPE_CHECKING:
    from jinja2 import Environment

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; bars inside cells are escaped."""
    cells = [[c.replace("|", "\\|") for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file atomically; cells that a spreadsheet would run are defused."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[csv_cell(c) for c in row] for row in rows])
    write_atomic(path, text.getvalue().encode())


TYPES = {".png": "image/png", ".gif": "image/gif"}


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


@dataclass
class Section:
    """A heading and what follows it, in the order of the page."""

    title: str
    parts: list[tuple[str, Any]] = field(default_factory=list)
    """(text, words), (notice, words), (table, header and rows) or (image, source and caption)."""


class Page:
    """One self-contained HTML page: text, tables and pictures inside it, no script, no server.

    Args:
        title: heading and window title; every text is escaped.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.sections = [Section("")]

    def section(self, title: str) -> None:
        """Begin a section; it gets a link at the top."""
        self.sections.append(Section(title))

    def text(self, words: str, notice: bool = False) -> None:
        """Add a paragraph; a notice stands out."""
        self._add("notice" if notice else "text", words)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; the first column holds names. A wide one scrolls, by keys too."""
        self._add("table", {"header": header, "rows": rows})

    def image(self, path: Path, caption: str) -> None:
        """Add a picture to the page itself; the caption is also its alternative text.

        Raises:
            DataError: neither PNG nor GIF, or it cannot be read.
        """
        kind = TYPES.get(path.suffix)
        if kind is None:
            raise DataError(f"{shown(path.name)} is no picture of a report: {', '.join(TYPES)}")
        try:
            data = base64.b64encode(path.read_bytes()).decode()
        except OSError as fault:
            raise DataError(f"{shown(str(path))} cannot be read: {fault.strerror}") from None
        self._add("image", {"source": f"data:{kind};base64,{data}", "caption": caption})

    def _add(self, kind: str, part: Any) -> None:
        self.sections[-1].parts.append((kind, part))

    def render(self) -> str:
        """The whole page."""
        template = _templates().get_template("page.html")
        return template.render(title=self.title, sections=self.sections)

    def write(self, path: Path) -> None:
        """Write the page atomically."""
        write_atomic(path, self.render().encode(), DataError)
