"""A training run on digits by number of threads, alone and beside busy processes.

python benchmarks/busy.py                      # idle cores, minutes
python benchmarks/busy.py --busy 0 1 --epochs 4

Each run is a process of its own, timed whole: MultiSp on the embedded digits with all defaults but
the number of epochs, `python recipes/multisp_cifar.py --data.name digits`. "default" chooses its
threads itself; the neighbours are endless loops, and their time is not in that of processors.
Ratios are to the fastest run alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "multisp_cifar.py"
SPIN = "while True: pass"


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep so many processes busy."""
    made = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in made:
            process.kill()
            process.wait()


def run(threads: int, epochs: int) -> tuple[float, float]:
    """Seconds of a run, and those of processors; 0 threads is the default."""
    free = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory(prefix="busy-") as folder:
        options = ["--data.name=digits", f"--multisp.epochs={epochs}", f"--run.out={folder}/run"]
        options += [f"--train.threads={threads}"] if threads else []
        begin, used = time.perf_counter(), children()
        subprocess.run(
            [sys.executable, "-P", str(RECIPE), *options], env=free, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return time.perf_counter() - begin, children() - used


def children() -> float:
    """Processor time of the processes that have ended, seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 8], help="neighbours")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="0 is the default")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    asked = [*range(1, cpus + 1), 0] if args.threads is None else args.threads
    run(1, 1)  # compiles
    fastest = float("inf")
    for busy in args.busy:
        for threads in asked:
            with neighbours(busy):
                seconds, used = min(run(threads, args.epochs) for _ in range(args.rounds))
            fastest = min(fastest, seconds) if busy == min(args.busy) else fastest
            print(
                f"{busy:2} busy beside, threads {threads or 'default':>7}: {seconds:7.1f} s "
                f"{seconds / fastest:6.2f}x, {used:6.1f} s of processors", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
