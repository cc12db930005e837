"""Compare ticket searches over sparsities and seeds: independent, resumable runs, one table.

python recipes/compare_tickets.py --out runs/tickets                         # digits, minutes
python recipes/compare_tickets.py --searches imp imp+et random --sparsities 0.9 0.96 --seeds 0 1
python recipes/compare_tickets.py --data cifar10 --options="--model.name spikformer_cifar_4_256"

Finished runs are kept, the others resume. Controls: dense, random, and for IMP imp-random (its
counts at random places) and imp-shuffle (its mask, its start weights permuted). Any registered
search is a row, a plug-in's too. Early-Time's saving is below the table, as a ratio.
"""

from dataclasses import dataclass

from spikeformer_lt.cli import Comparison, compare, search_rows
from spikeformer_lt.config import run_recipe

SPARSE = "sparse_training_cifar.py --method {name} --sparsity {s}"
SEARCHES = {
    "dense": "sparse_training_cifar.py --method random --sparsity 0",
    "imp": "imp_cifar.py --imp.sparsity {s}",
    "imp-random": "imp_cifar.py --imp.control random --imp.sparsity {s}",
    "imp-shuffle": "imp_cifar.py --imp.control shuffle --imp.sparsity {s}",
    "imp+et": "early_time_cifar.py --search imp --imp.sparsity {s}",
    "eb": "early_bird_cifar.py --early-bird.sparsity {s}",
    "eb+et": "early_time_cifar.py --search early_bird --early-bird.sparsity {s}",
    "edge-popup": "edge_popup_cifar.py --edge-popup.sparsity {s}",
    "biprop": "biprop_cifar.py --biprop.sparsity {s}",
    **dict.fromkeys(("random", "erk", "magnitude", "snip", "grasp", "synflow", "nm"), SPARSE),
    **dict.fromkeys(("set", "rigl", "granet"), SPARSE),
}


@dataclass(frozen=True)
class CompareTickets(Comparison):
    """Run searches at some sparsities over seeds and write table and curves."""

    searches: tuple[str, ...] = ("imp", "eb", "imp+et", "edge-popup", "biprop", "snip", "random")
    """Searches to compare; the dense network always runs."""
    sparsities: tuple[float, ...] = (0.68, 0.9, 0.96)
    """Fractions of the prunable weights removed."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds; the table shows mean and standard deviation."""
    out: str = "runs/tickets"
    """Directory of the comparison; runs go into runs/ below it."""
    search_options: tuple[str, ...] = ()
    """Further options for one search each: --search-options "imp=--imp.epochs 2"."""


def main(cfg: CompareTickets) -> None:
    """Run what is not finished, then write table, CSV and curves."""
    title = f"Ticket searches on {cfg.data}"
    rows = search_rows(cfg, SEARCHES)
    compare(cfg, rows, title, ("-", "-seed"), level="prunable weights")


if __name__ == "__main__":
    run_recipe(main, CompareTickets)
