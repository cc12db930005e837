"""Independent runs of recipes as resumable child processes."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt.disk import read_mapping
from spikeformer_lt.errors import ConfigError, Interrupted, SpikeformerError, name_of
from spikeformer_lt.runtime import cpu_count
from spikeformer_lt.training.ranks import StopRequest
from spikeformer_lt.training.run import ENV, in_use

log = logging.getLogger(__name__)
PLACE = ("--run.out", "--run.resume")  # options that a job adds to its command


@dataclass(frozen=True)
class Job:
    """One run: which variant and seed it is, where it lives, the recipe's command line."""

    variant: str
    seed: int
    folder: Path
    command: tuple[str, ...]

    @property
    def report(self) -> Path:
        """The file whose presence says that the run is finished."""
        return self.folder / "report.json"


def run_jobs(jobs: Sequence[Job], at_once: int = 1) -> None:
    """Run what has no report yet; each run resumes by itself where it had stopped.

    A run that another process has is waited for; if it ends without a report, it is run again.
    `at_once` processes share the machine's threads, or OMP_NUM_THREADS; one by itself chooses.

    Raises:
        ConfigError: a finished run is of another command.
        SpikeformerError: a run failed, with its output file; the others are finished first.
        Interrupted: SIGINT or SIGTERM; the runs in progress were stopped by one SIGTERM and saved.
    """
    waiting = [job for job in jobs if not job.report.exists()]
    for job in jobs:
        if job not in waiting:
            _refuse_others(job)
    log.info("%d runs, %d of them finished before", len(jobs), len(jobs) - len(waiting))
    running: dict[Job, subprocess.Popen[bytes] | None] = {}  # None: another process has it
    failed: list[tuple[Job, int]] = []
    total, start = len(waiting), time.monotonic()
    with StopRequest() as stop:
        try:
            while (waiting or running) and not stop.requested:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    running[job] = None if _taken(job) else _start(job, at_once)
                for job, process in list(running.items()):
                    code = _code(job) if process is None else process.poll()
                    if code is None:
                        continue
                    if code != 0 and _taken(job):  # it had been starting when ours did
                        running[job] = None
                        continue
                    del running[job]
                    if process is None and code != 0:
                        waiting.insert(0, job)
                        continue
                    done = total - len(waiting) - len(running)
                    left = (time.monotonic() - start) / done * (total - done)
                    state = "finished" if code == 0 else f"failed (exit {code})"
                    log.info(
                        "[%d/%d] %s seed %d %s; about %.0f min left",
                        done, total, job.variant, job.seed, state, left / 60,
                    )  # fmt: skip
                    if code != 0:
                        failed.append((job, code))
                time.sleep(0.2)
        finally:
            own = [process for process in running.values() if process is not None]
            for process in own:
                process.terminate()
            for process in own:
                process.wait()
    if stop.requested:
        raise Interrupted(
            stop.signum,
            f"{len(waiting) + len(running)} of {len(jobs)} runs are not finished; they are saved: "
            "start the comparison again to go on",
        )
    if failed:
        job, code = failed[0]
        out = Path(f"{job.folder}.out")
        lines = out.read_text("utf-8", "replace").split("\n") if out.is_file() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise SpikeformerError(
            f"{len(failed)} of {len(jobs)} runs failed; the first, {job.variant} seed {job.seed}, "
            f"with exit {code}: {last[:500]}; see {out}, then start the comparison again"
        )


def _refuse_others(job: Job) -> None:
    """Refuse a finished run that another command made, where its env.json tells."""
    try:
        made = shlex.split(str(read_mapping(job.folder / ENV).get("command", "")))
    except (ConfigError, ValueError):  # damaged, or a quotation that does not end
        return
    options, there = list(job.command[1:]), made[1:]
    for flag in PLACE:
        if flag in there:
            at = there.index(flag)
            del there[at : at + 2]
    if made and sorted(there) != sorted(options):
        raise ConfigError(
            f"{name_of(job.folder)} is finished with other options: {shlex.join(there)} -> "
            f"{shlex.join(options)}; choose another folder for the new ones"
        )


def _taken(job: Job) -> bool:
    taken = in_use(job.folder)
    if taken:
        log.info("%s seed %d is being run by another process: waiting", job.variant, job.seed)
    return taken


def _code(job: Job) -> int | None:
    """Exit status of a run that another process has, as far as files tell: 0 with a report."""
    return None if in_use(job.folder) else int(not job.report.exists())


def _start(job: Job, at_once: int) -> subprocess.Popen[bytes]:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    threads, env = max(1, cpu_count() // at_once), dict(os.environ)
    asked = env.get("OMP_NUM_THREADS", "")
    given = asked.isdigit() and asked != "0"
    if given or at_once > 1:
        env["OMP_NUM_THREADS"] = str(min(threads, int(asked)) if given else threads)
    place = (PLACE[0], str(job.folder), PLACE[1], "auto")
    with Path(f"{job.folder}.out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *job.command, *place], stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, env=env,
            process_group=0,  # a Ctrl-C of the terminal and our SIGTERM would be two signals
        )  # fmt: skip
