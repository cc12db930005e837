"""Compare ticket searches over sparsities and seeds: independent, resumable runs, one table.

python recipes/compare_tickets.py --out runs/tickets                         # digits, minutes
python recipes/compare_tickets.py --searches imp imp+et random --sparsities 0.9 0.96 --seeds 0 1
python recipes/compare_tickets.py --data cifar10 --options="--model.name spikformer_cifar_4_256"

A comparison that was killed goes on where it stopped: finished runs are kept, the others resume.
Rows called dense and random are the line and the control that the others are read against;
imp-random (IMP's counts at random places) and imp-shuffle (its mask, its start weights permuted)
are controls of IMP. Any registered search is a row, a plug-in's too, with --search-options for its
own options. Early-Time's saving is below the table, as a ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

from spikeformer_lt.cli import Comparison, compare
from spikeformer_lt.config import check, run_recipe
from spikeformer_lt.registry import config_class, search_names

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

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*SEARCHES, *search_names())
        for name in self.searches:
            check(name in known, "searches", name, f"some of {', '.join(dict.fromkeys(known))}")
        for sparsity in self.sparsities:
            check(0 < sparsity < 1, "sparsities", sparsity, "in (0, 1)")
        for text in self.search_options:
            found = text.partition("=")[0] in (*known, "dense")
            check(found, "search_options", text, "SEARCH=OPTIONS, such as 'imp=--imp.epochs 2'")

    def variants(self) -> dict[str, str]:
        """Rows of the table, with the recipe and the options of each."""
        own: dict[str, str] = {}
        for text in self.search_options:
            name, _, options = text.partition("=")
            own[name] = f"{own.get(name, '')} {options}"
        rows = {"dense": f"{DENSE} {own.get('dense', '')}"}
        for name in self.searches:
            line = SEARCHES.get(name) or _generic(name)
            for s in self.sparsities if "{s}" in line else ("",):
                rows[f"{name} {s}".strip()] = f"{line.format(s=s)} {own.get(name, '')}"
        return rows


def _generic(search: str) -> str:
    """The command of a registered search; without a sparsity where it has no single rate."""
    config = config_class("search", search)
    inner = getattr(config, "search", None)  # of a search around another
    config = config_class("search", inner) if isinstance(inner, str) else config
    return f"find_ticket.py {search}{' --sparsity {s}' if hasattr(config, 'sparsity') else ''}"


def main(cfg: CompareTickets) -> None:
    """Run what is not finished, then write table, CSV and curves."""

    def folder(variant: str, seed: int) -> str:
        return f"{variant.replace(' ', '-')}-seed{seed}"

    title = f"Ticket searches on {cfg.data}"
    compare(cfg, cfg.variants(), folder, title, level="prunable weights")


if __name__ == "__main__":
    run_recipe(main, CompareTickets)
