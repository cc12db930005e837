"""Write docs/results/families from the finished runs of its queue.

python benchmarks/run_queue.py run FOLDER --queue docs/results/families/queue.csv   # trains
python benchmarks/run_queue.py status FOLDER --queue docs/results/families/queue.csv
python benchmarks/families.py FOLDER    # tables of each family, and those of README.md

A run is FAMILY.VARIANT-SEED. Those of seed 0 that `BYTES` names are exported, for their bytes. The
table of a data set without a finished run in FOLDER stays.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from run_queue import read_csv, there
from tables import compare, exported, put, rows

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
    "test": "test accuracy %, 95 % interval",
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
    names = [row["run"] for row in read_csv(PAGE / "queue.csv")]
    found = []
    for name in names:
        variant, _, seed = name.partition(".")[2].rpartition("-")
        own = variant.removeprefix(prefix)
        if name.startswith(f"{family}.{prefix}") and own in VARIANTS:
            found.append(Job(VARIANTS[own], int(seed), folder / "runs" / name, ()))
    order = list(VARIANTS.values())
    return sorted(found, key=lambda job: (order.index(job.variant), job.seed))


def table(folder: Path, family: str, prefix: str, packed: dict[str, tuple[str, str]]) -> list[str]:
    """Rows of the page for a family."""
    lines: list[str] = []
    for row in rows(folder):
        name = next(key for key, value in VARIANTS.items() if value == row["variant"])
        row["bytes"], row["bits"] = packed.get(prefix + name, ("-", "-"))
        first = "" if lines else FAMILIES[family]
        lines.append(f"| {first} | {' | '.join(row.get(key, '') for key in COLUMNS)} |")
    return lines


def main() -> int:
    """Write the tables of every family and data set, and those of the page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=there, help="as for run_queue.py")
    given = parser.parse_args()
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
            compare(to, jobs, f"{called} on {data}")
            names = {f"{family}.{prefix}{name}-0": prefix + name for name in BYTES}
            packed = {names[run.name]: exported(run) for run in done if run.name in names}
            lines += table(to, family, prefix, packed)
        if len(lines) > 2:  # else no run of this data set is here: its table stays
            put(PAGE / "README.md", marks(data), lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
