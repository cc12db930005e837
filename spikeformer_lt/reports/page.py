"""Tables as Markdown and CSV.

One self-contained HTML page: text, tables and pictures inside it, no script, no server.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from spikeformer_lt.disk import csv_cell, write_atomic
from spikeformer_lt.errors import DataError, shown

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


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: right; }
th:first-child { text-align: left; } tbody th { font-weight: normal; }
td, tbody th { white-space: nowrap; }
thead th { background: #f2f2f2; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; border: 1px solid #ddd; }
figcaption { color: #444; font-size: .9rem; }
.notice { border-left: 4px solid #D55E00; padding: .4rem .8rem; background: #fff6f0; }
nav a { margin-right: 1rem; } code { background: #f4f4f4; padding: 0 .2rem; }
"""
TYPES = {".png": "image/png", ".gif": "image/gif"}


class Page:
    """Collects parts and writes them as one file.

    Args:
        title: heading and window title; every text is escaped.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._sections: list[str] = []

    def section(self, title: str) -> None:
        """Begin a section; it gets a link at the top."""
        self._sections.append(title)
        number = len(self._sections)
        self._parts.append(f'<h2 id="s{number}">{html.escape(title)}</h2>')

    def text(self, words: str, notice: bool = False) -> None:
        """Add a paragraph; a notice stands out."""
        mark = ' class="notice"' if notice else ""
        self._parts.append(f"<p{mark}>{html.escape(words)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; the first column holds names. A wide one scrolls, by keys too."""
        head = "".join(f'<th scope="col">{html.escape(str(cell))}</th>' for cell in header)
        body = "".join(
            "<tr>" + "".join(
                f'<th scope="row">{html.escape(str(cell))}</th>' if at == 0
                else f"<td>{html.escape(str(cell))}</td>" for at, cell in enumerate(row)
            ) + "</tr>"
            for row in rows
        )  # fmt: skip
        section = html.escape(self._sections[-1] if self._sections else self.title)
        self._parts.append(
            f'<div class="wide" role="region" tabindex="0" aria-label="Table: {section}"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def image(self, path: Path, caption: str) -> None:
        """Add a picture, inside the page; the caption is also its text for who cannot see it.

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
        words = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{words}" src="data:{kind};base64,{data}">'
            f"<figcaption>{words}</figcaption></figure>"
        )

    def render(self) -> str:
        """The whole page."""
        links = "".join(
            f'<a href="#s{i}">{html.escape(name)}</a>' for i, name in enumerate(self._sections, 1)
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>"
            f'<main><h1>{html.escape(self.title)}</h1><nav aria-label="Sections">{links}</nav>'
            + "\n".join(self._parts) + "</main></body></html>\n"
        )  # fmt: skip

    def write(self, path: Path) -> None:
        """Write it, all at once or not at all."""
        write_atomic(path, self.render().encode(), DataError)
