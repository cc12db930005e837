"""Augmentation of a recording's frames in training, and tonic's transforms of its events."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, DataError, near, shown
from spikeformer_lt.events.recording import Events, Sensor, decoding
from spikeformer_lt.events.validate import Report, validate
from spikeformer_lt.rng import isolated_rng, seed_for

_BINS = 31  # strengths of an operation, evenly spaced
_SHEAR, _SHIFT, _TURN = math.degrees(0.3), 5, -30.0  # largest: degrees, pixels, degrees
_CUT = (0.001, 0.11)  # area of the rectangle, as a fraction of the frame
_OPERATIONS = ("identity", "shear_x", "translate_x", "translate_y", "rotate", "cutout")
_DROPS = ("none", "time", "area", "random")


@dataclass(frozen=True)
class EventAugment:
    """What happens to a training recording, in this order; all off by default.

    Attributes:
        hflip: probability of a left-right flip.
        roll: largest shift in pixels, both axes, what leaves on one side entering on the other.
        wide: one operation of identity, shear, shift in x or y, rotation or cutout, at random.
        event_drop: probability of EventDrop: all of one stretch of time, all of one rectangle, or
            single events at random go.

    Source: `wide`: SNNAugmentWide in Spikformer's cifar10dvs/autoaugment.py (arXiv:2203.06145);
    `roll`: TET (arXiv:2202.11946); `event_drop`: EventDrop (arXiv:2106.05836), Algorithm 1.

    Differs: EventDrop drops events before they are framed. Of counts, single events go by binomial
    thinning, which has the same distribution, and a stretch of time begins and ends on frames.
    """

    presets: ClassVar[dict[str, Any]] = {}
    """By name, as `standard` gives them; a plug-in may add one, as to `images.Augment`."""

    hflip: float = 0.0
    roll: int = 0
    wide: bool = False
    event_drop: float = 0.0

    @classmethod
    def standard(cls, name: str) -> Self:
        """Return a preset, such as "none" or "spikformer_dvs".

        Source: "spikformer_dvs": cifar10dvs/train.py of Spikformer (also Spikingformer, QKFormer);
        "tet_dvs": TET's data_loaders.py. "wide_dvs" is the first without its flips, for sets in
        which a mirrored sample is of another class; "moving_digits" only shifts.
        """
        if name not in cls.presets:
            raise ConfigError(
                f"augment={shown(name)} is not a preset for events{near(name, cls.presets) or ';'} "
                f"allowed: {', '.join(sorted(cls.presets))}"
            )
        return cast("Self", cls.presets[name])

    def check(self) -> None:
        """Refuse values out of range by a ConfigError."""
        for name in ("hflip", "event_drop"):
            value = getattr(self, name)
            check(0 <= value <= 1, name, value, "a probability, 0 to 1")
        whole = isinstance(self.roll, int) and not isinstance(self.roll, bool)
        check(whole and self.roll >= 0, "roll", self.roll, "0 pixels or more")

    def is_identity(self) -> bool:
        """Return whether nothing random is on."""
        return self == EventAugment()

    def build(
        self, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> Callable[[Tensor], Tensor]:
        """Return the transform of one recording: [T, P, H, W] -> float32 [T, P, H, W].

        All choices follow from one draw of Python's global generator: seed that around a call.
        Frames are counts of any size: `image_size` is not used, and mean must be 0 and std 1.
        """
        del image_size
        self.check()
        if set(mean) != {0.0} or set(std) != {1.0}:
            raise ConfigError(
                f"mean={tuple(mean)} and std={tuple(std)} are not allowed for events: frames are "
                "counts, with means 0 and deviations 1"
            )
        return self._drawn

    def _drawn(self, frames: Tensor) -> Tensor:
        return self(frames, np.random.default_rng(random.getrandbits(64))).to(torch.float32)

    def __call__(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """Return augmented frames; `frames`, counts of any type [T, P, H, W], are not changed."""
        if frames.ndim != 4:
            raise DataError(
                f"frames have the shape {list(frames.shape)}; needed is [T, P, H, W]: one recording"
            )
        if self.hflip and rng.random() < self.hflip:
            frames = frames.flip(-1)
        if self.roll:
            dy, dx = rng.integers(-self.roll, self.roll + 1, 2).tolist()
            frames = frames.roll((dy, dx), (-2, -1))
        if self.wide:
            frames = _wide(frames, rng)
        if self.event_drop and rng.random() < self.event_drop:
            frames = _event_drop(frames, rng)
        return frames


EventAugment.presets |= {
    "none": EventAugment(),
    "moving_digits": EventAugment(roll=2),
    "spikformer_dvs": EventAugment(hflip=0.5, wide=True),
    "wide_dvs": EventAugment(wide=True),
    "tet_dvs": EventAugment(hflip=0.5, roll=5),
    "event_drop": EventAugment(event_drop=0.5),
}


def _wide(frames: Tensor, rng: np.random.Generator) -> Tensor:
    from torchvision.transforms import functional  # takes a second to load

    operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
    # -1 to 1 in even steps: the sign that the source draws beside it changes no distribution.
    strength = float(rng.integers(_BINS)) * 2 / (_BINS - 1) - 1
    height, width = frames.shape[-2:]
    if operation == "identity":
        return frames
    if operation == "cutout":
        side = min(round(math.sqrt(height * width * rng.uniform(*_CUT))), height, width)
        top, left = rng.integers([height - side + 1, width - side + 1]).tolist()
        return _cut_out(frames, top, left, side, side)
    angle = strength * _TURN if operation == "rotate" else 0.0
    shear = strength * _SHEAR if operation == "shear_x" else 0.0
    shifts = [int(strength * _SHIFT) * (operation == f"translate_{axis}") for axis in "xy"]
    # The nearest pixel: values are moved, never mixed, and counts stay whole.
    moved: Tensor = functional.affine(frames, angle, shifts, 1.0, [shear, 0.0])
    return moved


def _event_drop(frames: Tensor, rng: np.random.Generator) -> Tensor:
    T, _, height, width = frames.shape
    way = _DROPS[rng.integers(len(_DROPS))]
    # Algorithm 1: a part of 1/10 to 9/10 for time and events, 1/20 to 5/20 of each side for areas.
    part = rng.integers(1, 10) / 10
    if way == "time":
        length = max(1, round(T * part))
        first = rng.integers(0, T - length + 1)
        out = frames.clone()
        out[first : first + length] = 0
        return out
    if way == "area":
        side = rng.integers(1, 6) / 20
        top, left = rng.integers([height, width]).tolist()
        return _cut_out(frames, top, left, round(height * side), round(width * side))
    if way == "random":
        counts = np.rint(frames.numpy()).astype(np.int64)
        return torch.from_numpy(rng.binomial(counts, 1 - part)).to(frames.dtype)
    return frames


def _cut_out(frames: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    out = frames.clone()
    out[..., top : top + height, left : left + width] = 0
    return out


_TEXT_LIMIT = 2000  # characters of transforms
_THEIRS = np.dtype([("x", "<i4"), ("y", "<i4"), ("t", "<i8"), ("p", "i1")])


@dataclass(frozen=True)
class Transforms:
    """Transforms of events, one after the other.

    A random one draws once for each recording: the same in every epoch and process. Times are those
    of the recording; TimeAlignment lets them begin at 0.
    """

    steps: tuple[Callable[[Any], Any], ...]
    sensor: Sensor  # after them

    @classmethod
    @functools.cache
    def parse(cls, text: str, sensor: Sensor) -> Transforms:
        """Read "Denoise(filter_time=10000), CenterCrop(size=(64, 64))", of ``tonic.transforms``.

        Arguments are literal values, and `sensor_size` is filled in.

        Raises:
            ConfigError: another form, no such transform, or arguments that it refuses.
        """
        steps: list[Callable[[Any], Any]] = []
        for name, given in _calls(text):
            kind = _transform(name)
            if "sensor_size" in inspect.signature(kind).parameters:
                given = {"sensor_size": (sensor.width, sensor.height, 2), **given}
            try:
                steps.append(kind(**given))
                sensor = _moved(sensor, steps[-1])
            except (TypeError, ValueError, AssertionError) as fault:
                said = shown(str(fault), 200)
                raise ConfigError(f"transform={name} is not allowed so: {said}") from fault
        return cls(tuple(steps), sensor)

    def __call__(self, events: Events, where: str, key: str) -> tuple[Events, Report]:
        """Return what becomes of valid events, valid again, for the recording called `key`.

        Raises:
            DataError: they become no recording, or one that is off the sensor.
        """
        made: Any = np.empty(len(events), _THEIRS)
        for name in ("x", "y", "p"):
            made[name] = events[name]
        made["t"] = events["t_us"]
        with isolated_rng(seed_for("transform", key)), decoding(where, "what is transformed"):
            for step in self.steps:
                if len(made):
                    made = copy.copy(step)(made)  # some keep what the first recording was like
        if not isinstance(made, np.ndarray) or not made.dtype.names:
            raise DataError(
                f"{where}: the transforms make no events but {type(made).__name__}; frames are "
                "made by --data.by and --model.T"
            )
        return validate(made, self.sensor, None, f"{where}, transformed")


def _transform(name: str) -> type:
    """A class of tonic.transforms."""
    import tonic.transforms

    kinds = {
        known: kind
        for known, kind in vars(tonic.transforms).items()
        if inspect.isclass(kind) and kind.__module__ == "tonic.transforms" and known != "Compose"
    }
    if name not in kinds:
        hint = near(name, kinds) or ";"
        raise ConfigError(f"tonic has no transform {shown(name)}{hint} it has {', '.join(kinds)}")
    return kinds[name]


def _moved(sensor: Sensor, step: Any) -> Sensor:
    """The sensor after a step that crops or scales."""
    if target := getattr(step, "target_size", None) or getattr(step, "size", None):
        width, height = (target, target) if isinstance(target, int) else target
        return Sensor(height, width)
    factor = getattr(step, "spatial_factor", 1)
    across, down = factor if isinstance(factor, tuple) else (factor, factor)
    return Sensor(math.ceil(sensor.height * down), math.ceil(sensor.width * across))


def _calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read "Name(key=value, ...), Name" without running anything of it."""
    check(len(text) <= _TEXT_LIMIT, "transform", text[:80], f"at most {_TEXT_LIMIT} characters")
    found = []
    try:
        for node in getattr(ast.parse(f"[{text}]", mode="eval").body, "elts", [None]):
            call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
            if not isinstance(call.func, ast.Name) or call.args:
                raise ValueError
            given = {str(k.arg or ""): ast.literal_eval(k.value) for k in call.keywords}
            found.append((call.func.id, given))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as fault:
        raise ConfigError(
            f"transform={shown(text)} is not allowed: transforms of tonic with named literal "
            'values, as "Denoise(filter_time=10000), DropEvent(p=0.1)"'
        ) from fault
    return found
