"""Compare ticket searches over sparsities and seeds: independent, resumable runs, one table.

python recipes/compare_tickets.py --out runs/tickets                         # digits, minutes
python recipes/compare_tickets.py --searches imp imp+et random --sparsities 0.9 0.96 --seeds 0 1
python recipes/compare_tickets.py --data cifar10 --options="--model.name spikformer_cifar_4_256"

A comparison that was killed goes on where it stopped: finished runs are kept, the others resume.
Rows called dense and random are the line and the control that the others are read against;
imp-random (IMP's counts at random places) and imp-shuffle (its mask, its start weights permuted)
are controls of IMP. Early-Time's saving stands below the table, as a ratio.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt.config import check, run_recipe

SPARSE = "sparse_training_cifar.py --method"
SEARCHES = {
    "imp": "imp_cifar.py --imp.sparsity {s}",
    "imp-random": "imp_cifar.py --imp.control random --imp.sparsity {s}",
    "imp-shuffle": "imp_cifar.py --imp.control shuffle --imp.sparsity {s}",
    "imp+et": "early_time_cifar.py --search imp --imp.sparsity {s}",
    "eb": "early_bird_cifar.py --early-bird.sparsity {s}",
    "eb+et": "early_time_cifar.py --search early_bird --early-bird.sparsity {s}",
    "edge-popup": "edge_popup_cifar.py --edge-popup.sparsity {s}",
    "biprop": "biprop_cifar.py --biprop.sparsity {s}",
    **{
        name: f"{SPARSE} {name} --sparsity {{s}}"
        for name in ("random", "erk", "magnitude", "snip", "grasp", "synflow", "nm")
    },
    **{name: f"{SPARSE} {name} --sparsity {{s}}" for name in ("set", "rigl", "granet")},
}
DENSE = f"{SPARSE} random --sparsity 0"


@dataclass(frozen=True)
class CompareTickets:
    """Run searches at some sparsities over seeds and write table and curves."""

    searches: tuple[str, ...] = ("imp", "eb", "imp+et", "edge-popup", "biprop", "snip", "random")
    """Searches to compare; the dense network always runs."""
    sparsities: tuple[float, ...] = (0.68, 0.9, 0.96)
    """Fractions of the prunable weights removed."""
    data: str = "digits"
    """Data set of all runs."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds; the table shows mean and standard deviation."""
    jobs: int = 1
    """Runs at a time, one thread each when more than one."""
    out: str = "runs/tickets"
    """Directory of the comparison; runs go into runs/ below it."""
    options: str = ""
    """Further options for every run, in quotes: --options="--model.T 2"."""
    search_options: tuple[str, ...] = ()
    """Further options for one search each: --search-options "imp=--imp.epochs 2"."""

    def __post_init__(self) -> None:
        for name in self.searches:
            check(name in SEARCHES, "searches", name, f"some of {', '.join(SEARCHES)}")
        for sparsity in self.sparsities:
            check(0 < sparsity < 1, "sparsities", sparsity, "in (0, 1)")
        check(self.jobs >= 1, "jobs", self.jobs, "at least 1")
        check(len(self.seeds) > 0, "seeds", self.seeds, "at least one seed")
        for text in self.search_options:
            known = text.partition("=")[0] in (*SEARCHES, "dense")
            check(known, "search_options", text, "SEARCH=OPTIONS, such as 'imp=--imp.epochs 2'")

    def variants(self) -> dict[str, str]:
        """Rows of the table, with the recipe and the options of each."""
        own: dict[str, str] = {}
        for text in self.search_options:
            name, _, options = text.partition("=")
            own[name] = f"{own.get(name, '')} {options}"
        rows = {"dense": f"{DENSE} {own.get('dense', '')}"}
        for name in self.searches:
            for s in self.sparsities:
                rows[f"{name} {s}"] = f"{SEARCHES[name].format(s=s)} {own.get(name, '')}"
        return rows


def main(cfg: CompareTickets) -> None:
    """Run what is not finished, then write table, CSV and curves."""
    from spikeformer_lt.reports.comparison import write_comparison
    from spikeformer_lt.training.jobs import Job, run_jobs

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    jobs = []
    for seed in cfg.seeds:
        for variant, line in cfg.variants().items():
            recipe, *options = f"{line} --data.name {cfg.data} {cfg.options}".split()
            folder = Path(cfg.out) / "runs" / f"{variant.replace(' ', '-')}-seed{seed}"
            command = (str(Path(__file__).with_name(recipe)), *options, "--train.seed", str(seed))
            jobs.append(Job(variant, seed, folder, command))
    run_jobs(jobs, at_once=cfg.jobs)
    title = f"Ticket searches on {cfg.data}"
    print(write_comparison(Path(cfg.out), jobs, title, level="prunable weights"))


if __name__ == "__main__":
    run_recipe(main, CompareTickets)
