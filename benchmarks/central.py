"""Write the pages of CIFAR-10 from the finished runs `c10x10-*` and `c10-*` of the queue.

python benchmarks/run_queue.py run FOLDER        # trains
python benchmarks/run_queue.py status FOLDER
python benchmarks/central.py FOLDER              # tables, curves and predictions of what is done

Runs of 10 epochs go to docs/results/cifar10, of 30 to docs/results/cifar10-30. Runs that FOLDER did
not train keep their files and their row. Milliseconds are of the exports of one FOLDER in turn, on
its processor.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

from run_queue import read_csv, there
from tables import compare, exported, put, rows

from spikeformer_lt.layers.kernels.simd import PROCESSOR
from spikeformer_lt.registry import use_plugins
from spikeformer_lt.reports.finished import milliseconds, open_ticket, ready
from spikeformer_lt.tickets import model_from_ticket
from spikeformer_lt.training.jobs import Job

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAGES = {"c10x10-": (RESULTS / "cifar10", 10), "c10-": (RESULTS / "cifar10-30", 30)}
"""Begin of a run's name -> its page's folder, and the epochs of its runs."""
VARIANTS = {
    "dense": "dense",
    "multisp-lif": "MultiSp, LIF",
    "multisp-heaviside": "MultiSp, Heaviside",
    "multisp-heaviside-random": "MultiSp, Heaviside, random",
    "multisp-heaviside-w90": "MultiSp, Heaviside 0.9",
    "multisp-heaviside-w90-random": "MultiSp, Heaviside, random 0.9",
    "multisp-sign": "MultiSp-LT, sign",
    "lottery-start": "lottery ticket",
    "lottery-fresh": "lottery ticket, fresh",
    "lottery-shuffled": "lottery ticket, shuffled",
    "level4-w90": "all levels 0.9",
    "level4-1bit": "MultiSp, 1 bit encoder",
    "multisp-lif-1bit": "MultiSp, LIF, 1 bit encoder",
    "rigl90": "RigL 0.9",
    "relu-t1-dense": "ReLU, T 1, dense",
    "relu-t1-rigl90": "ReLU, T 1, RigL 0.9",
}
KEPT = ("config.json", "report.json", "summary.csv", "predictions.safetensors", "training.png")
COLUMNS = {
    "variant": "variant",
    "test": "test accuracy %, 95 % interval",
    "val %": "val %",
    "points": "points to dense, their interval, p after Holm",
    "patches removed %": "patches removed %",
    "ConvPEP weights removed %": "ConvPEP weights removed %",
    "all weights removed %": "all weights removed %",
    "bits/weight": "bits a weight (all)",
    "bytes": "bytes of the export",
    "SOPs (M)": "SOPs (M)",
    "energy (uJ)": "energy (uJ)",
    "ms per input": "ms per input",
    "processor": "on",
    "hours": "hours of training",
}
COSTS = ("variant", "bytes", "hours", "ms per input", "processor")
NAMES = {"zen4": "Zen 4", "zen5": "Zen 5", "avx512": "Xeon"}
MARKS = "<!-- table: benchmarks/central.py -->", "<!-- end of the table -->"


def costs_of(runs: dict[str, Path], sessions: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Bytes, hours and milliseconds of the runs that are here, by variant."""
    nets = {v: ready(open_ticket(run, model_from_ticket)) for v, run in runs.items()}
    clock, found, here = milliseconds(nets), {}, NAMES.get(PROCESSOR, PROCESSOR)
    for variant, run in runs.items():
        spent = sum(float(one["cpu_s"]) for one in sessions if one["run"] == run.name)
        found[variant] = {
            "variant": variant, "bytes": exported(run)[0], "hours": f"{spent / 3600:.2f}",
            "ms per input": f"{clock[variant]:.2f}", "processor": here,
        }  # fmt: skip
    return found


def lines(page: Path) -> list[str]:
    """A page's table, from the tables of its folder."""
    costs = {row["variant"]: row for row in read_csv(page / "cost.csv")}
    found = [f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    for row in rows(page):
        row |= costs.get(row["variant"], {})
        found.append(f"| {' | '.join(row.get(key) or '-' for key in COLUMNS)} |")
    return found


def write(page: Path, epochs: int, runs: dict[str, Path], sessions: list[dict[str, str]]) -> None:
    """Write a page and its tables; `runs` are those that are here, by the names of variants."""
    for name, run in runs.items():
        to = page / name
        to.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            if (run / file).exists():
                shutil.copy(run / file, to)
        for place in (to / "config.json", to / "report.json"):
            told = place.read_text("utf-8").replace(str(run.parents[1].resolve()), "FOLDER")
            place.write_text(told, "utf-8")
    costs = {row["variant"]: row for row in read_csv(page / "cost.csv")}
    costs |= costs_of({VARIANTS[name]: run for name, run in runs.items()}, sessions)
    with (page / "cost.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COSTS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(costs.values())
    jobs = [Job(variant, 0, page / name, ()) for name, variant in VARIANTS.items()]
    compare(page, jobs, f"CIFAR-10, 45,000 images, {epochs} epochs")
    put(page / "README.md", MARKS, lines(page))


def main() -> int:
    """Write tables and pages of the finished runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=there, help="as for run_queue.py")
    folder: Path = parser.parse_args().folder
    use_plugins([RESULTS / "queue" / "relu_twin.py"])
    sessions = read_csv(folder / "sessions.csv")
    trained = {one["run"] for one in sessions}
    for prefix, (page, epochs) in PAGES.items():
        runs = {name: folder / "runs" / f"{prefix}{name}" for name in VARIANTS}
        done = {n: r for n, r in runs.items() if r.name in trained and (r / "report.json").exists()}
        if done:
            write(page, epochs, done, sessions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
