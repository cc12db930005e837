"""Two runners of one folder against one: the time of a comparison of eight runs of 20 s.

python benchmarks/shared_runners.py                # 5 minutes on two idle cores
python benchmarks/shared_runners.py --rounds 3     # one runner and two in turn

Each runner is the same command, `compare_tickets.py --on shared --jobs 1`, with one thread: on two
idle cores two of them take half the time and what it takes to start. Processor seconds are of the
runners and all their runs: where they are less than time times runners, other work had the cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = 8


def timed(folder: Path, runners: int, epochs: int) -> tuple[float, float]:
    """Seconds, by the clock and of the processor, of a comparison by so many runners."""
    command = shlex.split(
        f"{sys.executable} {ROOT}/recipes/compare_tickets.py --searches random --sparsities 0.9 "
        f"--seeds 0 1 2 3 --epochs {epochs} --on shared --jobs 1 --out {folder}"
    )
    threads = {"OMP_NUM_THREADS": "1"}
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        threads[name] = "1"
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    started = []
    for number in range(runners):
        with folder.with_name(f"{folder.name}-{number}.log").open("wb") as log:
            started.append(
                subprocess.Popen(command, env=os.environ | threads, stdout=log, stderr=log)
            )
    codes = [process.wait() for process in started]
    took, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    reports = len(list((folder / "runs").glob("*/report.json")))
    if any(codes) or reports != RUNS:
        raise SystemExit(f"exit {codes}, {reports} of {RUNS} reports: see {folder}*.log")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="of one runner and two, in turn")
    parser.add_argument("--epochs", type=int, default=8, help="of each run, on digits")
    args = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(args.rounds):
            for runners in found:
                load = os.getloadavg()[0]
                took, spent = timed(Path(place) / f"{turn}-{runners}", runners, args.epochs)
                found[runners].append(took)
                print(
                    f"{runners} of {os.cpu_count()} cores: {RUNS} runs in {took:.0f} s, "
                    f"{spent:.0f} s of the processor; load before {load:.1f}, after "
                    f"{os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    one, two = (statistics.median(times) for times in found.values())
    print(f"two runners take {two / one:.2f} of the time of one (0.6 asked)")


if __name__ == "__main__":
    main()
