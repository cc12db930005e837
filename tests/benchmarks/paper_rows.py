"""Lines of a published table with runs that nobody trained."""

from __future__ import annotations

from pathlib import Path

from papers.drops import Line
from papers.finished import Run
from papers.tables import Cell


def run(accuracy: float, seed: int = 0, images: int = 400, name: str = "a") -> Run:
    report = {"test_accuracy": accuracy, "seed": seed, "test_count": images, "dataset": "digits"}
    report |= {"run_id": f"toy-{name}", "seconds": 3.25}
    config = {"data": {"limit_train": None}, "model": {"name": "toy", "T": 5}}
    env = {"cpu": "a processor", "threads": 1, "gpus": [], "git_commit": "0123456789abcdef"}
    return Run(Path(f"runs/{name}{seed}"), report, config, {**env, "git_clean": True}, 8)


def line(method: str, level: float | None, published: float | None, *ours: float, **kw) -> Line:
    against = kw.get("against", "dense" if method != "dense" else "")
    cell = Cell(
        "t", "cifar10", "net", method, kw.get("axis", "sparsity"), level, published, against
    )
    runs = [run(value, seed, name=f"{method}{level}") for seed, value in enumerate(ours)]
    return Line(cell, tuple(runs), "not run", "recipe.py --x 1")


ROWS = [
    line("dense", None, 93.0, 95.0, 97.0),
    line("IMP", 0.5, 93.5, 95.5, 96.5),
    line("IMP", 0.9, 90.0, 80.0, 83.0),
    line("EB", 0.5, 92.0),
    line("EB", 0.9, 80.0, 60.0),
]
