"""Published accuracies beside ours: docs/results/leaderboard.html and the tables of its README.

python benchmarks/leaderboard.py            # from models/published.csv and our result folders
python benchmarks/leaderboard.py --check    # exit status 1 if the files are not what they would be
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spikeformer_lt.reports.page import write_page
from spikeformer_lt.reports.statistics import accuracy_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PUBLISHED = ROOT / "docs" / "results", ROOT / "models" / "published.csv"
START, END = "<!-- leaderboard: benchmarks/leaderboard.py -->", "<!-- end of the leaderboard -->"
HEADER = (
    "network", "method", "T", "weights (M)", "test accuracy %", "95 % interval",
    "weights removed %", "best on test", "also", "cost", "by",
)  # fmt: skip
SHORT = ("network", "method", "test accuracy %", "weights removed %", "cost", "by")
OURS = {
    "cifar10": ("CIFAR-10", "Spikformer-2-96", "4", "0.37", "45,000 images x 10 epochs"),
    "cifar10-30": ("CIFAR-10", "Spikformer-2-96", "4", "0.37", "45,000 images x 30 epochs"),
    "tickets-cifar10": (
        "CIFAR-10", "spiking VGG, narrow", "5", "0.03", "5,000 images x 8 epochs"
    ),
    "dvs128-objects": ("DVS128 objects", "Spikformer-2-64", "8", "0.13", "60 epochs"),
    "poker-dvs": ("Poker-DVS", "Spikformer-2-64", "8", "0.13", "60 epochs"),
    "tickets-digits": ("digits (test bed)", "Spikformer-2-64", "4", "0.13", "12 epochs"),
    **{
        f"families/{name}": ("digits (test bed)", network, "4", size, "20 epochs")
        for name, network, size in (
            ("spikformer", "Spikformer-2-64", "0.13"),
            ("spikingformer", "Spikingformer-2-64", "0.13"),
            ("sdt", "Spike-Driven Transformer-2-64", "0.13"),
            ("qkformer", "QKFormer, width 64", "0.12"),
            ("maxformer", "Max-Former, width 64", "0.11"),
        )
    },
    "ablation": ("digits (test bed)", "Spikformer-2-64", "4", "0.13", "12 epochs"),
    "moving-digits": (
        "moving digits (test bed, simulated)", "Spikformer-2-64", "8", "0.13", "20 epochs"
    ),
    "moving-gestures": (
        "moving gestures (test bed, simulated)", "Spikformer-2-64", "8", "0.13", "60 epochs"
    ),
}  # fmt: skip
"""Folder -> data set, network, T, millions of weights and what each of its rows cost."""
LONGER = {
    ("tickets-cifar10", "imp"): "5,000 images x 9 epochs",
    ("tickets-cifar10", "edge-popup"): "5,000 images x 16 epochs of scores",
    ("tickets-cifar10", "biprop"): "5,000 images x 16 epochs of scores",
    ("ablation", "sequential"): "18 epochs",
    ("ablation", "reverse"): "18 epochs",
    ("ablation", "literal Algorithm 1"): "18 epochs",
}
NETWORKS = {
    (folder, "ReLU, T 1"): ("Spikformer-2-96 with ReLU (ANN)", "1")
    for folder in ("cifar10", "cifar10-30")
}
"""Network and T of rows that begin so, where they are others."""
ABOUT = {
    "CIFAR-10": "Ours are small networks of a few epochs, most on a part of the images: they "
    "stand beside the published ones to show the distance, and are no attempt at them.",
    "DVS128 objects": "Real recordings of seven objects, not the gestures of DVS128 Gesture.",
}
NOTICES = (
    "Best on test: the weights, or the epoch, were chosen by the test accuracy that is printed. "
    "Ours never are: validation chooses, and test is read once.",
    "A published accuracy has no interval: it is one number of a paper or of an author's log. "
    "The papers count the removed among their prunable weights, we among all.",
    "An empty cell was not said, or not measured.",
)


def published() -> list[dict[str, str]]:
    """The rows of published.csv under the names of the page's columns, with their data set."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            **row,
            "by": row["source"],
            "weights (M)": row["params (M)"],
            "95 % interval": "",
        }
        for row in rows
    ]


def ours() -> list[dict[str, str]]:
    """Our rows, read from the tables that the recipes wrote."""
    found = []
    for name, method in (("dense", "dense"), ("multisp", "MultiSp")):
        report = json.loads((RESULTS / "cifar10-10k" / name / "report.json").read_text("utf-8"))
        removed = report["sparsity"]
        interval = accuracy_interval([report["test_accuracy"]], report["test_count"])
        found.append({
            "data": "CIFAR-10", "network": "Spikformer-2-64", "method": method,
            "by": "here, cifar10-10k", "T": "4", "weights (M)": "0.16", "best on test": "no",
            "test accuracy %": f"{report['test_accuracy']:.2f}",
            "95 % interval": interval.ends,
            "weights removed %": f"{100 * removed['total_weight']:.1f}",
            "also": _also(100 * removed["patch"], report["conv_pep_bits_per_weight"]),
            "cost": f"10,000 images x 8 epochs, {report['seconds'] / 60:.0f} min on a core",
        })  # fmt: skip
    for folder, (data, network, steps, weights, cost) in OURS.items():
        with (RESULTS / folder / "comparison.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                variant = row["variant"]
                called, times = _said(NETWORKS, folder, variant, (network, steps))
                seconds = row.get("search (s)", "-").split(" ")[0].strip("'")
                took = 0.0 if seconds == "-" else float(seconds)
                search = f", search {took:.0f} s" if took else ""
                bits = row.get("ConvPEP bits/weight", "32").split(" ")[0]
                seeds = f"{row['seeds']} seed{'s' * (row['seeds'] != '1')}"
                found.append({
                    "data": data, "network": called, "method": variant,
                    "by": f"here, {folder}", "T": times, "weights (M)": weights,
                    "test accuracy %": row["test accuracy %"].split(" ")[0],
                    "95 % interval": row["95 % interval"], "best on test": "no",
                    "weights removed %": row["all weights removed %"].split(" ")[0],
                    "also": _also(float(row["patches removed %"].split(" ")[0]), float(bits)),
                    "cost": f"{_said(LONGER, folder, variant, cost)}{search}, {seeds}",
                })  # fmt: skip
    return found


def _said(table: dict[tuple[str, str], Any], folder: str, variant: str, usual: Any) -> Any:
    """What a table says of the rows of a folder that begin so, or what is usual."""
    found = (e for (f, v), e in table.items() if f == folder and variant.startswith(v))
    return next(found, usual)


def _also(patches: float, bits: float) -> str:
    told = [f"{patches:.0f} % of patches removed"] * (patches > 0)
    return "; ".join([*told, *[f"{bits:.2f} bits a ConvPEP weight"] * (0 < bits < 32)])


def tables() -> dict[str, list[dict[str, str]]]:
    """Data set -> rows, the most accurate first."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in [*published(), *ours()]:
        found.setdefault(row["data"], []).append(row)
    return {
        data: sorted(rows, key=lambda row: -float(row["test accuracy %"]))
        for data, rows in found.items()
    }


def write(page: Path, readme: Path) -> None:
    """Write the page, and the tables between the two marks of the README."""
    found = tables()
    kinds = {data: _apart(rows) for data, rows in found.items()}
    theirs, here = (sum(map(len, of)) for of in zip(*kinds.values(), strict=True))
    write_page(
        page,
        "leaderboard.html",
        title="Published accuracies and ours",
        conclusion=f"{theirs} published accuracies of spiking networks on 5 data "
        f"sets, dense and pruned, and {here} of ours with their intervals. No network "
        "of ours was trained at the papers' size: there was no GPU.",
        notices=NOTICES,
        made=[
            ("command", "python benchmarks/leaderboard.py"),
            ("published rows", "models/published.csv, from the papers, their code and logs"),
        ],
        tables=[
            (
                data,
                ABOUT.get(data, ""),
                HEADER,
                [[row.get(n) or "" for n in HEADER] for row in rows],
            )
            for data, rows in found.items()
        ],
    )
    text = readme.read_text("utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    parts = [START, ""]
    for data, (others, own) in kinds.items():
        if others:
            cells = [SHORT, ["---"] * len(SHORT)]
            cells += [[_cell(row, name) for name in SHORT] for row in _heads(others) + _heads(own)]
            parts += [f"**{data}**", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    readme.write_text(f"{before}{chr(10).join(parts)}\n{END}{after}", "utf-8")


def _apart(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Published rows, and ours."""
    own = [row["by"].startswith("here, ") for row in rows]
    theirs = [row for row, here in zip(rows, own, strict=True) if not here]
    return theirs, [row for row, here in zip(rows, own, strict=True) if here]


def _heads(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The two most accurate rows, dense and pruned, and the best without spikes, in their order."""
    spiking = [row for row in rows if "(ANN)" not in row["network"]]
    dense = [row for row in spiking if row["method"].startswith("dense")][:2]
    other = [row for row in spiking if not row["method"].startswith("dense")][:2]
    plain = [row for row in rows if row not in spiking][:1]
    return [row for row in rows if row in dense + other + plain]


def _cell(row: dict[str, str], name: str) -> str:
    value = row.get(name) or "-"
    if name == "test accuracy %":
        return f"{value}{' ' * bool(row['95 % interval'])}{row['95 % interval']}" + " ‡" * (
            row["best on test"] == "yes"
        )
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if stale")
    if not parser.parse_args().check:
        write(RESULTS / "leaderboard.html", RESULTS / "README.md")
        return 0
    with TemporaryDirectory() as place:
        page, readme = Path(place) / "leaderboard.html", Path(place) / "README.md"
        readme.write_text((RESULTS / "README.md").read_text("utf-8"), "utf-8")
        write(page, readme)
        made = [page.read_bytes(), readme.read_bytes()]
    stale = made != [(RESULTS / name).read_bytes() for name in ("leaderboard.html", "README.md")]
    print("the leaderboard is stale: python benchmarks/leaderboard.py" if stale else "up to date")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
