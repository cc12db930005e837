"""Independent runs of recipes as resumable child processes, of one runner or of several."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeformer_lt.disk import read_mapping, write_atomic
from spikeformer_lt.errors import STOPS, ConfigError, Interrupted, SpikeformerError, name_of, shown
from spikeformer_lt.runtime import cpu_count
from spikeformer_lt.training.ranks import StopRequest
from spikeformer_lt.training.run import ENV, in_use

log = logging.getLogger(__name__)
PLACE = ("--run.out", "--run.resume")  # options that a job adds to its command
BEAT_S, STALE_S = 10.0, 180.0
"""Seconds between two signs of life of a claim, and without one until another runner takes over."""
_PREEMPTED_S = 5.0
_STARTED: list[subprocess.Popen[bytes]] = []  # runs of this process
RUNNING, RELEASED, DONE, FAILED = "running", "released", "done", "failed"  # states of a claim


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


def run_jobs(
    jobs: Sequence[Job], at_once: int = 1, shared: bool = False, signals: Sequence[int] = STOPS
) -> None:
    """Run what has no report yet; each run resumes by itself where it had stopped.

    A run that another process has is waited for; if it ends without a report, it is run again.
    `at_once` processes share the machine's threads, or OMP_NUM_THREADS; one by itself chooses.
    With `shared`, runners on any hosts that see the folder divide the runs by `Claims`: each
    passes over what another one has, and returns when all are finished.

    Raises:
        ConfigError: a finished run is of another command.
        SpikeformerError: a run failed, with its output file; the others are finished first.
        Interrupted: one of `signals`; the runs in progress were stopped by one SIGTERM and saved.
    """
    waiting = [job for job in jobs if not job.report.exists()]
    for job in jobs:
        if job not in waiting:
            _refuse_others(job)
    log.info("%d runs, %d of them finished before", len(jobs), len(jobs) - len(waiting))
    claims = Claims(jobs) if shared else None
    running: dict[Job, subprocess.Popen[bytes] | None] = {}  # None: another process has it
    failed: list[tuple[Job, int]] = []
    total, start = len(waiting), time.monotonic()
    with StopRequest(signals) as stop:
        try:
            while (waiting or running) and not stop.requested:
                while len(running) < at_once and (new := _next(waiting, claims, failed)):
                    running[new] = None if _taken(new) else _start(new, at_once, claims)
                for job in claims.beat() if claims else ():
                    log.info("%s seed %d was taken over", job.variant, job.seed)
                    _stop([running.pop(job)])
                    waiting.append(job)
                for job, process in list(running.items()):
                    code = _code(job) if process is None else process.poll()
                    if code is None:
                        continue
                    if code != 0 and _taken(job):  # it had been starting when ours did
                        running[job] = None
                        continue
                    del running[job]
                    if claims:
                        state = DONE if code == 0 else FAILED if process else RELEASED
                        claims.end(job, state, code)
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
            _stop(list(running.values()))
            if claims:
                for job in running:
                    claims.end(job, RELEASED)
    if stop.requested:
        raise _interrupted(stop, len(waiting) + len(running), len(jobs))
    if failed:
        job, code = failed[0]
        out = Path(f"{job.folder}.out")
        lines = out.read_text("utf-8", "replace").split("\n") if out.is_file() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise SpikeformerError(
            f"{len(failed)} of {len(jobs)} runs failed; the first, {job.variant} seed {job.seed}, "
            f"with exit {code}: {last[:500]}; see {out}, then start the comparison again"
        )


def _interrupted(stop: StopRequest, left: int, total: int) -> Interrupted:
    return Interrupted(
        stop.signum,
        f"{left} of {total} runs are not finished; they are saved: start the comparison again to "
        "go on",
    )


def submit_jobs(jobs: Sequence[Job], at_once: int = 1, options: Sequence[str] = ()) -> None:
    """Run what has no report yet by Slurm, through submitit: an array, `at_once` runs at a time.

    Each is a runner of one job that claims it, so that what is submitted twice is run once. One
    that is preempted or runs out of time saves, is queued again and goes on.

    Args:
        options: NAME=VALUE of submitit's parameters, such as slurm_partition=gpu; cluster=local
            runs them on this machine.

    Raises:
        ConfigError: submitit or Slurm is missing, or it refuses an option.
        SpikeformerError, Interrupted: as `run_jobs`; a signal cancels what is submitted.
    """
    try:
        import submitit
    except ImportError as fault:
        needed = "on=slurm needs submitit; install it with: pip install 'spikeformer_lt[cluster]'"
        raise ConfigError(needed) from fault
    waiting = [job for job in jobs if not job.report.exists()]
    if not waiting:
        return
    given = dict(option.split("=", 1) for option in options)
    values = {name: int(text) if text.isdigit() else text for name, text in given.items()}
    usual = {"name": "spikeformer_lt", "timeout_min": 1440, "slurm_array_parallelism": at_once}
    try:
        # Requeued as often as it takes: each time goes on from the last checkpoint.
        executor = submitit.AutoExecutor(
            waiting[0].folder.parent / ".slurm", cluster=str(values.pop("cluster", "slurm")),
            slurm_max_num_timeout=10_000,
        )  # fmt: skip
        executor.update_parameters(**{**usual, **values})
    except (RuntimeError, ValueError, NameError, TypeError) as fault:
        raise ConfigError(f"slurm={shown(' '.join(options))}: {shown(str(fault), 300)}") from fault
    with executor.batch():
        sent = [executor.submit(Submitted(job)) for job in waiting]
    pairs = list(zip(waiting, sent, strict=True))
    log.info("%d runs submitted, the first as %s", len(sent), sent[0].job_id)
    with StopRequest() as stop:
        while left := [one for job, one in pairs if not (job.report.exists() or one.done())]:
            if stop.requested:
                for one in left:
                    one.cancel()
                raise _interrupted(stop, len(left), len(jobs))
            time.sleep(0.5)
    failed = [(job, one) for job, one in pairs if not job.report.exists()]
    if failed:
        job, one = failed[0]
        raise SpikeformerError(
            f"{len(failed)} of {len(jobs)} runs failed; the first, {job.variant} seed {job.seed}; "
            f"see {job.folder}.out and {one.paths.stderr}, then start the comparison again"
        )


@dataclass(frozen=True)
class Submitted:
    """A run as submitit calls it, on whatever machine."""

    job: Job

    def __call__(self) -> None:
        """Run it, unless another runner has it or had finished it."""
        try:
            # SIGUSR2 is submitit's, and calls `checkpoint`.
            run_jobs([self.job], shared=True, signals=(signal.SIGTERM, signal.SIGINT))
        except Interrupted:
            # Slurm may send SIGTERM before the signal that means preemption.
            time.sleep(_PREEMPTED_S)
            raise

    def checkpoint(self) -> Any:
        """Save, at submitit's signal, and say how to go on."""
        import submitit

        _stop(_STARTED)
        return submitit.helpers.DelayedSubmission(self)


def _stop(running: Sequence[subprocess.Popen[bytes] | None]) -> None:
    own = [process for process in running if process is not None]
    for process in own:
        process.terminate()
    for process in own:
        with contextlib.suppress(ChildProcessError):  # it was waited for
            # Not Popen.wait, whose lock a signal handler must not meet.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process.poll()


def _next(waiting: list[Job], claims: Claims | None, failed: list[tuple[Job, int]]) -> Job | None:
    """Take a run that nobody has off the list, and those that other runners have done with."""
    if claims is None:
        return waiting.pop(0) if waiting else None
    for job in waiting[:] if claims.due() else ():
        if job.report.exists():
            waiting.remove(job)
        elif code := claims.failure(job):
            waiting.remove(job)
            failed.append((job, code))
        elif claims.take(job):
            waiting.remove(job)
            return job
    return None


class Claims:
    """Who has which run, in files beside the runs: no lock that a file system might not keep.

    A runner has a run from when it alone creates ``.NAME.claim-1`` (NFS from version 3 on keeps
    exclusive creation), and touches that file every BEAT_S. When it is released, has not changed
    for STALE_S of the *other* runner's clock, or is of a process of that runner's own machine that
    is no more, the other one may create ``.NAME.claim-2``, and so on: the highest number holds.
    Nothing is renamed or deleted, so that no claim can be mistaken for an earlier one.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.owner = f"{_machine()} {os.getpid()} {socket.gethostname()} {uuid.uuid4().hex}"
        self._held: dict[Job, Path] = {}
        self._seen: dict[Path, tuple[object, float]] = {}  # a claim as it was, and since when
        # What failed before, or is finished without its report, is tried again.
        self._before = {_newest(job)[0] for job in jobs}
        self._beaten = self._looked = 0.0

    def due(self) -> bool:
        """Whether to look at the other runners' claims again: not at each turn of a loop."""
        due = time.monotonic() - self._looked >= min(BEAT_S, 1.0)
        if due:
            self._looked = time.monotonic()
        return due

    def take(self, job: Job) -> bool:
        """Claim a run; False where another runner has it, or was faster."""
        path, number = _newest(job)
        if number and not self._free(path):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.with_name(f".{job.folder.name}.claim-{number + 1}")
        try:
            with path.open("x") as file:
                file.write(f"{RUNNING} {self.owner}")
        except FileExistsError:
            return False
        self._held[job], self._looked = path, 0.0
        return True

    def failure(self, job: Job) -> int:
        """Exit status with which a run failed under another runner since this one began; or 0."""
        path, _ = _newest(job)
        state, *told = _read(path)
        return int(told[0]) if state == FAILED and path not in self._before else 0

    def beat(self) -> list[Job]:
        """Show that this runner lives, if it is time to; return the runs that it has lost."""
        if time.monotonic() - self._beaten < BEAT_S:
            return []
        self._beaten, lost = time.monotonic(), []
        for job, path in list(self._held.items()):
            if _newest(job)[0] != path:
                lost.append(job)
                del self._held[job]
                continue
            with contextlib.suppress(OSError):  # a disk that is away may come back in time
                os.utime(path)
        return lost

    def end(self, job: Job, state: str, code: int = 0) -> None:
        """Give a run back: to whom takes it, or as failed with an exit status."""
        path = self._held.pop(job, None)
        if path is not None and _newest(job)[0] == path:
            write_atomic(path, f"{state} {code}".encode(), SpikeformerError)

    def _free(self, path: Path) -> bool:
        state, *owner = _read(path)
        if state != RUNNING:
            return state == RELEASED or path in self._before
        if owner[:1] == [_machine()] and not _lives(int(owner[1])):
            return True
        mark = (owner, path.stat().st_mtime_ns)
        seen, since = self._seen.setdefault(path, (mark, time.monotonic()))
        if seen != mark:
            self._seen[path] = (mark, time.monotonic())
            return False
        return time.monotonic() - since >= STALE_S


def _newest(job: Job) -> tuple[Path, int]:
    """The claim that holds and its number; 0 where there is none."""
    start, number = f".{job.folder.name}.claim-", 0
    with contextlib.suppress(FileNotFoundError):
        names = (
            n.removeprefix(start) for n in os.listdir(job.folder.parent) if n.startswith(start)
        )
        number = max((int(name) for name in names if name.isdigit()), default=0)
    return job.folder.with_name(f"{start}{number}"), number


def _read(path: Path) -> list[str]:
    """State of a claim and what follows it; one that is not written yet is of a living runner."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text("utf-8").split() or [RUNNING]
    return [RUNNING]


def _machine() -> str:
    """What tells processes apart by their numbers: this start of the system, this container."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex  # no system that says so: no process is known to be gone


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _die_with_parent() -> None:
    """Let SIGTERM reach this process when its runner ends, however it ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


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


def _start(job: Job, at_once: int, claims: Claims | None = None) -> subprocess.Popen[bytes]:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    threads, env = max(1, cpu_count() // at_once), dict(os.environ)
    asked = env.get("OMP_NUM_THREADS", "")
    given = asked.isdigit() and asked != "0"
    if given or at_once > 1:
        env["OMP_NUM_THREADS"] = str(min(threads, int(asked)) if given else threads)
    place = (PLACE[0], str(job.folder), PLACE[1], "auto")
    with Path(f"{job.folder}.out").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *job.command, *place], stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, env=env,
            process_group=0,  # a Ctrl-C of the terminal and our SIGTERM would be two signals
            # Without its runner nobody would keep the claim of the run.
            preexec_fn=_die_with_parent if claims else None,
        )  # fmt: skip
    _STARTED.append(process)
    return process
