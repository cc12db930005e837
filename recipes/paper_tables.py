"""Run the papers' tables and figures again: published numbers beside ours, or "not run".

python recipes/paper_tables.py --table eccv22-tab1 --scale cifar10-subset --jobs 2
python recipes/paper_tables.py --table 2311-tab1 --scale full --dry-run    # print the commands

Each row is a resumable run of another recipe; only a run of exactly its configuration counts.
"""

import importlib
import sys
from dataclasses import dataclass

from spikeformer_lt.cli import RECIPES
from spikeformer_lt.config import check_fields, run_recipe

HOME = RECIPES.resolve()


@dataclass(frozen=True)
class PaperTables:
    """Run rows of published tables at a scale and write each table with what was run."""

    table: tuple[str, ...] = ("eccv22-tab1", "2311-tab1", "2311-tab2", "2311-fig3", "2311-fig4")
    """Tables: eccv22-tab1, 2311-tab1, 2311-tab2, 2311-fig3, 2311-fig4."""
    scale: str = "digits"
    """digits (embedded sets, minutes), cifar10-subset (small nets, 5,000 images), full (GPU)."""
    rows: tuple[str, ...] = ()
    """Run only rows whose name has one of these texts in it; the table shows all."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each row."""
    jobs: int = 1
    """Runs at a time, which share the CPUs."""
    out: str = "runs/paper-tables"
    """Directory of the tables; runs go into runs/ below it."""
    overwrite: bool = False
    """Replace tables there that are not as an earlier call wrote them."""
    reuse: tuple[str, ...] = ()
    """Directories of other runs; those with a row's configuration are taken for it."""
    data_root: str = "data"
    """Folder that holds the data sets."""
    limit_minutes: float = 0.0
    """Begin no run after this time; 0 sets no limit."""
    dry_run: bool = False
    """Print the commands of the chosen rows and run nothing."""
    write_only: bool = False
    """Write the tables from what is finished and run nothing."""

    def __post_init__(self) -> None:
        check_fields(self, scale=("digits", "cifar10-subset", "full"), jobs=1, limit_minutes=0)


def main(cfg: PaperTables) -> None:
    """Say what it costs, run what is not finished, then write every table."""
    sys.path.insert(0, str(HOME.parent / "benchmarks"))
    importlib.import_module("papers.jobs").run_tables(cfg, HOME)


if __name__ == "__main__":
    run_recipe(main, PaperTables)
