"""scikit-learn's digits, moved before a simulated event camera: recordings that need no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository,
1998, through `sklearn.datasets.load_digits`; the camera is `spikeformer_lt.events.simulate`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.events import EventDataOptions, Sample, Sensor, Source, event_splits
from spikeformer_lt.events.recording import Raw
from spikeformer_lt.events.simulate import Camera
from spikeformer_lt.events.split import cut
from spikeformer_lt.images.splits import hashed_validation
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.rng import seed_for
from spikeformer_lt.splits import Splits, takes

_INK = 16  # the brightest value in the source
_TEST_FRACTION = 0.2  # and the same digits as in the data set `digits`


@register_dataset
@takes(EventDataOptions)
def moving_digits(options: EventDataOptions) -> Splits:
    """scikit-learn's digits as event recordings: 1,438 to train and validate, 359 to test.

    Each digit makes three saccades of 100 ms; a recording depends on nothing but the number of its
    digit and the sensor's size. They are simulated: their results are no results on recordings of a
    camera. `image_size` is the side of the sensor, a multiple of 8 from 16 to 128, by default 32.
    Frames are kept in memory unless `events.cache` names a folder.
    """
    size = 32 if options.image_size is None else options.image_size
    allowed = "moving_digits have multiples of 8 from 16 to 128 pixels, such as 32 or 64"
    check(size in range(16, 129, 8), "image_size", size, allowed)
    labels = _digits()[1]
    pool, held = hashed_validation("digits/test", labels, _TEST_FRACTION)
    samples = [Sample(f"digit-{i:04d}", label=int(label)) for i, label in enumerate(labels)]
    train, test = ([samples[i] for i in part.tolist()] for part in (pool, held))
    split = cut("moving_digits", [str(n) for n in range(10)], train, test, options.val_fraction)
    source = Source(MovingDigit(size), Sensor(size, size))
    splits = event_splits(split, source, options, augment="moving_digits")
    return replace(splits, mirror_changes_label=True)


@dataclass(frozen=True)
class MovingDigit:
    """Records a digit, by the number in its sample's path."""

    size: int  # side of the sensor, in pixels; the digit takes 3/4 of it
    camera: Camera = field(default_factory=Camera)  # what it is recorded with

    def __call__(self, sample: Sample) -> Raw:
        """Return the recording of a digit."""
        number = int(sample.path.removeprefix("digit-"))
        ink, side = _digits()[0][None, None, number], self.size * 3 // 4
        picture = torch.nn.functional.interpolate(ink, size=(side, side), mode="bilinear")
        rng = np.random.default_rng(seed_for("moving_digits", number, self.size))
        return Raw(self.camera.record(picture[0, 0].numpy(), self.size, rng))

    def fingerprint(self, sample: Sample) -> str:
        """Return the same for all: a digit never changes."""
        del sample
        return "made"


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """Return brightness, float64 [1797, 8, 8] in [0, 1], and labels, int64 [1797]."""
    from sklearn.datasets import load_digits

    source = load_digits()
    return torch.from_numpy(source.images / _INK), torch.from_numpy(source.target).to(torch.int64)
