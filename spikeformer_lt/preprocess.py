"""What makes a network's input of pictures or recordings; tickets and exports carry it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from spikeformer_lt.config import check, check_fields, flat_values, from_dict, to_dict
from spikeformer_lt.errors import ConfigError, ExportError, TicketError, shown

CHANNELS = {"RGB": 3, "grey": 1, "off,on": 2}
WAYS = ("n_event_bins", "n_time_bins", "time_window")
VALUES = ("counts", "binary")
LARGEST_SIDE, LARGEST_T, MOST_CLASSES = 4096, 4096, 100_000
_KEY = "preprocess"  # of a ticket's provenance
_OF_FILES = ("sensor", "form", "columns", "microseconds_per_tick", "unit_given", "signed")


@dataclass(frozen=True)
class Recordings:
    """How a recording of events becomes frames; the fields are those of `events.Framing`."""

    sensor: tuple[int, int]
    """Rows and columns of the camera; coordinates must fit."""
    T: int
    """Frames a recording is cut into."""
    by: str = "n_event_bins"
    window_us: int | None = None
    values: str = "counts"
    form: str = ""
    """Form of the set's files; "" tells it by name and first bytes."""
    columns: tuple[str, ...] = ("x", "y", "p", "t_us")
    """What the columns of a plain array in a file are."""
    microseconds_per_tick: int = 1
    """Unit of the times in npy files; events in memory are in microseconds."""
    unit_given: bool = False
    """Whether it was named, and so goes for times with fractions, too."""
    signed: bool = False
    """Whether polarities are -1 and 1."""
    transform: str = ""
    """Transforms of tonic that the events pass."""

    def __post_init__(self) -> None:
        check_fields(self, by=WAYS, values=VALUES)
        for side in self.sensor:
            check(1 <= side <= LARGEST_SIDE, "sensor", side, f"1 to {LARGEST_SIDE} pixels a side")
        check(1 <= self.T <= LARGEST_T, "T", self.T, f"1 to {LARGEST_T} frames")
        window, ticks = self.window_us, self.microseconds_per_tick
        sound = (self.by == "time_window") == (window is not None) and (
            window is None or window > 0
        )
        check(sound, "window_us", window, "1 microsecond or more with time_window, else none")
        check(ticks >= 1, "microseconds_per_tick", ticks, "1 microsecond or more")


@dataclass(frozen=True, repr=False)
class Preprocess:
    """What a data set knows of its samples and a user of the network must.

    Pixels in [0, 1] less `mean`, over `std`, are the input. Frames of events are counts, of which
    mean 0 and deviation 1 change nothing.
    """

    channels: str
    """Their order; "off,on" are the two polarities of events."""
    image_size: int
    """Height and width in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    """Names, by class number."""
    recordings: Recordings | None = None
    """Of event sets alone."""
    crop: float = 1.0
    """Part of the side of a picture's largest square that is the input, from the middle."""

    def __post_init__(self) -> None:
        check_fields(self, channels=CHANNELS, crop="(0, 1]")
        size, count = self.image_size, len(self.classes)
        check(1 <= size <= LARGEST_SIDE, "image_size", size, f"1 to {LARGEST_SIDE} pixels")
        fits = {len(self.mean), len(self.std)} == {self.in_channels}
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        sound = fits and finite and min(self.std, default=0) > 0
        given = f"{list(self.mean)} and {list(self.std)}"
        check(sound, "mean and std", given, f"{self.in_channels} finite numbers each, std above 0")
        check(1 <= count <= MOST_CLASSES, "classes", count, f"1 to {MOST_CLASSES} names")
        events = self.channels == "off,on"
        check(events or not self.recordings, "recordings", self.recordings, "channels 'off,on'")

    def __repr__(self) -> str:
        return f"Preprocess({self.described()}; {len(self.classes):,} classes)"

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return CHANNELS[self.channels]

    @classmethod
    def known(cls, provenance: Mapping[str, Any]) -> Self | None:
        """What a ticket's provenance says; None if nothing, a TicketError if it is odd."""
        said = provenance.get(_KEY)
        try:
            return None if said is None else from_dict(cls, said)
        except ConfigError as fault:
            raise TicketError(f"the {_KEY} that was stored is damaged: {fault}") from None

    def described(self) -> str:
        """The preprocessing in words, for a person who has the network and nothing else."""
        size, how = f"{self.image_size} x {self.image_size}", self.recordings
        if how is None:
            return (
                f"{self.channels} pictures of {size} pixels, (x / 255 - {list(self.mean)}) / "
                f"{list(self.std)}"
            )
        cut = f"windows of {how.window_us} us" if how.window_us else how.by
        camera = " x ".join(map(str, how.sensor))
        after = f" after {how.transform}" if how.transform else ""
        framed = f"{how.T} frames of {how.values} by {cut}, on {size}"
        return f"events of a {camera} camera{after}, {framed}"

    def sample(self) -> str:
        """A sample in Python, as `export.predict` takes it."""
        if self.recordings is None:
            shape = (1, self.image_size, self.image_size, self.in_channels)
            return f"np.zeros({shape}, np.uint8)  # or PIL images, or paths"
        kinds = [("x", "u2"), ("y", "u2"), ("p", "u1"), ("t_us", "i8")]
        return f"np.zeros(1, {kinds})  # one event; or a path"

    def noted(self) -> dict[str, Any]:
        """The entry of a ticket's provenance that `known` reads."""
        return {_KEY: to_dict(self)}

    def facts(self) -> dict[str, Any]:
        """What changes the input of a network, by name: not the form of files nor their camera."""
        own = dict(flat_values(to_dict(self)))
        return {k: v for k, v in own.items() if k.partition(".")[2] not in _OF_FILES}

    def refuse_other(self, other: Preprocess, whose: str, name: str) -> None:
        """Refuse the data set `name`, which prepares samples as `other` says, not as `whose` does.

        T, the camera and the form of files may differ, and numbers in place of classes' names.

        Raises:
            ConfigError: the first field that differs, with both values.
        """
        mine, theirs = (one.facts() for one in (self, other))
        numbers = [str(number) for number in range(len(self.classes))]
        free = {"recordings.T"}
        if len(self.classes) == len(other.classes) and numbers in (
            mine["classes"],
            theirs["classes"],
        ):
            free.add("classes")
        for field in dict.fromkeys([*mine, *theirs]):
            if field not in free and mine.get(field) != theirs.get(field):
                raise ConfigError(
                    f"{whose} was made for samples with {field}={shown(mine.get(field))}, the data "
                    f"set {name} has {shown(theirs.get(field))}; take the set it was made for"
                )


def prepared_for(model: Any, preprocess: Preprocess | None = None) -> Preprocess:
    """The preprocessing of a network: the given one, else its own, with its number of frames.

    Raises:
        ExportError: there is none, or it is of another input than the network's.
    """
    found: Preprocess | None = preprocess or getattr(model, "preprocess", None)
    if found is None:
        raise ExportError(
            "this network was saved without its preprocess (mean, std, classes, framing); give "
            "it: predict(x, preprocess=create_dataset(NAME).preprocess)"
        )
    net = model.net if hasattr(model, "net") else model
    door, size = door_of(net), found.image_size
    if door is not None and door != (found.in_channels, size, size):
        raise ExportError(
            f"the preprocess is of {[found.in_channels, size, size]} channels, rows and columns, "
            f"the network of {list(door)}; give the one of its data set: preprocess=..."
        )
    count = getattr(net, "num_classes", None)
    if count not in (None, len(found.classes)):
        raise ExportError(
            f"the network has {count} classes, its preprocess names {len(found.classes)}; give the "
            "one of its data set: preprocess=..."
        )
    steps = getattr(net, "T", None)
    if found.recordings is not None and isinstance(steps, int):
        found = replace(found, recordings=replace(found.recordings, T=steps))
    return found


def door_of(model: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of a network's input; None if it does not say them."""
    channels, size = getattr(model, "in_channels", None), getattr(model, "image_size", None)
    if channels is None or size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width
