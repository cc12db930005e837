"""A picture moved before a simulated event camera: recordings that need no download.

A pixel sends an event whenever the logarithm of its brightness has changed by its threshold since
the event before (ESIM, Rebecq et al. 2018, with linear interpolation in time). The picture moves
along three saccades that form a triangle, as in N-MNIST (Orchard et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.events.recording import Events, make_events

Array = NDArray[np.float64]
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
        spread = rng.standard_normal((size, size)) * self.mismatch
        threshold = self.threshold * np.clip(1 + spread, 0.5, 1.5)
        steps = self._crossings(level, threshold, times)
        count = rng.poisson(self.noise_hz * size * size * self.duration_us / 1e6)
        x, y = rng.integers(0, size, (2, count))
        noise = (x, y, rng.integers(0, 2, count), rng.integers(0, self.duration_us, count))
        x, y, p, t = (np.concatenate(columns) for columns in zip(*steps, noise, strict=True))
        order = np.argsort(t, kind="stable")
        return make_events(x[order], y[order], p[order], t[order])

    @property
    def duration_us(self) -> int:
        """Length of a recording."""
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

    def _crossings(
        self, level: Array, threshold: Array, times: Array
    ) -> list[tuple[NDArray[Any], ...]]:
        """Return (x, y, p, t) of the events between each two pictures."""
        last = level[0].copy()
        found: list[tuple[NDArray[Any], ...]] = []
        for step in range(1, len(times)):
            before, after = level[step - 1], level[step]
            count = np.floor(np.abs(after - last) / threshold).astype(np.int64)
            rows, columns = np.nonzero(count)
            n = count[rows, columns]
            sign = np.sign(after - last)[rows, columns]
            # The j-th event of a pixel comes where the line from `before` to `after` meets
            # last + j thresholds.
            pixel = np.repeat(np.arange(len(n)), n)
            j = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n) + 1
            r, c = rows[pixel], columns[pixel]
            goal = last[r, c] + sign[pixel] * j * threshold[r, c]
            change = after[r, c] - before[r, c]
            part = np.divide(goal - before[r, c], change, where=change != 0, out=np.ones(len(j)))
            t = times[step - 1] + np.clip(part, 0, 1) * (times[step] - times[step - 1])
            # A time on the end belongs to the end: nothing may come after the last picture.
            whole = np.minimum(t.astype(np.int64), self.duration_us - 1)
            found.append((c, r, (sign[pixel] > 0).astype(np.int64), whole))
            last[rows, columns] += sign * n * threshold[rows, columns]
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
