"""Readers of Prophesee's files: ours, expelliarmus' and evlib's, on one file, in one run.

python benchmarks/dat_readers.py                 # 5,000,000 events of a .dat, one thread
python benchmarks/dat_readers.py --form evt2     # or of EVT 2.0, or evt3
python benchmarks/dat_readers.py --file a.dat    # a recording of yours

Each reader has a process of its own; they take turns. Seconds are of the processor, the least of
all turns; memory is what the process grew by at its peak. evlib would end with a table of polars,
the others end with events in numpy: 16 bytes an event. "in our records" is expelliarmus with its
events turned into ours, which the gate behind every reader takes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"), "1")


def write(path: Path, count: int, form: str, seed: int = 0) -> None:
    """Write a recording of 304 x 240 pixels, the camera of N-Cars, at 1 Mev/s."""
    rng = np.random.default_rng(seed)
    words = np.empty(count, [("clock", "<u4"), ("data", "<u4")])
    words["clock"] = np.cumsum(rng.integers(0, 3, count))
    x, y, p = (rng.integers(0, most, count) for most in (304, 240, 2))
    words["data"] = x | y << 14 | p << 28
    head = b"% Data file containing CD events.\n% Version 2\n% Height 240\n% Width 304\n"
    path.write_bytes(head + bytes([12, 8]) + words.tobytes())
    if form != "dat":
        from expelliarmus import Wizard

        raw = path.with_suffix(".raw")
        Wizard(encoding=form).save(raw, Wizard(encoding="dat").read(path))
        if form == "evt3":
            raw.write_bytes(with_high_times(raw.read_bytes()))


def with_high_times(raw: bytes) -> bytes:
    """EVT 3.0 with its TIME_HIGH words, of which expelliarmus 1.1.12 writes the first alone."""
    first = len(re.match(rb"(%.*\n)*", raw)[0])  # the header
    words = np.frombuffer(raw[first:], "<u2")
    lows = np.flatnonzero(words >> 12 == 6)
    turns = lows[1:][words[lows[1:]] < words[lows[:-1]]]
    return raw[:first] + np.insert(words, turns, 0x8000 | np.arange(1, len(turns) + 1)).tobytes()


def reader(name: str, form: str) -> Callable[[Path], Any]:
    """Import a reader of files of a form."""
    if name == "ours":
        from spikeformer_lt.events.formats import read_dat, read_evt

        return lambda path: (read_dat if form == "dat" else read_evt)(path).events
    if "expelliarmus" in name:
        from expelliarmus import Wizard

        from spikeformer_lt.events.recording import make_events

        read = Wizard(encoding=form).read
        if name == "expelliarmus":
            return read

        def converted(path: Path) -> Any:
            events = read(path)
            return make_events(*(events[field] for field in "xypt"))

        return converted
    import evlib

    return lambda path: evlib.load_events(str(path), sort=False).collect()


def sums(events: Any) -> list[int]:
    """Number of events; sums of x, y, on-events and microseconds, by which readers are compared."""
    if isinstance(events, np.ndarray):
        time_of = "t_us" if "t_us" in (events.dtype.names or ()) else "t"
        columns = [events[name].astype(np.int64) for name in ("x", "y", "p", time_of)]
    else:
        stamps = events["t"].dt.total_microseconds()
        columns = [c.to_numpy().astype(np.int64) for c in (*events["x", "y", "polarity"], stamps)]
    columns[2] = columns[2] > 0
    return [len(events), *(int(column.sum()) for column in columns)]


def peak_kb() -> int:
    """Most memory that this process has held, in kB (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def measure(name: str, path: Path, form: str) -> dict[str, Any]:
    """Read once in this process."""
    read = reader(name, form)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_kb()
    start, clock = time.process_time(), time.perf_counter()
    try:
        events = read(path)
    except OSError as fault:  # evlib 0.13.2 takes it for text
        return {"fault": str(fault)}
    spent, took = time.process_time() - start, time.perf_counter() - clock
    grown = 1024 * (peak_kb() - before)
    return {"cpu": spent, "clock": took, "bytes": grown, "sums": sums(events)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=("dat", "evt2", "evt3"), default="dat")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--file", type=Path, help="read this one")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.file, args.form)))
        return
    names = ("ours", "expelliarmus", "expelliarmus in our records", "evlib")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as place:
        path = args.file or Path(place) / "a.dat"
        if not args.file:
            write(path, args.events, args.form)
            path = path if args.form == "dat" else path.with_suffix(".raw")
        for _ in range(args.turns):
            for name, turns in found.items():
                command = [sys.executable, "-P", __file__, "--one", name, "--file", str(path)]
                command += ["--form", args.form]
                alone = {"env": os.environ | ONE_THREAD, "stdout": subprocess.PIPE, "text": True}
                said = subprocess.run(command, check=True, **alone).stdout
                turns.append(json.loads(said.splitlines()[-1]))
    alike = {name: turns[0].get("sums") for name, turns in found.items()}
    print(f"load {os.getloadavg()[0]:.1f}; numpy {np.__version__}; sums {alike}")
    for name, turns in found.items():
        if "fault" in turns[0]:
            print(f"{name} {importlib.metadata.version(name.split()[0])}: {turns[0]['fault']}")
            continue
        count = turns[0]["sums"][0]
        least = {key: min(turn[key] for turn in turns) for key in ("cpu", "clock", "bytes")}
        other = "; OTHER EVENTS THAN OURS" * (turns[0]["sums"] != found["ours"][0]["sums"])
        version = "" if name == "ours" else f" {importlib.metadata.version(name.split()[0])}"
        print(
            f"{name}{version}: {count / least['cpu'] / 1e6:.1f} million events a processor second, "
            f"{count / least['clock'] / 1e6:.1f} by the clock; "
            f"{least['bytes'] / count:.0f} bytes an event at the peak{other}"
        )


if __name__ == "__main__":
    main()
