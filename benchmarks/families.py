"""Write docs/results/families from the finished runs of its queue.

python benchmarks/run_queue.py run FOLDER --queue docs/results/families/queue.csv   # trains
python benchmarks/run_queue.py status FOLDER --queue docs/results/families/queue.csv
python benchmarks/families.py FOLDER    # tables of each family, and those of README.md

A run is FAMILY.VARIANT-SEED. Those of seed 0 that `BYTES` names are exported, for their bytes. The
table of a data set without a finished run in FOLDER stays.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from spikeformer_lt.export import export_run
from spikeformer_lt.export.file import TENSORS
from spikeformer_lt.reports.comparison import write_comparison
from spikeformer_lt.training.jobs import Job

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "families"
FAMILIES = {
    "spikformer": "Spikformer",
    "spikingformer": "Spikingformer",
    "sdt": "Spike-Driven Transformer (v1)",
    "qkformer": "QKFormer",
    "maxformer": "Max-Former",
}
VARIANTS = {
    "dense": "dense",
    "dense40ep": "dense, 40 epochs",
    "full50": "all levels 0.5",
    "full70": "all levels 0.7",
    "full80": "all levels 0.8",
    "full": "all levels 0.9",
    "full95": "all levels 0.95",
    "control": "all levels random 0.9",
    "fullfp": "all levels, real stem 0.9",
    "full40ep": "all levels, 40 epochs 0.9",
    "levels123": "MultiSp",
    "onebit": "MultiSp, 1 bit encoder",
    "attention": "dense, random attention",
    "stem1": "dense, one convolution",
    "data50": "data-level 0.5",
    "datarandom50": "data-level random 0.5",
}
SETS = {"": "digits", "curve-": "digits by rate", "moving-": "moving digits", "cifar-": "CIFAR-10"}
"""Prefix of a variant, its data set, and so the folder of its tables."""
RATES = ("full50", "full70", "full80", "full", "full95")
BYTES = ("dense", *RATES, "control", "fullfp", "levels123", "onebit")
COLUMNS = {
    "all weights removed %": "all weights removed %",
    "variant": "variant",
    "seeds": "seeds",
    "test accuracy %": "test accuracy %, 95 % interval",
    "points": "points to dense, their interval, p after Holm",
    "patches removed %": "patches removed %",
    "ConvPEP weights removed %": "stem weights removed %",
    "bits/weight": "bits a weight (ledger)",
    "bytes": "bytes of the export (seed 0)",
    "bits": "bits a weight in it (bound)",
    "SOPs (M)": "SOPs (M)",
}


def marks(data: str) -> tuple[str, str]:
    """Lines of the page around the table of a data set."""
    return f"<!-- {data}: benchmarks/families.py -->", f"<!-- end of {data} -->"


def folder_of(family: str, prefix: str) -> Path:
    """Where the tables of a family on one data set lie."""
    return PAGE / SETS[prefix].replace(" ", "-") / family if prefix else PAGE / family


def jobs_of(folder: Path, family: str, prefix: str) -> list[Job]:
    """The runs of a family on one data set, finished or not, seed by seed."""
    with (PAGE / "queue.csv").open(newline="") as file:
        names = [row["run"] for row in csv.DictReader(file)]
    found = []
    for name in names:
        variant, _, seed = name.partition(".")[2].rpartition("-")
        own = variant.removeprefix(prefix)
        if name.startswith(f"{family}.{prefix}") and own in VARIANTS:
            found.append(Job(VARIANTS[own], int(seed), folder / "runs" / name, ()))
    order = list(VARIANTS.values())
    return sorted(found, key=lambda job: (order.index(job.variant), job.seed))


def bytes_of(run: Path) -> tuple[str, str]:
    """Bytes of an export's tensors, and their bits a weight beside the bound's."""
    with TemporaryDirectory() as place:
        done = export_run(run, Path(place) / "export")
        size = (done.folder / TENSORS).stat().st_size
    return f"{size:,}", f"{done.bits[0]:.2f} ({done.bits[1]:.2f})"


def table(folder: Path, family: str, prefix: str, packed: dict[str, tuple[str, str]]) -> list[str]:
    """Rows of the page for a family."""
    with (folder / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    against = {}
    if (folder / "differences.csv").exists():
        with (folder / "differences.csv").open(newline="") as file:
            found = [row for row in csv.DictReader(file) if row["against"] == "dense"]
        against = {row["variant"]: row for row in found}
    lines = []
    for row in rows:
        row["test accuracy %"] += f" {row['95 % interval']}"
        if diff := against.get(row["variant"]):
            points, ends = float(diff["points"]), diff["95 % interval"]
            row["points"] = f"{points:+.2f} {ends}, p {diff['p (Holm)']}"
        name = next(key for key, value in VARIANTS.items() if value == row["variant"])
        row["bytes"], row["bits"] = packed.get(prefix + name, ("-", "-"))
        first = FAMILIES[family] if row is rows[0] else ""
        lines.append(f"| {first} | {' | '.join(row.get(key, '') for key in COLUMNS)} |")
    return lines


def main() -> int:
    """Write the tables of every family and data set, and those of the page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="as for run_queue.py")
    given = parser.parse_args()
    page = (PAGE / "README.md").read_text()
    for prefix, data in SETS.items():
        head = f"| network | {' | '.join(COLUMNS.values())} |"
        lines = [head, "|---" * (len(COLUMNS) + 1) + "|"]
        for family, called in FAMILIES.items():
            jobs = jobs_of(given.folder, family, prefix)
            done = {job.folder: job.variant for job in jobs if job.report.exists()}
            jobs = [job for job in jobs if job.variant in done.values()]
            if not jobs:
                continue
            to = folder_of(family, prefix)
            shutil.rmtree(to, ignore_errors=True)
            with TemporaryDirectory() as place:
                write_comparison(Path(place), jobs, f"{called} on {data}")
                to.mkdir(parents=True)
                for file in ("comparison.md", "comparison.csv", "differences.csv", "runs.csv"):
                    if (Path(place) / file).exists():
                        shutil.copy(Path(place) / file, to)
            names = {f"{family}.{prefix}{name}-0": prefix + name for name in BYTES}
            packed = {names[run.name]: bytes_of(run) for run in done if run.name in names}
            lines += table(to, family, prefix, packed)
        if len(lines) == 2:  # no run of this data set is here: its table stays
            continue
        start, end = marks(data)
        before, _, rest = page.partition(start)
        after = rest.partition(end)[2]
        if not after:
            sys.exit(f"README.md lacks the marks {start} and {end}")
        page = f"{before}{start}\n" + "\n".join(lines) + f"\n{end}{after}"
    (PAGE / "README.md").write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
