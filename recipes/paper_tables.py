"""Run the papers' tables and figures again: published numbers beside ours, or "not run".

python recipes/paper_tables.py                                   # every table on the digits
python recipes/paper_tables.py --table eccv22-tab1 --scale cifar10-subset --jobs 2
python recipes/paper_tables.py --table 2311-fig3 --rows "decay" --seeds 0 1 2
python recipes/paper_tables.py --table 2311-tab1 --scale full --dry-run    # print the commands

Each row is a run of another recipe, resumable and independent; what is finished is kept. A number
stands in a table only where a finished run has exactly the row's configuration.
"""

from __future__ import annotations

import importlib
import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeformer_lt.config import check, run_recipe
from spikeformer_lt.errors import DataError

RECIPES = Path(__file__).parent
PAPERS = RECIPES.parent / "benchmarks" / "papers"
NAMES = ("eccv22-tab1", "2311-tab1", "2311-tab2", "2311-fig3", "2311-fig4")
SCALES = ("digits", "cifar10-subset", "full")


def papers(room: str) -> Any:
    """Import a module of ``benchmarks/papers``.

    Raises:
        DataError: the folder is not there, as in an installed wheel.
    """
    if not PAPERS.is_dir():
        raise DataError(
            f"no folder {PAPERS}: the papers' tables come with a checkout of the repository; run "
            "recipes/paper_tables.py there"
        )
    if str(PAPERS.parent) not in sys.path:
        sys.path.insert(0, str(PAPERS.parent))
    return importlib.import_module(f"papers.{room}")


@dataclass(frozen=True)
class PaperTables:
    """Run rows of published tables at a scale and write each table with what was run."""

    table: tuple[str, ...] = NAMES
    """Tables: eccv22-tab1, 2311-tab1, 2311-tab2, 2311-fig3, 2311-fig4."""
    scale: str = "digits"
    """digits (embedded sets, minutes), cifar10-subset (small nets, 5,000 images), full (GPU)."""
    rows: tuple[str, ...] = ()
    """Run only rows whose name has one of these texts in it; the table shows all."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each row."""
    jobs: int = 1
    """Runs at a time, one thread each when more than one."""
    out: str = "runs/paper-tables"
    """Directory of the tables; runs go into runs/ below it."""
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
        for name in self.table:
            check(name in NAMES, "table", name, f"some of {', '.join(NAMES)}")
        check(self.scale in SCALES, "scale", self.scale, f"one of {', '.join(SCALES)}")
        check(self.jobs >= 1, "jobs", self.jobs, "at least 1")
        check(len(self.seeds) > 0, "seeds", self.seeds, "at least one seed")
        check(self.limit_minutes >= 0, "limit_minutes", self.limit_minutes, "at least 0")


def main(cfg: PaperTables) -> None:
    """Run what is not finished, then write every table."""
    tables, rooms = papers("tables").TABLES, papers("jobs")
    names = [cell.name for table in cfg.table for cell in tables[table].cells]
    for text in cfg.rows:
        known = any(text in name for name in names)
        check(known, "rows", text, "a part of the name of a row; see --dry-run")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out, reuse = Path(cfg.out), [Path(root) for root in cfg.reuse]
    jobs = {
        name: rooms.jobs_of(
            tables[name], cfg.scale, cfg.seeds, RECIPES, out / "runs", cfg.data_root
        )
        for name in cfg.table
    }
    every = [job for rows in jobs.values() for row in rows.values() for job in row]
    asked = [j for j in every if not cfg.rows or any(text in j.variant for text in cfg.rows)]
    if cfg.dry_run:
        for job in asked:
            print(f"# {job.variant}\npython {shlex.join(job.command)} --run.out {job.folder}")
        return
    try:
        if not cfg.write_only:
            rooms.run_rows(asked, reuse, cfg.jobs, cfg.limit_minutes)
    finally:
        for name in cfg.table:
            lines = rooms.lines_of(tables[name], cfg.scale, jobs[name], reuse)
            print(papers("report").write_table(out, tables[name], cfg.scale, lines))


if __name__ == "__main__":
    run_recipe(main, PaperTables)
