"""A training run on digits by number of threads, alone and beside busy processes.

python benchmarks/busy.py                      # idle cores, minutes
python benchmarks/busy.py --busy 0 1 --epochs 4
python benchmarks/busy.py --operation          # seconds: one operation of torch by two threads

Each run is a process of its own, timed whole: MultiSp on the embedded digits with all defaults but
the number of epochs, `python recipes/multisp_cifar.py --data.name digits`. "default" chooses its
threads itself; the neighbours are endless loops, and their time is not in that of processors.
Ratios are to the fastest run alone. --operation multiplies 131,072 numbers 3,000 times: what waking
a thread costs where it sleeps between operations, and where it spins.
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
OPERATION = """
import spikeformer_lt, torch, time
x, found = torch.rand(1 << 17), []
for threads in (1, 2):
    torch.set_num_threads(threads)
    times = []
    for _ in range(3000):
        begin = time.perf_counter()
        x.mul_(1.0)
        times.append(1e6 * (time.perf_counter() - begin))
    times.sort()
    found.append(f"{threads} threads {times[0]:.1f}, {times[300]:.1f}, {times[1500]:.1f}")
print("; ".join(found), f"({time.process_time():.1f} s of processors)")
"""
POLICIES = ({}, {"GOMP_SPINCOUNT": "3000"}, {"OMP_WAIT_POLICY": "active"})


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


def operation() -> None:
    """Print the least time of an operation, its first decile and its median, in us."""
    for policy in POLICIES:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", OPERATION], env=os.environ | policy, text=True,
            check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        load = os.getloadavg()[0]
        print(f"{policy or 'passive'}, load {load:.0f}: {ended.stdout.strip()}", flush=True)


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
    parser.add_argument("--operation", action="store_true", help="time one operation instead")
    args = parser.parse_args()
    if args.operation:
        operation()
        return
    cpus = len(os.sched_getaffinity(0))
    asked = [*range(1, cpus + 1), 0] if args.threads is None else args.threads
    run(1, 1)  # compiles
    found: list[tuple[int, float, str]] = []
    for busy in args.busy:
        for threads in asked:
            with neighbours(busy):
                seconds, used = min(run(threads, args.epochs) for _ in range(args.rounds))
            told = f"{busy:2} busy beside, threads {threads or 'default':>7}: {seconds:7.1f} s"
            found.append((busy, seconds, f"{told}, {used:6.1f} s of processors"))
            print(found[-1][2], flush=True)
    fastest = min(seconds for busy, seconds, _ in found if busy == min(args.busy))
    print("\nover the fastest run alone:")
    for _, seconds, told in found:
        print(f"{told}, {seconds / fastest:6.2f}x")


if __name__ == "__main__":
    main()
