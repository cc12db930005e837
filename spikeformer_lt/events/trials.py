"""The labels of the original DVS128 Gesture: which stretch of which file is which gesture.

A list of files for training and one for the test; beside each ``user01_led.aedat`` a file
``user01_led_labels.csv`` with lines ``class,startTime_usec,endTime_usec``, classes from 1.
"""

from __future__ import annotations

import re
from pathlib import Path

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.events.samples import Sample
from spikeformer_lt.events.source import name_of

_LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
_NAME = re.compile(r"user(\d+)_[\w-]+\.aedat")
_ROW = re.compile(r"\s*(\d{1,4})\s*,\s*(\d{1,15})\s*,\s*(\d{1,15})\s*")
_LIMIT = 1_000_000  # bytes of a list or csv file


def read_trials(home: Path, num_classes: int) -> dict[str, list[Sample]]:
    """Read both lists and the csv files of all recordings in them.

    Args:
        home: the folder ``DvsGesture``.
        num_classes: number of classes, K; the csv files count from 1 to K.

    Returns:
        {"train": ..., "test": ...}: stretches, sorted, each with its person as the group.

    Raises:
        DataError: a file is missing or malformed; file and line are named.
    """
    parts: dict[str, list[Sample]] = {}
    for part, listing in _LISTS.items():
        samples: list[Sample] = []
        for number, line in _lines(home / listing):
            named = _NAME.fullmatch(line)
            if named is None:
                raise DataError(
                    f"{name_of(home / listing)}, line {number}: {shown(line)} is no "
                    "user<number>_<light>.aedat"
                )
            if not (home / line).is_file():
                raise DataError(f"{name_of(home / line)} is missing; {listing} lists it")
            samples += _stretches(home, line, str(int(named[1])), num_classes)
        parts[part] = sorted(samples)
    return parts


def _stretches(home: Path, recording: str, person: str, num_classes: int) -> list[Sample]:
    table = home / f"{recording.removesuffix('.aedat')}_labels.csv"
    samples = []
    for number, line in _lines(table):
        if number == 1 and line.lower().startswith("class"):
            continue
        row = _ROW.fullmatch(line)
        label, start, end = (int(cell) for cell in row.groups()) if row else (0, 0, 0)
        if not 1 <= label <= num_classes or end <= start:
            raise DataError(
                f"{name_of(table)}, line {number}: {shown(line)} is no class (1 to {num_classes}), "
                "start and later end in microseconds"
            )
        samples.append(Sample(recording, start, end, label - 1, person))
    return samples


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return (number, text) of the lines that are not blank."""
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"cannot read {name_of(path)}: {fault}") from fault
    numbered = enumerate(text.splitlines(), start=1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]
