"""Events to frames: speed and memory against tonic's ToFrame, in one run on one thread.

python benchmarks/event_frames.py                       # 300,000 events, 128 x 128, T = 16
python benchmarks/event_frames.py --recordings 1341     # a set of DVS128 Gesture's size, whole
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import resource
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from spikeformer_lt.events.cache import FrameCache
from spikeformer_lt.events.dataset import EventFrames, Source
from spikeformer_lt.events.formats import FileReader
from spikeformer_lt.events.frame import EventOptions, Framing, to_frames
from spikeformer_lt.events.recording import Sensor, make_events
from spikeformer_lt.events.split import Sample
from spikeformer_lt.events.validate import validate

SENSOR = Sensor(128, 128)
GESTURE = 1341  # recordings in tonic's DVS128 Gesture


def recording(count: int, seed: int = 0):
    """Events over 6 s, crowded in the middle as a moving hand is."""
    rng = np.random.default_rng(seed)
    places = np.clip(rng.normal(64, 20, (2, count)), 0, 127)
    times = np.sort(rng.integers(0, 6_000_000, count)) // 1000 * 1000  # the files are in ms
    return make_events(places[0], places[1], rng.integers(0, 2, count), times)


def on_tonic(events):
    """The same events in tonic's own dtype for DVS128 Gesture."""
    made = np.empty(len(events), [("x", "<i2"), ("y", "<i2"), ("p", "?"), ("t", "<i8")])
    for theirs, ours in (("x", "x"), ("y", "y"), ("p", "p"), ("t", "t_us")):
        made[theirs] = events[ours]
    return made


def best_ms(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """Least processor time of each, taken in turns: other programs disturb all alike."""
    best = [float("inf")] * len(works)
    for turn in range(repeats + 1):
        for place, work in enumerate(works):
            start = time.process_time()
            work()
            took = (time.process_time() - start) * 1e3
            best[place] = min(best[place], took) if turn else float("inf")
    return best


def on_kernels(name: str, work: Callable[[], object]) -> Callable[[], object]:
    """The same work with the kernels named."""

    def run() -> object:
        os.environ["SPIKEFORMER_KERNELS"] = name
        return work()

    return run


def compare(count: int, T: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tonic.transforms import ToFrame
    events = recording(count)
    theirs = on_tonic(events)
    print(f"{count} events, 128 x 128 x 2, T = {T}; least processor time of 30 runs")
    print(f"{'':14} {'tonic ms':>9} {'numba ms':>9} {'ratio':>6} {'numpy ms':>9} {'ratio':>6}")
    for way in ("n_event_bins", "n_time_bins"):
        framing, other = Framing(T, way), ToFrame(sensor_size=(128, 128, 2), **{way: T})
        ours, _ = to_frames(events, framing, SENSOR)
        assert np.array_equal(ours[:-1], other(theirs)[:-1]) and ours.sum() == count
        ways = [
            on_kernels(k, partial(to_frames, events, framing, SENSOR)) for k in ("numba", "torch")
        ]
        tonic, numba, numpy = best_ms([partial(other, theirs), *ways], 30)
        print(
            f"{way:14} {tonic:9.2f} {numba:9.2f} {tonic / numba:6.1f} "
            f"{numpy:9.2f} {tonic / numpy:6.1f}"
        )
    os.environ.pop("SPIKEFORMER_KERNELS")
    (check,) = best_ms([partial(validate, events, SENSOR)], 20)
    print(f"validation, which tonic does not do: {check:.2f} ms")


def epochs(count: int, T: int, recordings: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(recordings):
            events = recording(count, i)
            columns = [events["x"], events["y"], events["p"], events["t_us"] // 1000]
            np.save(root / f"{i}.npy", np.stack(columns, 1).astype(np.int32))
        size = (root / "0.npy").stat().st_size
        data = EventFrames(
            "made",
            [Sample(f"{i}.npy") for i in range(recordings)],
            Source(FileReader(root, "npy", microseconds_per_tick=1000), SENSOR, root=root),
            EventOptions(T=T),
            128,
            cache=FrameCache(root / "cache", "made", {}),
        )
        data[0]  # compiles
        print(f"\n{recordings} files of {size / 1e6:.1f} MB, read, validated, framed, cached:")
        for name in ("first epoch", "cached epoch"):
            start, busy = time.perf_counter(), time.process_time()
            for i in range(recordings):
                data[i]
            each = (time.perf_counter() - start) / recordings
            busy = (time.process_time() - busy) / recordings
            told = f"{each * 1e3:.2f} ms a recording ({busy * 1e3:.2f} ms of the processor)"
            if recordings != GESTURE:
                told += f", {each * GESTURE:.1f} s for {GESTURE} (extrapolated)"
            print(f"{name:13} {told}")
        tracemalloc.start()
        EventFrames("made", data.samples[:1], data.source, data.options, 128)[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        frames = T * 2 * 128 * 128 * 4
        print(
            f"memory of one: {peak / 1e6:.1f} MB for a file of {size / 1e6:.1f} MB and frames of "
            f"{frames / 1e6:.1f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--T", type=int, default=16)
    parser.add_argument("--recordings", type=int, default=24)
    options = parser.parse_args()
    names = ("tonic", "numpy", "numba")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores\n")
    compare(options.events, options.T)
    epochs(options.events, options.T, options.recordings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"process, all imports in: {peak:.0f} MB")


if __name__ == "__main__":
    main()
