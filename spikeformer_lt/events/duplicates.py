"""The same recording under two names: found without reading what cannot be the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.samples import Sample
from spikeformer_lt.events.source import name_of

_HEAD = 4096  # bytes compared before a whole file is read


def find_shared(root: str | Path, parts: Mapping[str, Sequence[Sample]]) -> list[tuple[str, str]]:
    """Return pairs of files of different parts that hold the same bytes.

    Only files of one size are opened, and only those that also begin alike are read whole.

    Args:
        root: folder of the set.
        parts: samples by part.

    Raises:
        DataError: a file cannot be read.
    """
    part_of: dict[str, str] = {}
    for part, samples in parts.items():
        for sample in samples:
            part_of.setdefault(sample.path, part)
    top = Path(root)
    try:
        groups = _group(list(part_of), lambda path: str((top / path).stat().st_size))
        for digest in (_head_hash, _hash):
            finer = [_group(group, partial(_at, top, digest)) for group in groups]
            groups = [group for found in finer for group in found]
    except OSError as fault:
        raise DataError(f"cannot read {name_of(fault.filename)}: {fault.strerror}") from fault
    found: list[tuple[str, str]] = []
    for group in groups:
        first = group[0]
        found += [(first, other) for other in group[1:] if part_of[other] != part_of[first]]
    return sorted(found)


def _group(paths: Sequence[str], key: Callable[[str], str]) -> list[list[str]]:
    """Return the groups of two or more paths with one key."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _at(top: Path, digest: Callable[[Path], str], path: str) -> str:
    return digest(top / path)


def _head_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(_HEAD)).hexdigest()


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
