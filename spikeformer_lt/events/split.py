"""Train, validation and test: by rules over sorted paths, with a fingerprint, in a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.events.samples import Sample
from spikeformer_lt.events.source import name_of
from spikeformer_lt.paths import write_atomic
from spikeformer_lt.textfile import parse_json

PARTS = ("train", "val", "test")
_FORMAT, _VERSION = "spikeformer_lt.split", 1
_FILE_LIMIT = 100_000_000  # bytes


@dataclass(frozen=True)
class Split:
    """Which recording is in which part.

    Raises:
        DataError: a recording in two parts or twice in one, or a label without a class.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part in PARTS:
            for place, sample in enumerate(getattr(self, part)):
                if sample.key in seen:
                    raise DataError(
                        f"{self.name}: {shown(sample.key, 300)} is in {seen[sample.key]} and in "
                        f"{part}; a recording belongs to one part"
                    )
                seen[sample.key] = part
                if not 0 <= sample.label < len(self.classes):
                    raise DataError(
                        f"{self.name}: {part} sample {place}, {shown(sample.key, 300)}, has the "
                        f"label {sample.label}, outside [0, {len(self.classes)})"
                    )

    @property
    def sha256(self) -> str:
        """Fingerprint of parts, paths and labels: 64 hex digits, the same on every machine."""
        state = hashlib.sha256(json.dumps(self.classes).encode())
        for part in PARTS:
            for sample in sorted(getattr(self, part)):
                state.update(json.dumps([part, sample.key, sample.label]).encode() + b"\n")
        return state.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, one recording a line.

        Raises:
            DataError: the disk refuses.
        """
        lines = [
            json.dumps([part, sample.key, sample.label])
            for part in PARTS
            for sample in getattr(self, part)
        ]
        head = {"format": _FORMAT, "version": _VERSION, "name": self.name, "sha256": self.sha256}
        text = json.dumps({**head, "classes": self.classes})[:-1]
        text += ', "recordings": [\n' + ",\n".join(lines) + "\n]}\n"
        write_atomic(path, text.encode(), DataError)

    def as_saved(self, path: str | Path) -> Split:
        """Return these recordings in the parts that a file of `save` gives them.

        Raises:
            DataError: the file is damaged, edited or of another set, or the recordings on disk are
                not those that it lists.
        """
        told = _read(path)
        have = {s.key: s for part in PARTS for s in getattr(self, part)}
        parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
        for part, key, label in told["recordings"]:
            sample = have.pop(key, None)
            if sample is None or sample.label != label or part not in parts:
                now = "not there" if sample is None else f"of class {sample.label}"
                raise DataError(
                    f"{name_of(path)} lists {shown(key, 300)} as {part} of class {label}; on "
                    f"disk it is {now}: the data or the file was changed"
                )
            parts[part].append(sample)
        if have:
            raise DataError(
                f"{name_of(path)} does not list {shown(next(iter(have)), 300)} and {len(have) - 1} "
                "more that are on disk: remove them, or make a new split file"
            )
        split = Split(self.name, self.classes, *(tuple(parts[part]) for part in PARTS))
        if split.sha256 != told["sha256"] or tuple(told["classes"]) != self.classes:
            raise DataError(
                f"{name_of(path)} was edited: its recordings have the sha256 {split.sha256}, it "
                f"says {shown(told['sha256'])}; restore it, or remove it to make a new one"
            )
        return split


def _read(path: str | Path) -> dict[str, Any]:
    where = name_of(path)
    try:
        with open(path, "rb") as file:
            text = file.read(_FILE_LIMIT).decode("utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"cannot read the split file {where}: {fault}") from fault
    told = parse_json(text, where, DataError)
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        raise DataError(f"{where} is not a split file")
    if told.get("version") != _VERSION:
        raise DataError(f"{where}: found split v{told.get('version')!r}, supports v{_VERSION}")
    rows = told.get("recordings")
    sound = isinstance(rows, list) and isinstance(told.get("classes"), list)
    if not sound or not all(isinstance(r, list) and len(r) == 3 for r in rows or ()):
        raise DataError(f"{where} is damaged: no list of recordings")
    return told


def first_of_each_class(
    samples: Sequence[Sample], fraction: float
) -> tuple[list[Sample], list[Sample]]:
    """Cut each class, sorted by path: the first part trains, the rest tests.

    Of n samples ``ceil(fraction * n)`` come first. With 0.9 that is the field's split of
    CIFAR10-DVS (Spikformer, Spikingformer, QKFormer; spikingjelly's split_to_train_test_set).

    Raises:
        ConfigError: `fraction` outside (0, 1).
    """
    exact = _exact("fraction", fraction)
    first: list[Sample] = []
    rest: list[Sample] = []
    for members in _by_class(samples, lambda sample: (sample.path, sample.start_us or 0)):
        cut = math.ceil(exact * len(members))
        first += members[:cut]
        rest += members[cut:]
    return sorted(first), sorted(rest)


def hold_out(
    name: str, samples: Sequence[Sample], fraction: float, groups: bool = False
) -> tuple[list[Sample], list[Sample]]:
    """Hold out a part of the training recordings, chosen by the hashes of their names.

    Args:
        name: of the set; another name gives another choice.
        samples: the training recordings.
        fraction: part to hold out, in (0, 1).
        groups: hold out whole groups (people, say), as few as reach the fraction, never such that a
            class loses its last training sample; else ``round(fraction * n)`` of each class, half
            up, but never all.

    Returns:
        (kept, held out), each sorted.

    Raises:
        ConfigError: `fraction` outside (0, 1).
        DataError: nothing can be held out.
    """
    exact = _exact("val_fraction", fraction)
    held: set[Sample] = set()
    if groups:
        for group in sorted({s.group for s in samples}, key=lambda g: _order(name, g)):
            more = held | {s for s in samples if s.group == group}
            left = {s.label for s in samples if s not in more}
            if len(held) < exact * len(samples) and left == {s.label for s in samples}:
                held = more
    else:
        for members in _by_class(samples, lambda sample: _order(name, sample.key)):
            count = (2 * exact * len(members) + 1) // 2
            held |= set(members[: min(int(count), len(members) - 1)])
    if not held:
        raise DataError(
            f"{name}: val_fraction={fraction} of {len(samples)} recordings holds none out; give "
            "more recordings or a larger fraction"
        )
    return sorted(s for s in samples if s not in held), sorted(held)


def limit(name: str, samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose `count` recordings, classes in proportion; a larger count keeps a smaller one's.

    Raises:
        ConfigError: `count` outside [1, number of samples].
    """
    if not 1 <= count <= len(samples):
        raise ConfigError(f"limit={count} is not allowed: {name} has 1 to {len(samples)} samples")
    turns = []
    for members in _by_class(samples, lambda sample: _order(name, sample.key)):
        # Member p of a class of n has its turn at (p + 1/2) / n: classes of any size advance alike.
        turns += [((2 * p + 1) / (2 * len(members)), s.label, s) for p, s in enumerate(members)]
    return sorted(sample for _, _, sample in sorted(turns)[:count])


def _exact(field: str, value: float) -> Fraction:
    if not 0 < value < 1:
        raise ConfigError(f"{field}={value!r} is not allowed: it must lie between 0 and 1")
    return Fraction(str(value))


def _order(name: str, key: str) -> bytes:
    return hashlib.sha256(json.dumps([name, key]).encode()).digest()


def _by_class(samples: Sequence[Sample], key: Callable[[Sample], Any]) -> list[list[Sample]]:
    labels = sorted({sample.label for sample in samples})
    return [sorted((s for s in samples if s.label == label), key=key) for label in labels]
