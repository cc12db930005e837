"""Pictures before a simulated event camera: recordings that need no download, and their files.

A pixel sends an event whenever the logarithm of its brightness has changed by its threshold since
the event before (ESIM, Rebecq et al. 2018, with linear interpolation in time). The picture moves
along three saccades that form a triangle, as in N-MNIST (Orchard et al. 2015).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.bundle import new_stage, recover
from spikeformer_lt.config import check, check_fields
from spikeformer_lt.errors import DataError, name_of, one_of
from spikeformer_lt.events.aedat import write_aedat31
from spikeformer_lt.events.recording import Events, make_events
from spikeformer_lt.events.split import Sample

Array = NDArray[np.float64]
Recorded = Iterable[tuple[Sample, Events]]
SIMULATED = "SIMULATED.txt"  # beside such files: whoever reads them is to say so
_FORMS = {"aedat31": "DvsGesture", "npy": "DVSGesture"}  # folder that a set of each form is in
_PARTS = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}
_FLOOR = 0.1  # brightness of black, so that its logarithm exists; white is 1


@dataclass(frozen=True)
class Camera:
    """A simulated sensor and the motion before it."""

    threshold: float = 0.25  # change of log brightness that makes an event
    mismatch: float = 0.03  # standard deviation of the thresholds over pixels, as a fraction of it
    noise_hz: float = 0.5  # rate of events of each pixel without any change
    saccade_us: int = 100_000  # length of each of the three saccades, in microseconds
    reach: float = 0.12  # length of a saccade as a fraction of the sensor's side
    steps: int = 24  # pictures that a saccade is computed from

    def __post_init__(self) -> None:
        some = "[0, inf)"
        check_fields(
            self, saccade_us=1, steps=1, threshold="(0, inf)", mismatch=some, noise_hz=some
        )

    def record(self, picture: Array, size: int, rng: np.random.Generator) -> Events:
        """Return the valid events of one picture, from time 0 to three saccades.

        Args:
            picture: brightness in [0, 1], [h, w]; it is put into the middle, over black.
            size: side of the square sensor, in pixels, at least the picture's.
            rng: of path, thresholds and noise: the same state, the same recording.
        """
        assert max(picture.shape) <= size
        times, shifts = self._path(size, rng)
        level = np.log(_FLOOR + (1 - _FLOOR) * _moved(picture, size, shifts))
        return self.film(level, times, rng)

    def film(self, level: Array, times: Array, rng: np.random.Generator) -> Events:
        """Return the valid events of pictures, from time 0 to before the last of them.

        Args:
            level: logarithms of brightness, [S, size, size]; they change evenly in between.
            times: of the pictures in microseconds, [S], rising from 0; the last is a whole number.
            rng: of thresholds and noise: the same state, the same recording.
        """
        size, end = level.shape[-1], int(times[-1])
        spread = rng.standard_normal((size, size)) * self.mismatch
        threshold = self.threshold * np.clip(1 + spread, 0.5, 1.5)
        steps = _crossings(level, threshold, times)
        count = rng.poisson(self.noise_hz * size * size * end / 1e6)
        x, y = rng.integers(0, size, (2, count))
        noise = (x, y, rng.integers(0, 2, count), rng.integers(0, end, count))
        x, y, p, t = (np.concatenate(columns) for columns in zip(*steps, noise, strict=True))
        order = np.argsort(t, kind="stable")
        return make_events(x[order], y[order], p[order], t[order])

    @property
    def duration_us(self) -> int:
        """Length of a recording of a picture."""
        return 3 * self.saccade_us

    def _path(self, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return times [S] in microseconds and shifts [S, 2] in pixels (x, y) of a triangle."""
        angle, scale = rng.uniform(-0.3, 0.3), rng.uniform(0.8, 1.2) * self.reach * size
        corners = angle + np.pi / 2 + np.arange(4) * 2 * np.pi / 3
        points = np.stack([np.cos(corners), np.sin(corners)], 1) * scale / np.sqrt(3)
        where = np.linspace(0, 3, 3 * self.steps + 1)
        times = where * self.saccade_us
        shifts = np.stack([np.interp(where, np.arange(4), points[:, i]) for i in range(2)], 1)
        return times, shifts


def _crossings(level: Array, threshold: Array, times: Array) -> list[tuple[NDArray[Any], ...]]:
    """Return (x, y, p, t) of the events between each two pictures."""
    last = level[0].copy()
    found: list[tuple[NDArray[Any], ...]] = []
    for step in range(1, len(times)):
        before, after = level[step - 1], level[step]
        rows, columns = np.nonzero(np.abs(after - last) >= threshold)
        gap, each = (after - last)[rows, columns], threshold[rows, columns]
        n, sign = np.floor(np.abs(gap) / each).astype(np.int64), np.sign(gap)
        # The j-th event of a pixel comes where the line from `before` to `after` meets
        # last + j thresholds.
        pixel = np.repeat(np.arange(len(n)), n)
        j = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n) + 1
        r, c = rows[pixel], columns[pixel]
        goal = last[r, c] + sign[pixel] * j * each[pixel]
        change = after[r, c] - before[r, c]
        part = np.divide(goal - before[r, c], change, where=change != 0, out=np.ones(len(j)))
        t = times[step - 1] + np.clip(part, 0, 1) * (times[step] - times[step - 1])
        # A time on the end belongs to the end: nothing may come after the last picture.
        whole = np.minimum(t.astype(np.int64), int(times[-1]) - 1)
        found.append((c, r, (sign[pixel] > 0).astype(np.int64), whole))
        last[rows, columns] += sign * n * each
    return found


def _moved(picture: Array, size: int, shifts: Array) -> Array:
    """Return the picture on a black square at each shift, bilinearly: [S, size, size]."""
    hats = []
    for axis, side in enumerate(reversed(picture.shape)):
        # Where each pixel of the square looks into the picture, and how much of each pixel it sees.
        at = np.arange(size)[None, :] - (size - side) / 2 - shifts[:, axis, None]
        hats.append(np.maximum(1 - np.abs(at[..., None] - np.arange(side)), 0))
    across, down = hats  # [S, size, w], [S, size, h]
    return np.asarray(down @ picture @ across.transpose(0, 2, 1))


def write_gestures(
    folder: str | Path, parts: Mapping[str, Recorded], form: str = "aedat31"
) -> Path:
    """Write simulated gestures as files of DVS128 Gesture, and beside them that they are simulated.

    `parts` are "train" and "test": stretches of trials ``user<number>_<light>.aedat`` with their
    valid events. `form` is "aedat31", the original's (``DvsGesture``: a recording and a table of
    labels a trial, lists of trials), or "npy", tonic's (``DVSGesture``: an array [N, 4] of x, y, p
    and ms a trial and class; of a class made twice, the later one).

    Returns:
        The folder of the set, in `folder`.

    Raises:
        ConfigError: another form, or a set that is there.
        DataError: the disk refuses.
    """
    one_of("form", form, _FORMS)
    home = Path(folder) / _FORMS[form]
    recover(home)
    check(not home.exists(), "dir", str(folder), f"one without a folder {home.name}")
    try:
        with contextlib.ExitStack() as cleaning:
            stage = new_stage(home, cleaning)
            (stage / SIMULATED).write_text(
                "Simulated by spikeformer_lt (moving_gestures): no camera, no people. Results on "
                "these files are no results on DVS128 Gesture.\n"
            )
            for part, recorded in parts.items():
                (_write_trials if form == "aedat31" else _write_arrays)(stage, part, recorded)
            os.rename(stage, home)
    except OSError as fault:
        raise DataError(f"cannot write {name_of(home)}: {fault.strerror or fault}") from fault
    return home


def _write_trials(home: Path, part: str, recorded: Recorded) -> None:
    trials: dict[str, list[tuple[Sample, Events]]] = {}
    for sample, events in recorded:
        trials.setdefault(sample.path, []).append((sample, events))
    for name, stretches in trials.items():
        stretches.sort(key=lambda pair: pair[0])
        whole = np.concatenate([events for _, events in stretches])
        write_aedat31(home / name, whole, "Simulated by spikeformer_lt: no recording of a camera")
        rows = [f"{s.label + 1},{s.start_us},{s.end_us}" for s, _ in stretches]
        table = "\n".join(["class,startTime_usec,endTime_usec", *rows, ""])
        (home / f"{Path(name).stem}_labels.csv").write_text(table)
    (home / f"trials_to_{part}.txt").write_text("".join(f"{name}\n" for name in sorted(trials)))


def _write_arrays(home: Path, part: str, recorded: Recorded) -> None:
    later: dict[Path, Sample] = {}
    for sample, events in recorded:
        path = home / _PARTS[part] / Path(sample.path).stem / f"{sample.label}.npy"
        if later.setdefault(path, sample) <= sample:
            later[path] = sample
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = (events["x"], events["y"], events["p"], events["t_us"] // 1000)
            np.save(path, np.stack(columns, 1).astype(np.int32))
