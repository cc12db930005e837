"""Compare ticket searches over sparsities and seeds: independent, resumable runs, one table.

python recipes/compare_tickets.py --out runs/tickets  # 44 runs on digits: 70 minutes by --jobs 2
python recipes/compare_tickets.py --searches imp imp+et random --sparsities 0.9 0.96 --seeds 0 1
python recipes/compare_tickets.py --data cifar10 --options="--model.name spikformer_cifar_4_256"

Finished runs are kept, the others resume. Controls: dense, random, and for IMP imp-random (its
counts at random places), imp-shuffle (its start weights permuted) and imp-fresh. Any registered
search is a row, a plug-in's too. All rows train their network for --epochs.
"""

from dataclasses import dataclass

from spikeformer_lt.cli import Comparison, compare, search_rows
from spikeformer_lt.config import run_recipe

SPARSE = "sparse_training_cifar.py --method {name} --sparsity {s} --epochs {e}"
IMP = "--imp.sparsity {s} --imp.epochs {e} --epochs {e}"
EARLY_BIRD = "--early-bird.sparsity {s} --early-bird.epochs {e} --epochs {e}"
SEARCHES = {
    "dense": "sparse_training_cifar.py --method random --sparsity 0 --epochs {e}",
    "imp": f"imp_cifar.py {IMP}",
    "imp-random": f"imp_cifar.py --imp.control random {IMP}",
    "imp-shuffle": f"imp_cifar.py --imp.control shuffle {IMP}",
    "imp-fresh": f"imp_cifar.py --imp.control fresh {IMP}",
    "imp+et": f"early_time_cifar.py --search imp {IMP}",
    "eb": f"early_bird_cifar.py {EARLY_BIRD}",
    "eb+et": f"early_time_cifar.py --search early_bird {EARLY_BIRD}",
    "edge-popup": "edge_popup_cifar.py --edge-popup.sparsity {s} --edge-popup.epochs {e}",
    "biprop": "biprop_cifar.py --biprop.sparsity {s} --biprop.epochs {e}",
    **dict.fromkeys(("random", "erk", "magnitude", "snip", "grasp", "synflow", "nm"), SPARSE),
    **dict.fromkeys(("set", "rigl", "granet"), SPARSE),
}


@dataclass(frozen=True)
class CompareTickets(Comparison):
    """Run searches at some sparsities over seeds and write table and curves."""

    searches: tuple[str, ...] = ("imp", "eb", "imp+et", "edge-popup", "biprop", "snip", "random")
    """Searches beside dense: imp, imp-random, imp-shuffle, imp-fresh, imp+et, eb, eb+et,
    edge-popup, biprop, random, erk, magnitude, snip, grasp, synflow, nm, set, rigl, granet, and any
    other of `spikeformer-lt ls searches`."""
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
    title, joints = f"Ticket searches on {cfg.data}", ("-", "-seed")
    compare(cfg, search_rows(cfg, SEARCHES), title, joints, level="prunable weights")


if __name__ == "__main__":
    run_recipe(main, CompareTickets)
