"""Simulated people who make the gestures of DVS128 Gesture: recordings that need no download.

Trials, lights, classes and stretches are those of A. Amir et al., CVPR 2017 (`dvs128_gesture`);
arms, light and camera (`spikeformer_lt.events.simulate`) are simulated. Nothing is measured:
results are no results on DVS128 Gesture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.datasets.dvs128_gesture import CLASSES
from spikeformer_lt.events import EventDataOptions, Sample, Sensor, Source, event_splits
from spikeformer_lt.events.recording import Raw
from spikeformer_lt.events.simulate import Camera
from spikeformer_lt.events.split import cut
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.rng import seed_for
from spikeformer_lt.splits import Splits, takes

Array = NDArray[np.float64]
_SIZE, _DEFAULT_SIZE = 128, 32  # pixels: of the sensor, and of a frame
_LIGHTS = {  # contrast of a person with the background in log brightness, noise of a pixel in Hz
    "fluorescent": (0.6, 0.3),
    "fluorescent_led": (0.7, 0.2),
    "led": (0.8, 0.1),
    "natural": (1.0, 0.05),
    "lab": (0.9, 0.1),
}
_LAB = 6  # people from 1 on who were recorded under the fifth light, too: 98 trials and 24
_ROWS = (*range(8), *range(7, 11))  # a trial's classes: the arms roll forwards, then backwards
_FIRST_US, _EACH_US = 2_000_000, 2_000_000  # start of a trial's first gesture, from one to the next
_STEPS = 80  # pictures a second
_NAME = re.compile(r"user(\d\d)_(\w+)\.aedat")


@register_dataset
@takes(EventDataOptions)
def moving_gestures(options: EventDataOptions) -> Splits:
    """Simulated gestures: 1,176 recordings to train and validate, 288 to test, 128 x 128 pixels.

    29 people make the 11 gestures of DVS128 Gesture, 1.1 to 1.4 s each, in four or five lights.
    People 24 to 29 are the test, validation is whole people. Clothes are brighter than the
    background in one half of the trials and darker in the other, so that a recording of a circle
    and the reversed one of the opposite circle have the same frames in reversed order: only the
    order of time tells such classes apart. A frame has `image_size` pixels a side, by default 32.
    Frames are kept in memory unless `events.cache` names a folder.
    """
    trials = [(user, light) for user in range(1, 30) for light in _lights_of(user)]
    samples = [_sample(*trial, row) for trial in trials for row in range(len(_ROWS))]
    pool, test = ([s for s in samples if (int(s.group) > 23) == held] for held in (False, True))
    split = cut("moving_gestures", CLASSES, pool, test, options.val_fraction, groups=True)
    if options.image_size is None:
        options = replace(options, image_size=_DEFAULT_SIZE)
    source = Source(MovingGesture(), Sensor(_SIZE, _SIZE))
    splits = event_splits(split, source, options, augment="moving_digits")
    return replace(splits, mirror_changes_label=True)


def _lights_of(user: int) -> list[str]:
    return list(_LIGHTS)[: 5 if user <= _LAB else 4]


def _sample(user: int, light: str, row: int) -> Sample:
    start = _FIRST_US + row * _EACH_US
    length = round(1e6 * np.random.default_rng(_seed(user, light, row)).uniform(1.1, 1.4))
    name = f"user{user:02d}_{light}.aedat"
    return Sample(name, start, start + length, _ROWS[row], str(user))


def _seed(*what: int | str) -> int:
    return seed_for("moving_gestures", *what)


@dataclass(frozen=True)
class MovingGesture:
    """Records a gesture: a stretch of a trial, by its person, light and time."""

    camera: Camera = field(default_factory=lambda: Camera(threshold=0.3))

    def __call__(self, sample: Sample) -> Raw:
        """Return the recording of a stretch, with the trial's times."""
        named, start, end = _NAME.fullmatch(sample.path), sample.start_us, sample.end_us
        assert named is not None and start is not None and end is not None
        user, light, row = int(named[1]), named[2], (start - _FIRST_US) // _EACH_US
        body = _Body(np.random.default_rng(_seed(user)))
        rng = np.random.default_rng(_seed(user, light, row, "motion"))
        times = np.linspace(0, end - start, round(_STEPS * (end - start) / 1e6) + 1)
        contrast, noise = _LIGHTS[light]
        sign = 1 if (user + list(_LIGHTS).index(light)) % 2 else -1
        level = sign * contrast * body.film(row, times / 1e6, rng)
        events = replace(self.camera, noise_hz=noise).film(level, times, rng)
        events["t_us"] += start
        return Raw(events)

    def fingerprint(self, sample: Sample) -> str:
        """Return the same for all: a gesture never changes."""
        del sample
        return "made"


class _Body:
    """A person before the camera: size, place, tempo and reach, in pixels of 128.

    The right arm (`side` -1) is on the left of the picture; y points down.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.scale, self.tempo = rng.uniform(0.85, 1.1), rng.uniform(0.8, 1.2)  # -, Hz
        self.reach, self.thick = rng.uniform(0.85, 1.15), rng.uniform(3.0, 4.5)
        self.chest = np.array([64 + rng.uniform(-6, 6), 60 + rng.uniform(-5, 5)])

    def film(self, row: int, seconds: Array, rng: np.random.Generator) -> Array:
        """Return how much of each pixel the person covers at each time: [S, 128, 128] in [0, 1]."""
        tempo, reach = self.tempo * rng.uniform(0.9, 1.1), self.reach * rng.uniform(0.9, 1.1)
        angle = 2 * np.pi * (tempo * seconds + rng.uniform())
        sway = np.stack([np.sin(2 * np.pi * (0.4 * seconds + rng.uniform())), 0 * seconds], 1)
        shift = self.chest + rng.uniform(-2, 2, 2) + sway

        def place(x: float, y: float) -> Array:
            return np.asarray(shift + self.scale * np.array([x, y]))

        picture = np.zeros((len(seconds), _SIZE, _SIZE), np.float32)
        _paint(picture, place(0, -8), place(0, 28), 12 * self.scale, 0.5)
        _paint(picture, place(0, -30), place(0, -28), 8 * self.scale, 0.5)
        for side, hand in zip((-1, 1), _hands(row, angle, reach, rng), strict=True):
            shoulder, end = place(side * 14, -14), shift + self.scale * hand
            half = np.linalg.norm(end - shoulder, axis=1, keepdims=True) / 2
            bend = np.sqrt(np.maximum((21 * self.scale) ** 2 - half**2, 0))
            elbow = (shoulder + end) / 2 + bend * np.array([side * 0.5, 0.85])
            for a, b in ((shoulder, elbow), (elbow, end)):
                _paint(picture, a, b, self.thick * self.scale, 1.0)
        return picture.astype(np.float64)


def _hands(row: int, a: Array, reach: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the paths of right and left hand [S, 2] from the chest, at phases `a` in radians."""
    sin, cos, zero = reach * np.sin(a), reach * np.cos(a), 0 * a

    def at(x: Array | float, y: Array | float) -> Array:
        return np.stack([x + zero, y + zero], 1)

    def still(side: int) -> Array:
        return at(side * 20, 24)

    def wave(side: int) -> Array:
        return at(side * 26 + 9 * sin, -34 + 2 * cos**2)

    def circle(side: int, turn: int) -> Array:  # turn 1 is clockwise as the camera sees it
        return at(side * 28 + 16 * cos, -10 + turn * 16 * sin)

    def any_path(x: float) -> Array:  # never a circle: the two frequencies differ
        x, y, phase = x + rng.uniform(-10, 10), rng.uniform(-20, 10), rng.uniform(0, 2 * np.pi)
        fast = (1, 2) if rng.random() < 0.5 else (2, 1)
        return at(x + 12 * np.sin(fast[0] * a), y + 12 * np.sin(fast[1] * a + phase))

    def roll(turn: int) -> tuple[Array, Array]:
        return at(8 * cos, 4 + turn * 9 * sin), at(-8 * cos, 4 - turn * 9 * sin)

    ways: tuple[Callable[[], tuple[Array, Array]], ...] = (
        lambda: (at(-12 - 9 * cos, 0), at(12 + 9 * cos, 0)),  # clap
        lambda: (wave(-1), still(1)),
        lambda: (still(-1), wave(1)),
        lambda: (circle(-1, 1), still(1)),
        lambda: (circle(-1, -1), still(1)),
        lambda: (still(-1), circle(1, 1)),
        lambda: (still(-1), circle(1, -1)),
        lambda: roll(1),
        lambda: roll(-1),
        lambda: (at(-16, 10 + 9 * sin), at(16, 10 - 9 * sin)),  # drums
        lambda: (at(-4 + 5 * sin, 16 + 9 * sin), at(36 + 2 * cos, -4)),  # guitar
        lambda: (any_path(-16), any_path(16)),
    )
    return ways[row]()


def _paint(picture: NDArray[np.float32], a: Array, b: Array, radius: float, value: float) -> None:
    """Put a limb from `a` to `b` [S, 2] into pictures [S, H, W], where it is brighter than them."""
    edge, ends = radius + 1, np.concatenate([a, b])
    low = np.clip(np.floor(ends.min(0) - edge), 0, _SIZE - 1).astype(int)
    high = np.clip(np.ceil(ends.max(0) + edge), 0, _SIZE - 1).astype(int) + 1
    a, along = a.astype(np.float32), (b - a).astype(np.float32)
    x = np.arange(low[0], high[0], dtype=np.float32) - a[:, :1, None]  # [S, 1, w]
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] - a[:, 1:, None]  # [S, h, 1]
    dx, dy = along[:, :1, None], along[:, 1:, None]
    part = np.clip((x * dx + y * dy) / np.maximum(dx**2 + dy**2, 1e-6), 0, 1)
    gap = np.sqrt((x - part * dx) ** 2 + (y - part * dy) ** 2)
    covered = value * np.clip(radius - gap + 0.5, 0, 1)
    where = picture[:, low[1] : high[1], low[0] : high[0]]
    np.maximum(where, covered, out=where)
