"""What reports are written as: Markdown tables, CSV files and self-contained HTML pages."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeformer_lt.disk import csv_cell, write_atomic
from spikeformer_lt.errors import DataError, name_of, shown

if TYPE_CHECKING:
    from jinja2 import Environment

Table = tuple[list[str], list[list[str]]]  # header and rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; bars inside cells are escaped."""
    cells = [[c.replace("|", "\\|") for c in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
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


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a run's table; a DataError unless each cell but the phase is a number or empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file, restkey="", restval="", strict=True))
        for line, row in enumerate(table, 2):
            if "phase" not in row or "" in row:
                raise ValueError(f"the cells of row {line} are not those of the columns")
            for name, cell in row.items():
                if name != "phase" and cell:
                    float(cell)
    except (OSError, ValueError, csv.Error) as fault:
        what = shown(str(fault), 200)
        raise DataError(f"{name_of(path)} is no table of a run: {what}; move it away") from None
    return table


TEMPLATES = Path(__file__).with_name("templates")
TYPES = {".png": "image/png", ".gif": "image/gif", ".csv": "text/csv"}


def write_page(path: Path, template: str, pictures: Iterable[Path] = (), **content: Any) -> Path:
    """Write a self-contained HTML page, atomically: pictures and script inside it, no server.

    `template`, a file of ``templates/``, escapes every value of `content` (``title`` and others).
    It shows `pictures`, PNG and GIF, by name, or draws the CSV file beside one as a chart. The
    page forbids the browser to load anything and to run another script than its own. DataError if
    a picture is of another kind or unread.
    """
    files = {picture.name: picture for picture in pictures}
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content |= {"sections": [], "drawn": files, "picture": partial(_picture, files)}
    content |= {"numbers": lambda name: _numbers(files[name].with_suffix(".csv"))}
    content |= {"style": style, "script": script, "script_sha256": digest}
    page = _templates().get_template(template).render(**content)
    write_atomic(path, page.encode(), DataError)
    return path


def _picture(files: Mapping[str, Path], name: str, form: str = "") -> str:
    """A picture as a data URI, or the numbers beside it (csv), which can be missing."""
    numbers = files[name].with_suffix(".csv")
    return _embedded(files[name]) if not form else _embedded(numbers) if numbers.is_file() else ""


def _embedded(path: Path) -> str:
    """A file as a data URI."""
    kind = TYPES.get(path.suffix)
    if kind is None:
        raise DataError(f"{shown(path.name)} is no picture of a report: {', '.join(TYPES)}")
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as fault:
        raise DataError(f"{shown(str(path))} cannot be read: {fault.strerror}") from None


def _numbers(path: Path) -> tuple[list[str], list[list[float | str]]]:
    """Header and rows of the CSV file beside a picture; none without the file."""
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, [[_number(cell) for cell in row] for row in rows]


def _number(cell: str) -> float | str:
    with contextlib.suppress(ValueError):
        return value if math.isfinite(value := float(cell)) else ""
    return cell


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
