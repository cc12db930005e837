"""Train, validation and test: what a user may choose about them, and who goes where, by hash."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError, counted, one_of
from spikeformer_lt.preprocess import CHANNELS, Preprocess

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
VAL_FRACTION = 0.1  # part of the training samples that is validation, by the package's convention


@dataclass(frozen=True)
class DataOptions:
    """What a user may choose about any data set."""

    root: str = "data"
    """Folder that holds the published files, or what they unpack to."""
    download: bool = False
    """Fetch what is missing; nothing touches the network otherwise."""
    image_size: int | None = None
    """Side of a sample in pixels; None is the set's own."""
    val_fraction: float = VAL_FRACTION
    """Part of the training samples that is validation, class by class."""
    limit_train: int | None = None
    """Samples to train on, classes in proportion; None is all."""
    limit_test: int | None = None
    """Samples to test on, classes in proportion; None is all."""
    duplicates: str = "report"
    """report or refuse samples that two parts share."""

    def __post_init__(self) -> None:
        one_of("duplicates", self.duplicates, ("report", "refuse"))
        object.__setattr__(self, "root", os.path.expanduser(self.root))

    def parts(self) -> dict[str, Any]:
        """Return the options that decide who goes where, as keywords of `make_splits`."""
        names = ("val_fraction", "limit_train", "limit_test", "duplicates")
        return {name: getattr(self, name) for name in names}


def takes(
    options: type[DataOptions], config: type | None = None
) -> Callable[[Callable[..., Splits]], Callable[..., Splits]]:
    """Let a function of one options object be called with the fields of `options` as keywords.

    With `config` it takes an object of that class, too, by this name.
    """

    def decorate(make: Callable[..., Splits]) -> Callable[..., Splits]:
        @functools.wraps(make)
        def factory(*values: Any, **keywords: Any) -> Splits:
            own = [keywords.pop("config", None) or config()] if config else []
            return make(options(*values, **keywords), *own)

        signature = inspect.signature(options)
        named = list(signature.parameters.values())
        if config:
            named.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None))
        factory.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return factory

    return decorate


class ImageDataset(Protocol):
    """What a loader asks of a data set: samples, uint8 or float32 [C, H, W], with their labels."""

    name: str  # what messages call it, e.g. "cifar10 train"
    labels: Tensor  # int64 [N], each in [0, K)
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


@dataclass(frozen=True, repr=False)
class Splits:
    """The three parts of a data set and what a model must know of them."""

    name: str  # of the data set, as users type it
    train: ImageDataset
    val: ImageDataset  # picks checkpoints, epochs and tickets
    test: ImageDataset  # evaluated once, at the end
    num_classes: int
    in_channels: int
    image_size: int  # height and width of a sample, in pixels
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1], as `std`
    std: tuple[float, ...]
    kind: Literal["static", "events"]
    split_sha256: str  # fingerprint of the three index lists and their labels
    augment: str = "none"  # the usual training augmentation; see `Augment.standard`
    mirror_changes_label: bool = False  # whether a sample flipped left to right is another class
    preprocess: Preprocess | None = None  # of samples; that of pictures is made of the fields above
    notice: str = ""  # what a user should know before taking a number from this set

    def __post_init__(self) -> None:
        channels = {count: name for name, count in CHANNELS.items()}.get(self.in_channels)
        if self.preprocess is None and self.kind == "static" and channels in ("RGB", "grey"):
            numbers = tuple(map(str, range(self.num_classes)))
            names = tuple(map(str, getattr(self.train, "classes", ())))
            classes = names if len(names) == self.num_classes else numbers
            mean, std = (tuple(map(float, values)) for values in (self.mean, self.std))
            made = Preprocess(channels, self.image_size, mean, std, classes)
            object.__setattr__(self, "preprocess", made)

    def __repr__(self) -> str:
        parts = ("train", "val", "test")
        counts = ", ".join(f"{len(getattr(self, part)):,} {part}" for part in parts)
        shape = f"{self.in_channels} x {self.image_size} x {self.image_size}"
        kind = "images" if self.kind == "static" else "frames of events"
        return f"Splits({self.name}: {counts}; {self.num_classes} classes, {kind} {shape})"


def described(part: Any) -> str:
    """The `repr` of a part of a data set."""
    return f"{type(part).__name__}({part.name}: {counted(len(part), 'sample')})"


def report_shared(text: str, duplicates: str) -> None:
    """Warn of samples that two parts share, or raise a DataError with "refuse"."""
    if duplicates == "refuse":
        raise DataError(f"{text}; to accept them use duplicates=report")
    log.warning("%s", text)


def exact_fraction(field: str, value: float) -> Fraction:
    """Return a fraction as the decimal that was typed; outside (0, 1) it is a ConfigError."""
    check(0 < value < 1, field, value, "it must lie between 0 and 1")
    return Fraction(str(value))


def by_class(labels: Sequence[int], order: Callable[[int], Any]) -> dict[int, list[int]]:
    """Return {class: positions of its samples, in the order of a key}, classes ascending."""
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for position in sorted(range(len(labels)), key=order):
        members[labels[position]].append(position)
    return members


def held_out(labels: Sequence[int], fraction: Fraction, order: Callable[[int], bytes]) -> list[int]:
    """Choose the first of each class in `order`: ``round(fraction * n)``, half up, never all."""
    held: list[int] = []
    for members in by_class(labels, order).values():
        count = (2 * fraction * len(members) + 1) // 2
        held += members[: min(int(count), len(members) - 1)]
    return sorted(held)


def in_proportion(labels: Sequence[int], count: int, order: Callable[[int], bytes]) -> list[int]:
    """Choose `count` samples by `order`, classes in proportion and in turn, as a smaller count."""
    turns = []
    for label, members in by_class(labels, order).items():
        # Member p of a class of n has its turn at (p + 1/2) / n: classes of any size advance alike.
        turns += [((2 * p + 1) / (2 * len(members)), label, i) for p, i in enumerate(members)]
    return [position for _, _, position in sorted(turns)[:count]]
