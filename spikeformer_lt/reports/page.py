"""What reports are written as: Markdown tables, CSV files and self-contained HTML pages."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeformer_lt.disk import csv_cell, write_atomic
from spikeformer_lt.errors import DataError, listed, name_of, shown

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
    content |= {"seen": seen, "style": style, "script": script, "script_sha256": digest}
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


Cells = Sequence[Sequence[float | str]]
Values = Iterable[tuple[str, float | str]]
MOST_TOLD = 8  # series or bars that an alternative text names one by one


def seen(spec: Mapping[str, Any] | None, header: Sequence[str], rows: Cells) -> str:
    """What a picture shows, in words for those who do not see it.

    `spec` is how the page draws the numbers beside it; None for a picture that is shown as it is.
    """
    told = _shown(tuple(header), rows) if spec is None else _drawn(spec, header, rows)
    return told[:1].upper() + told[1:]


def _drawn(spec: Mapping[str, Any], header: Sequence[str], rows: Cells) -> str:
    at = {name: i for i, name in enumerate(header)}
    if "xs" in spec:  # a choice of horizontal axes
        return _ends(spec["y"], ((str(row[0]), row[at[spec["y"]]]) for row in rows))
    if spec["kind"] == "xy":
        return _curves(spec, at, rows)
    if spec["kind"] == "bars":
        return _bars(spec, at, rows)
    if spec.get("share"):
        return _confusion(rows)
    if spec.get("square"):
        pairs = ((f"{row[0]} and {header[j]}", row[j]) for i, row in enumerate(rows)
                 for j in range(1, i + 1))  # fmt: skip
        return _ends(spec["value_label"], pairs)
    names = (spec["row"], *spec["columns"])
    cells = ((", ".join(f"{n} {_told(row[at[n]])}" for n in names), row[at[spec["value"]]])
             for row in rows)  # fmt: skip
    return _ends(spec["value_label"], cells)


def _told(value: float | str) -> str:
    """A cell in words: a number with four significant digits."""
    if isinstance(value, str):
        return value
    short = float(f"{value:.4g}")
    return f"{short:,.0f}" if abs(short) >= 1000 else f"{short:g}"


def _ends(what: str, values: Values) -> str:
    """The largest and the smallest of named values, which can be text or missing."""
    leads = [(name, re.match(r"-?[\d.]+(?:e-?\d+)?", str(value))) for name, value in values]
    known = [(float(lead[0]), name) for name, lead in leads if lead]
    if not known:
        return ""
    (low, least), (high, most) = (end(known, key=lambda one: one[0]) for end in (min, max))
    if low == high:
        return f"{what}: {_told(low)} in each of {len(known)}."
    return f"{what}: largest {_told(high)} ({most}), smallest {_told(low)} ({least})."


def _curves(spec: Mapping[str, Any], at: Mapping[str, int], rows: Cells) -> str:
    """Each series by its first, its last and, if it is another, its highest point."""
    series: dict[str, list[Sequence[float | str]]] = {}
    for row in rows:
        name = str(row[at[spec["series"]]]) if "series" in spec else ""
        series.setdefault(name, []).append(row)

    def point(row: Sequence[float | str]) -> str:
        y, x = row[at[spec["y"]]], row[at[spec["x"]]]
        note = f" ({spec['note']} {_told(row[at[spec['note']]])})" if "note" in spec else ""
        return _told(y) + (f" at {_told(x)}" if x != "" else " throughout") + note

    told = []
    for name, points in [*series.items()][:MOST_TOLD]:
        known = [row for row in points if isinstance(row[at[spec["y"]]], float)]
        top = max(known, key=lambda row: row[at[spec["y"]]], default=None)
        words = [point(row) for row in (known[:1] + known[-1:] if len(known) > 1 else known)]
        if top is not None and point(top) not in words:
            words.append(f"highest {point(top)}")
        title = name.replace("_", " ") if spec.get("words") else name
        told.append(f"{re.sub('^val ', 'validation ', title)} {', '.join(words)}".strip())
    more = f"; and {len(series) - MOST_TOLD} more" if len(series) > MOST_TOLD else ""
    return f"{spec['y_label']} against {spec['x_label']}: {'; '.join(told)}{more}."


def _bars(spec: Mapping[str, Any], at: Mapping[str, int], rows: Cells) -> str:
    """Every bar, with its parts together; of many the largest and the smallest, and dead ones."""
    sums: dict[str, float] = {}
    for row in rows:
        name, value = " ".join(str(row[at[n]]) for n in spec["labels"]), row[at[spec["value"]]]
        sums[name] = sums.get(name, 0.0) + (value if isinstance(value, float) else 0.0)
    if len(sums) <= MOST_TOLD:
        each = "; ".join(f"{name} {_told(value)}" for name, value in sums.items())
        return f"{spec['value_label']}: {each}."
    dead = [name for name, value in sums.items() if value == 0] if spec.get("dead") else []
    gone = f" {len(dead)} of {len(sums)} are dead: {listed(dead)}." if dead else ""
    return f"{len(sums)} bars; {_ends(spec['value_label'], sums.items())}{gone}"


def _confusion(rows: Cells) -> str:
    counts = [[float(cell or 0) for cell in row[1:]] for row in rows]
    right, total = sum(row[i] for i, row in enumerate(counts)), sum(map(sum, counts))
    known = [(i, row) for i, row in enumerate(counts) if sum(row)]
    shares = ((f"class {i}", 100 * row[i] / sum(row)) for i, row in known)
    wrong = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    often, true, taken = max(wrong, key=lambda one: one[0], default=(0, 0, 0))
    most = f" Most often taken for another: class {true} for {taken}, {_told(often)} times."
    return (
        f"{_told(right)} of {_told(total)} right. {_ends('Right by class, %', shares)}"
        + most * bool(wrong)
    )


def _shown(header: tuple[str, ...], rows: Cells) -> str:
    """What the numbers beside a picture of photographs, spikes or weights say."""
    if header == ("image", "label", "kept_tokens"):
        kept = [len(str(row[2]).split()) for row in rows]
        return f"{len(rows)} inputs; patches kept in each: {min(kept)} to {max(kept)}."
    if header == ("t", "off_events", "on_events"):
        each = ((f"step {_told(t)}", float(off) + float(on)) for t, off, on in rows)
        return _ends(f"events in {len(rows)} steps", each)
    if header == ("layer", "t", "neuron"):
        return _ends("spikes drawn", Counter(str(row[0]) for row in rows).items())
    if header == ("neuron", "t", "membrane", "spike"):
        fired = Counter[str]()
        for neuron, _, _, spike in rows:
            fired[f"neuron {_told(neuron)}"] += int(float(spike))
        levels = [float(row[2]) for row in rows]
        reach = f"membranes from {_told(min(levels))} to {_told(max(levels))}"
        return f"{reach}; spikes: {', '.join(f'{n} {c}' for n, c in fired.items())}."
    if header == ("filter", "plus", "zero", "minus"):
        sums = [sum(float(row[i]) for row in rows) for i in (1, 2, 3)]
        shares = (
            f"{_told(100 * n / sum(sums))} % {sign}" for n, sign in zip(sums, "+0-", strict=True)
        )
        empty = sum(not float(row[1]) + float(row[3]) for row in rows)
        return f"{', '.join(shares)}; {empty} of {len(rows)} filters are empty."
    return ""


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
