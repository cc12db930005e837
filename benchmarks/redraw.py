"""Draws every picture of docs/results again from the tables beside it; nothing is trained.

python benchmarks/redraw.py                # all of them
python benchmarks/redraw.py curves scaling # those of folders whose path has one of these words
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import scaling
import sparsity_clock
from papers.pictures import draw_marks
from papers.tables import TABLES

from spikeformer_lt.export.file import kept_picture, read_packed
from spikeformer_lt.reports.comparison import series_and_rate
from spikeformer_lt.reports.plots import plot_curves, plot_training
from spikeformer_lt.reports.run_page import samples_told

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
DATA = {"curves": ("digits", 1293, 359), "tickets-digits": ("digits", 1293, 359),
        "tickets-cifar10": ("cifar10", 5000, 10_000)}  # fmt: skip
"""Folder of a comparison -> its data set, training samples and test samples."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curve(picture: Path, out: Path) -> None:
    """Curves of a comparison: x from the table of the picture, accuracies from runs.csv."""
    single: dict[str, list[tuple[float, list[float]]]] = {}
    seeds, runs = set(), rows_of(picture.with_name("runs.csv"))
    for variant in dict.fromkeys(row["variant"] for row in runs):
        name, rate = series_and_rate(variant)
        own = [row for row in runs if row["variant"] == variant]
        seeds |= {row["seed"] for row in own}
        if rate:
            accuracies = [float(row["test accuracy %"]) for row in own]
            single.setdefault(name, []).append((float(rate), accuracies))
    table = rows_of(picture.with_suffix(".csv"))
    series: dict[str, list[tuple[float, list[float]]]] = {}
    for name in dict.fromkeys(row["series"] for row in table if row["x"]):
        points = [row for row in table if row["series"] == name]
        for row, (_, values) in zip(points, sorted(single[name]), strict=True):
            assert math.isclose(sum(values) / len(values), float(row["mean"]), abs_tol=1e-3), row
            series.setdefault(name, []).append((float(row["x"]), values))
    (dense,) = (float(row["mean"]) for row in table if not row["x"])
    data, train, count = DATA[picture.parent.name]
    level = picture.stem.removeprefix("curve-").replace("-", " ")
    plot_curves(
        out / picture.name, series, x_label=f"{level} removed (fraction)",
        y_label="test accuracy (%)", reference=dense, count=count,
        title=samples_told(data, train, seeds),
    )  # fmt: skip


def training(picture: Path, out: Path) -> None:
    """Training curves of a run, from its summary.csv; samples as its log told them."""
    report = json.loads(picture.with_name("report.json").read_text("utf-8"))
    log = picture.with_name("log.txt")
    told = re.search(r"data \S+ (\d+) train", log.read_text("utf-8")) if log.is_file() else None
    count = int(told[1]) if told else None
    title = samples_told(report["dataset"], count, [report["seed"]])
    plot_training(picture.with_name("summary.csv"), out, title)


def paper(picture: Path, out: Path) -> None:
    """Published and own changes of one of the papers' tables, from its -picture.csv."""
    name = next(name for name in TABLES if picture.stem.startswith(name))
    marks = [
        (m["data"], m["network"], m["method"], m["axis"], float(m["level"]), m["whose"],
         float(m["change"]), float(m["half interval"]))
        for m in rows_of(picture.with_name(f"{picture.stem}-picture.csv"))
    ]  # fmt: skip
    told = [(row["ours on"], int(row["seeds"])) for row in rows_of(picture.with_suffix(".csv"))]
    draw_marks(out / picture.name, TABLES[name], marks, told)


def clock(picture: Path, out: Path) -> None:
    """Time against sparsity."""
    sparsity_clock.draw(rows_of(picture.with_suffix(".csv")), out / picture.name)


def grown(picture: Path, out: Path) -> None:
    """Time against sizes; the committed picture shows processor time."""
    scaling.draw(rows_of(picture.with_suffix(".csv")), "cpu_ms", out / picture.name)


def shares(picture: Path, out: Path) -> None:
    """What a packed ticket keeps."""
    (out / picture.name).write_text(kept_picture(read_packed(picture.parent)), "utf-8")


HOW: dict[str, Callable[[Path, Path], None]] = {
    "curve-*.png": curve, "training.png": training, "paper-tables/*.png": paper,
    "sparsity_clock*.png": clock, "scaling.png": grown, "kept.svg": shares,
}  # fmt: skip
"""Pattern of a picture's path -> what draws it into a folder."""


def pictures() -> Iterator[tuple[Path, Callable[[Path, Path], None]]]:
    """Every committed picture and what draws it; StopIteration for one that nothing draws."""
    for path in sorted(p for p in RESULTS.rglob("*") if p.suffix in (".png", ".svg", ".gif")):
        yield path, next(how for pattern, how in HOW.items() if path.match(pattern))


def main() -> None:
    """Draw them in place."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="parts of paths; none is all")
    words = parser.parse_args().words
    names = {str(path.relative_to(RESULTS)): (path, draw) for path, draw in pictures()}
    if lost := [word for word in words if not any(word in name for name in names)]:
        parser.error(f"no picture has {' or '.join(lost)} in its path")
    for name, (path, draw) in names.items():
        if not words or any(word in name for word in words):
            with TemporaryDirectory() as place:
                draw(path, Path(place))
                path.write_bytes((Path(place) / path.name).read_bytes())
            print(name)


if __name__ == "__main__":
    main()
