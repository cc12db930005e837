"""Rows of published tables as jobs: run what is missing, find what is finished."""

from __future__ import annotations

import hashlib
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from papers.commands import command_of
from papers.drops import NOT_RUN, Line
from papers.finished import Run, expected_config, planned_epochs, read_run
from papers.report import write_table
from papers.tables import TABLES, Cell, Table
from spikeformer_lt.bundle import outputs
from spikeformer_lt.config import check, value_of
from spikeformer_lt.errors import Interrupted, SpikeformerError
from spikeformer_lt.training.jobs import Job, run_jobs

log = logging.getLogger(__name__)

SECONDS = {
    ("digits", "spikformer_digits"): 1.66, ("moving_digits", "spikformer_dvs_toy"): 1.97,
    ("digits", "spiking_vgg_toy"): 3.26, ("moving_digits", "spiking_vgg_toy"): 2.40,
    ("digits", "spiking_resnet_toy"): 3.22, ("moving_digits", "spiking_resnet_toy"): 1.02,
}  # fmt: skip
"""Data set and network -> seconds of an epoch: means of the runs of docs/results/paper-tables."""
PROCESSOR = "AMD EPYC"
PLACES = ("report.json", "*/report.json", "runs/*/report.json")


def run_tables(cfg: Any, recipes: Path) -> None:
    """Run what is not finished of the tables that ``recipes/paper_tables.py`` was asked for.

    Args:
        cfg: the options of that recipe.
        recipes: folder of the recipes.

    Raises:
        ConfigError: no such table or row.
    """
    check(len(cfg.seeds) > 0, "seeds", cfg.seeds, "at least one seed")
    for name in cfg.table:
        check(name in TABLES, "table", name, f"some of {', '.join(TABLES)}")
    names = [cell.name for table in cfg.table for cell in TABLES[table].cells]
    for text in cfg.rows:
        known = any(text in name for name in names)
        check(known, "rows", text, "a part of the name of a row; see --dry-run")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out, reuse = Path(cfg.out), [Path(root) for root in cfg.reuse]
    jobs = {
        name: jobs_of(TABLES[name], cfg.scale, cfg.seeds, recipes, out / "runs", cfg.data_root)
        for name in cfg.table
    }
    rows = [row for table in jobs.values() for row in table.items()]
    rows = [(n, row) for n, row in rows if not cfg.rows or any(text in n for text in cfg.rows)]
    asked = [job for _, row in rows for job in row]
    if cfg.dry_run:
        single = {job.folder: find_run(job, reuse) for job in asked}
        waiting = {job.folder: job for job in asked if isinstance(single[job.folder], str)}
        finished = [run for run in single.values() if isinstance(run, Run)]
        print(f"# {cost([*waiting.values()], finished, cfg.jobs)}")
        for job in asked:
            place = ("--run.out", str(job.folder))
            print(f"# {job.variant}\n{shlex.join(('python', *job.command, *place))}")
        return
    written = [f"{name}-{cfg.scale}{end}" for name in cfg.table for end in (".*", "-*.csv")]
    with outputs(out, cfg.overwrite, *written):
        try:
            if not cfg.write_only:
                run_rows(asked, reuse, cfg.jobs, cfg.limit_minutes)
        finally:
            for name in cfg.table:
                lines = lines_of(TABLES[name], cfg.scale, jobs[name], reuse)
                print(write_table(out, TABLES[name], cfg.scale, lines))


def job_of(
    name: str, command: Sequence[str], seed: int, recipes: Path, runs: Path, data_root: str = "data"
) -> Job:
    """The run of a row with a seed; rows with the same command share it.

    Args:
        name: of the row.
        command: recipe file and options, as `command_of` gives them.
        seed: of the run.
        recipes: folder of the recipes.
        runs: folder that the run directory is made in, named after the command.
        data_root: folder of the data sets.
    """
    recipe, *options = command
    key = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:10]
    folder = runs / f"{Path(recipe).stem}-{key}-seed{seed}"
    more = ("--data.root", data_root, "--train.seed", str(seed))
    return Job(name, seed, folder, (str(recipes / recipe), *options, *more))


def find_run(job: Job, reuse: Sequence[Path] = ()) -> Run | str:
    """The finished run of a job, in its own folder or in one of others.

    Args:
        job: what was asked for.
        reuse: run directories, or folders of them (also as ``runs/``).

    Returns:
        The run; or in words why there is none.
    """
    others = [report for root in reuse for at in PLACES for report in sorted(root.glob(at))]
    if not job.report.is_file() and not others:
        return "not finished" if job.folder.is_dir() else NOT_RUN
    path, *options = job.command
    wanted = expected_config(Path(path), options)
    own = read_run(job.folder, Path(path), wanted)
    if isinstance(own, Run):
        return own
    for report in others:
        found = read_run(report.parent, Path(path), wanted)
        if isinstance(found, Run):
            return found
    return own


def jobs_of(
    table: Table, scale: str, seeds: Sequence[int], recipes: Path, runs: Path, data_root: str
) -> dict[str, list[Job]]:
    """The jobs of every row that has a command at this scale, by the row's name."""
    found: dict[str, list[Job]] = {}
    for cell in table.cells:
        command = command_of(cell, scale)
        if not isinstance(command, str):
            found[cell.name] = [
                job_of(name_on(cell, command), command, seed, recipes, runs, data_root)
                for seed in seeds
            ]
    return found


def name_on(cell: Cell, command: Sequence[str]) -> str:
    """The row in words, under the data set that a command trains on."""
    data = value_of("data.name", command)
    if data in (None, cell.data):
        return cell.name
    return f"{cell.name.replace(f' {cell.data} ', ' ', 1)} on {data} (published on {cell.data})"


def lines_of(
    table: Table, scale: str, jobs: dict[str, list[Job]], reuse: Sequence[Path] = ()
) -> list[Line]:
    """The rows of a table with the finished runs that are what they ask for."""
    lines = []
    for cell in table.cells:
        command = command_of(cell, scale)
        if isinstance(command, str):
            lines.append(Line(cell, missing=f"{NOT_RUN}: {command}"))
            continue
        made = [find_run(job, reuse) for job in jobs[cell.name]]
        runs = tuple(run for run in made if isinstance(run, Run))
        reasons = [reason for reason in made if isinstance(reason, str)]
        lines.append(Line(cell, runs, reasons[0] if reasons else "", shlex.join(command)))
    return lines


def cost(waiting: Sequence[Job], finished: Sequence[Run], at_once: int = 1) -> str:
    """What the runs that wait will train, and how long that takes by those that are finished."""
    epochs = [planned_epochs(Path(job.command[0]), job.command[1:]) for job in waiting]
    most = max(epochs, default=0)
    text = f"{len(waiting)} runs to train, {sum(epochs)} epochs in all and {most} of the longest"
    trained = sum(run.epochs for run in finished)
    if not waiting:
        return f"{text}; {len(finished)} are finished"
    if not trained:
        return f"{text}; {len(finished)} are finished; {estimate(waiting, epochs, at_once)}"
    each = sum(float(run.report["seconds"]) for run in finished) / trained
    minutes = each * sum(epochs) / at_once / 60
    told = f"{len(finished)} that are finished took {each:.1f} s an epoch: about {minutes:.0f} min"
    return f"{text}; {told}"


def estimate(waiting: Sequence[Job], epochs: Sequence[int], at_once: int) -> str:
    """How long runs take by what their networks took here, in words."""
    kinds = [
        tuple(value_of(f"{g}.name", job.command) for g in ("data", "model")) for job in waiting
    ]
    if missing := [kind for kind in kinds if kind not in SECONDS]:
        data, model = missing[0]
        return f"no time is known of {model} on {data}: the first run that is finished tells it"
    total = sum(SECONDS[kind] * n for kind, n in zip(kinds, epochs, strict=True))
    cores = "one core" if at_once == 1 else f"{at_once} cores"
    return f"about {total / at_once / 60:.0f} min, an estimate for {cores} of an {PROCESSOR}"


def run_rows(
    jobs: Sequence[Job], reuse: Sequence[Path] = (), at_once: int = 1, limit_minutes: float = 0.0
) -> None:
    """Run each job that no finished run answers, once, in the order given.

    Args:
        jobs: of the rows.
        reuse: see `find_run`.
        at_once: processes at a time.
        limit_minutes: no run is begun after this time; 0 sets no limit.

    Raises:
        SpikeformerError: runs failed; the others were run.
        Interrupted: a signal; what is in progress was saved.
    """
    start, failed = time.monotonic(), []
    single = {job.folder: job for job in jobs}
    known = {job: find_run(job, reuse) for job in single.values()}
    waiting = [job for job, found in known.items() if isinstance(found, str)]
    log.info("%s", cost(waiting, [run for run in known.values() if isinstance(run, Run)], at_once))
    size = at_once if limit_minutes else max(1, len(waiting))
    for i in range(0, len(waiting), size):
        if limit_minutes and time.monotonic() - start > 60 * limit_minutes:
            log.warning("time is up: %d runs were not begun", len(waiting) - i)
            break
        try:
            run_jobs(waiting[i : i + size], at_once)
        except Interrupted:
            raise
        except SpikeformerError as fault:
            failed.append(str(fault))
    if failed:
        raise SpikeformerError(f"{len(failed)} calls had failures; the first: {failed[0]}")
