"""Which recordings there are, found on disk in one order, and which is in which part."""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import io
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from spikeformer_lt.config import check
from spikeformer_lt.disk import parse_json, sha256_of, write_atomic
from spikeformer_lt.errors import DataError, name_of, near, shown
from spikeformer_lt.events.recording import opened, regular_size
from spikeformer_lt.rng import hashed
from spikeformer_lt.splits import by_class, exact_fraction, held_out, in_proportion, report_shared

log = logging.getLogger(__name__)
PARTS = ("train", "val", "test")
_FORMAT, _VERSION = "spikeformer_lt.split", 1
_FILE_LIMIT = 100_000_000  # bytes
_JUNK = re.compile(
    r"\..*|__MACOSX|Thumbs\.db|desktop\.ini"
    r"|(?i:readme|licen[cs]e|notes?|errata|simulated|trials_to_\w+)\.txt"
)
_DEPTH = 3  # folders below the root in which a set's own folder is looked for
_HEAD = 4096  # bytes compared before a whole file is read


@dataclass(frozen=True, order=True)
class Sample:
    """One labelled recording, or one stretch of a longer one."""

    path: str  # below the root of the set, with "/" on every system
    start_us: int | None = None  # beginning of the stretch; None is the whole file
    end_us: int | None = None  # first time after the stretch
    label: int = 0
    group: str = ""  # whom or what it was taken from, where whole groups must stay together

    @property
    def key(self) -> str:
        """A name that no other sample of the set has."""
        stretch = f"[{self.start_us}:{self.end_us}]"
        return self.path if self.start_us is None else self.path + stretch


def scan(folder: str | Path, suffixes: Sequence[str]) -> list[str]:
    """Find files by the ends of their names, in small letters, in all folders below one.

    Hidden files, readmes and the like are left out; links are followed.

    Returns:
        Paths below `folder`, with "/", in the order of their characters: the same on every machine.

    Raises:
        DataError: `folder` is no folder, or a link shows nothing or a folder that it is in.
    """
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"{name_of(top)} is not a folder")
    found, waiting, ends = [], [""], tuple(suffixes)
    while waiting:
        here = waiting.pop()
        try:
            entries = list(os.scandir(top / here))
        except OSError as fault:
            raise DataError(f"cannot read {name_of(top / here)}: {fault.strerror}") from fault
        for entry in entries:
            if _junk(entry.name):
                continue
            if entry.is_symlink():
                _check_link(Path(entry.path))
            path = f"{here}{entry.name}"
            if entry.is_dir():
                waiting.append(f"{path}/")
            elif path.lower().endswith(ends):
                found.append(path)
    return sorted(found)


def _junk(name: str) -> bool:
    return _JUNK.fullmatch(name) is not None


def _check_link(path: Path) -> None:
    """Refuse a link that would be followed for ever, or that shows nothing."""
    if not path.exists():
        raise DataError(
            f"{name_of(path)} is a link to {name_of(os.readlink(path))}: nothing is there"
        )
    if path.parent.resolve().is_relative_to(path.resolve()):
        raise DataError(f"{name_of(path)} is a link to a folder that it is in; remove it")


def find_folder(root: str | Path, names: Sequence[str]) -> Path | None:
    """Find the folder of a set by its names: the root itself, or up to three levels below it.

    Raises:
        DataError: two such folders, as an archive unpacked twice leaves them.
    """
    level = [Path(root)]
    found = [top for top in level if top.absolute().name in names and top.is_dir()]
    for _ in range(_DEPTH):
        if found:
            break
        below: list[Path] = []
        for folder in level:
            with contextlib.suppress(OSError):
                entries = sorted(folder.iterdir())
                below += [entry for entry in entries if not _junk(entry.name) and entry.is_dir()]
        found, level = [folder for folder in below if folder.name in names], below
    if len({folder.resolve() for folder in found}) > 1:
        raise DataError(
            f"{name_of(found[0])} and {name_of(found[1])} both look like the set: remove one, "
            "or give the folder above the right one as the root"
        )
    return found[0] if found else None


def class_samples(
    home: Path, suffixes: Sequence[str], classes: Sequence[str], folder: str = ""
) -> list[Sample]:
    """Return the recordings below ``home/folder``, whose first folder there is their class."""
    samples = []
    for path in scan(home / folder, suffixes):
        name = path.split("/")[0]
        if name not in classes:
            raise DataError(
                f"{shown(path, 300)}: {shown(name)} is no class{near(name, classes) or ';'} "
                f"there are {len(classes)}: {', '.join(classes[:20])}"
            )
        where = f"{folder}/{path}" if folder else path
        samples.append(Sample(where, label=classes.index(name)))
    return samples


_WORDS = {  # in the names of folders that make a part
    "test": re.compile(r"(?:^|[^A-Za-z])test|Test"),
    "val": re.compile(r"(?:(?:^|[^A-Za-z])v|V)al(?:id|idation)?(?![a-z])"),
    "train": re.compile(r"(?:(?:^|[^A-Za-z])t|T)rain(?:ing)?(?![a-z])"),
}
_TABLE = ("path", "label", "person", "part")  # columns


def labelled_files(
    root: Path, suffixes: Sequence[str], table: str = ""
) -> tuple[tuple[str, ...], dict[str, list[Sample]]]:
    """Find the files of a set that a user made, their classes and, where they say so, their parts.

    Either `table`, or ``labels.csv`` in `root`, has the columns path (below `root`) and label, and
    may have person and part (train, val or test); or folders are classes: ``cat/1.jpg``, or
    ``train/cat/1.jpg`` where all folders of `root` are named for parts. Links are followed.

    Returns:
        Names of the classes, sorted, and {part: samples}; without parts, all are in "train".

    Raises:
        DataError: no such files, a file outside a class, or a wrong line of the table.
    """
    if table or (root / "labels.csv").is_file():
        rows = _table_rows(root, root / (table or "labels.csv"))
    else:
        every, ends = scan(root, ("",)), tuple(suffixes)
        rows = _folder_rows(root, [path for path in every if path.lower().endswith(ends)])
        others = [p for p in every if "/" in p and not p.lower().endswith(ends)]
        if rows and others:
            place = int(any(path.split("/")[0] != label for path, label, _, _ in rows))
            folders = {p.split("/")[place] for p in others if p.count("/") > place}
            lost = folders - {label for _, label, _, _ in rows}
            told = f", and so all of {shown(sorted(lost), 100)}" if lost else ""
            log.log(
                logging.WARNING if lost else logging.INFO,
                "%s: %d files of other endings are left out%s; the first: %s; read are %s",
                name_of(root), len(others), told, shown(others[0]), ", ".join(suffixes),
            )  # fmt: skip
    if not rows:
        raise DataError(
            f"{name_of(root)} holds none of {', '.join(suffixes)}; put files into a folder for "
            "each class, or name them in labels.csv: path,label"
        )
    numbers = all(label.isdecimal() for _, label, _, _ in rows)
    names = {label for _, label, _, _ in rows}
    if len(names) == 1:
        raise DataError(
            f"{name_of(root)}: all {len(rows)} files are of one class, {shown(rows[0][1])}; needed "
            "are two: is the root the folder above the classes?"
        )
    classes = tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))
    places = {name: place for place, name in enumerate(classes)}
    parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
    for path, label, person, part in rows:
        parts[part].append(Sample(path, label=places[label], group=person))
    return classes, {part: sorted(found) for part, found in parts.items() if found}


def _folder_rows(root: Path, paths: Sequence[str]) -> list[tuple[str, str, str, str]]:
    named = {first: part_of(f"{first}/") for first in {path.split("/")[0] for path in paths}}
    parted = "train" in named.values() and all(named.values())
    if not parted and any(named.values()) and all(path.count("/") > 1 for path in paths):
        raise DataError(
            f"{name_of(root)} holds folders named for parts, {shown(sorted(named), 200)}, but no "
            "train, or others beside them: are these classes or parts? name files in labels.csv"
        )
    rows = []
    for path in paths:
        folders = path.split("/")[:-1]
        part = named[folders.pop(0)] if parted else "train"
        if not folders:
            raise DataError(
                f"{name_of(root / path)} is in no folder of a class; classes are folders, or name "
                "them in labels.csv: path,label"
            )
        rows.append((path, folders[0], "", part))
    return rows


def part_of(path: str) -> str:
    """Tell the part of a file by the names of the folders above it, or ""."""
    above = [name.lower() if name.isupper() else name for name in path.split("/")[:-1]]
    return next((p for p, word in _WORDS.items() if any(map(word.search, above))), "")


def _table_rows(root: Path, table: Path) -> list[tuple[str, str, str, str]]:
    with opened(table) as (file, _):
        data = file.read(_FILE_LIMIT)
    wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as fault:
        raise DataError(f"{name_of(table)} is no UTF-8 ({fault}): save it as CSV UTF-8") from fault
    head = text.partition("\n")[0]
    mark = max(",;\t", key=head.count)  # spreadsheets write one of these, by country
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=mark, skipinitialspace=True, strict=True)
    reader.fieldnames = columns = [name.strip().lower() for name in reader.fieldnames or ()]
    where = name_of(table)
    odd = [name for name in columns if name not in _TABLE]
    if odd or not {"path", "label"} <= set(columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"{where} has the columns {shown(list(columns), 200)}; needed are path and label, "
            "allowed are person and part, each once"
        )
    rows, seen, alone = [], dict[str, int](), ""
    try:
        for row in reader:
            path, label, person, part = ((row.get(name) or "").strip() for name in _TABLE)
            if not (root / path).is_file():
                path = path.replace("\\", "/")
            part = part.lower() or "train"
            place, line = PurePosixPath(path), f"{where}, line {reader.line_num}"
            if not label or place.is_absolute() or ".." in place.parts or None in row:
                raise DataError(f"{line}: {shown(path)} of class {shown(label)} is no path, label")
            if not (root / place).is_file():
                raise DataError(f"{line}: {name_of(root / place)} is not there")
            if part not in PARTS:
                raise DataError(f"{line}: {shown(part)} is no part; allowed: {', '.join(PARTS)}")
            if seen.setdefault(place.as_posix(), reader.line_num) != reader.line_num:
                raise DataError(f"{line}: {shown(path)} is in line {seen[place.as_posix()]}, too")
            if part == "train" and not person:
                alone = alone or line
            rows.append((place.as_posix(), label, person, part))
    except csv.Error as fault:
        raise DataError(f"{where}, line {reader.line_num}: {fault}") from fault
    if alone and any(person for _, _, person, part in rows if part == "train"):
        raise DataError(f"{alone}: no person, where other lines have one")
    return rows


def parted(
    name: str, classes: Sequence[str], parts: Mapping[str, Sequence[Sample]], val_fraction: float,
    test_fraction: float, copies: Sequence[Sequence[str]] = (),
) -> Split:  # fmt: skip
    """Return the split of a set that a user made.

    Parts that it has are kept; a validation part without a test is the test, as in ImageNet. What
    is missing is held out of the training part by hashes of names, whole persons where all files
    have one, else files of the same bytes, `copies`, together.
    """
    found = dict(parts)
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    pool = found.get("train", ())
    grouped = all(sample.group for sample in pool)
    every = (sample for part in parts.values() for sample in part) if copies else ()
    labels = {sample.path: sample.label for sample in every}
    if odd := [same for same in copies if len({labels.get(path) for path in same}) > 1]:
        told = f"{len(odd)} files are there under several classes; the first: {shown(odd[0][:2])}"
        log.warning("%s: %s", name, told)
    if lost := sorted(set(range(len(classes))) - {sample.label for sample in pool}):
        first = shown(classes[lost[0]])
        log.warning("%s: nothing to train on of %d classes, %s first", name, len(lost), first)
    if "test" not in found:
        how = (test_fraction, grouped, "test_fraction", copies)
        pool, found["test"] = hold_out(f"{name}/test", pool, *how)
    if "val" not in found:
        return cut(name, classes, pool, found["test"], val_fraction, grouped, copies)
    return Split(name, tuple(classes), *(tuple(found.get(part, ())) for part in PARTS))


def check_counts(
    name: str,
    samples: Sequence[Sample],
    classes: Sequence[str],
    expected: int | Mapping[str, int],
    incomplete: str = "error",
) -> None:
    """Compare a part with the published set's; see `accept` for what a difference does.

    Args:
        expected: recordings in all, or {class: recordings}.
    """
    counts = Counter(classes[sample.label] for sample in samples if sample.label < len(classes))
    if isinstance(expected, int):
        total, right = expected, all(counts[each] for each in classes)
        told = [f"{each} {counts[each]}" for each in classes]
    else:
        total, right = sum(expected.values()), all(counts[c] == expected.get(c, 0) for c in classes)
        told = [f"{each} {counts[each]} of {expected.get(each, 0)}" for each in classes]
    if not right or len(samples) != total:
        accept(f"{name} has {len(samples)} recordings of {total}: {', '.join(told)}", incomplete)


def accept(fault: str, incomplete: str) -> None:
    """Refuse an incomplete set by a DataError with "error", or warn of it with "report"."""
    if incomplete == "error":
        raise DataError(f"{fault}; get the rest, or use incomplete=report to go on with these")
    log.warning("%s", fault)


@dataclass(frozen=True)
class Split:
    """Which recording is in which part; a DataError if one is there twice, or has no class."""

    name: str
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part, place, sample in self._rows():
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

    def _rows(self) -> list[tuple[str, int, Sample]]:
        """Return (part, place in it, sample) of every recording."""
        return [(part, *row) for part in PARTS for row in enumerate(getattr(self, part))]

    @property
    def sha256(self) -> str:
        """Fingerprint of parts, paths and labels: 64 hex digits, the same on every machine."""
        state = hashlib.sha256(json.dumps(self.classes).encode())
        for part in PARTS:
            for sample in sorted(getattr(self, part)):
                state.update(json.dumps([part, sample.key, sample.label]).encode() + b"\n")
        return state.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, one recording a line."""
        lines = [json.dumps([part, sample.key, sample.label]) for part, _, sample in self._rows()]
        head = {"format": _FORMAT, "version": _VERSION, "name": self.name, "sha256": self.sha256}
        text = json.dumps({**head, "classes": self.classes})[:-1]
        text += ', "recordings": [\n' + ",\n".join(lines) + "\n]}\n"
        write_atomic(path, text.encode(), DataError)
        log.info("%s: split written to %s", self.name, path)

    def as_saved(self, path: str | Path) -> Split:
        """Return these recordings in the parts that a file of `save` gives them.

        Raises:
            DataError: the file is damaged, edited or of another set.
        """
        where, told = name_of(path), _read_split(path)
        have = {sample.key: sample for _, _, sample in self._rows()}
        parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
        for part, key, label in told["recordings"]:
            sample = have.pop(key, None)
            if sample is None or sample.label != label or part not in parts:
                now = "not there" if sample is None else f"of class {sample.label}"
                raise DataError(
                    f"{where} lists {shown(key, 300)} as {part} of class {label}; on disk it is "
                    f"{now}: the data or the file was changed"
                )
            parts[part].append(sample)
        if have:
            raise DataError(
                f"{where} does not list {shown(next(iter(have)), 300)} and {len(have) - 1} more "
                "that are on disk: remove them, or make a new split file"
            )
        split = Split(self.name, self.classes, *map(tuple, parts.values()))
        if split.sha256 != told["sha256"] or tuple(told["classes"]) != self.classes:
            raise DataError(
                f"{where} was edited: its recordings have the sha256 {split.sha256}, it says "
                f"{shown(told['sha256'])}; restore it, or remove it to make a new one"
            )
        return split


def _read_split(path: str | Path) -> dict[str, Any]:
    where = name_of(path)
    try:
        with opened(path) as (file, _):
            text = file.read(_FILE_LIMIT).decode("utf-8")
    except UnicodeDecodeError as fault:
        raise DataError(f"cannot read the split file {where}: {fault}") from fault
    told = parse_json(text, where, DataError)
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        raise DataError(f"{where} is not a split file")
    if told.get("version") != _VERSION:
        raise DataError(f"{where}: found split v{told.get('version')!r}, supports v{_VERSION}")
    rows = told.get("recordings")
    sound = isinstance(rows, list) and isinstance(told.get("classes"), list)
    kinds = [str, str, int]  # part, key and label
    if not sound or not all(
        isinstance(r, list) and list(map(type, r)) == kinds for r in rows or ()
    ):
        raise DataError(f"{where} is damaged: no list of recordings")
    return told


def cut(
    name: str, classes: Sequence[str], pool: Sequence[Sample], test: Sequence[Sample],
    val_fraction: float, groups: bool = False, copies: Sequence[Sequence[str]] = (),
) -> Split:  # fmt: skip
    """Return the split of a set with validation held out of `pool` as `hold_out` does."""
    train, val = hold_out(name, pool, val_fraction, groups, copies=copies)
    return Split(name, tuple(classes), tuple(train), tuple(val), tuple(test))


def first_of_each_class(
    samples: Sequence[Sample], fraction: float
) -> tuple[list[Sample], list[Sample]]:
    """Cut each class, sorted by path: the first ``ceil(fraction * n)`` train, the rest tests.

    With 0.9 that is the field's split of CIFAR10-DVS (Spikformer, Spikingformer, QKFormer;
    spikingjelly's split_to_train_test_set).
    """
    exact, ordered = exact_fraction("fraction", fraction), sorted(samples)
    first: set[Sample] = set()
    for members in by_class([sample.label for sample in ordered], int).values():
        first |= {ordered[i] for i in members[: math.ceil(exact * len(members))]}
    return sorted(first), sorted(set(samples) - first)


def hold_out(
    name: str, samples: Sequence[Sample], fraction: float, groups: bool = False,
    field: str = "val_fraction", copies: Sequence[Sequence[str]] = (),
) -> tuple[list[Sample], list[Sample]]:  # fmt: skip
    """Return training recordings (kept, held out), chosen by hashes of names, each sorted.

    With `groups` whole groups (people, say) are held out, as few as reach the fraction, never such
    that a class loses its last training sample; else a part of each class, as `splits.held_out`,
    and with a file its `copies`, which have the hash of their first name.

    Raises:
        DataError: nothing can be held out.
    """
    exact = exact_fraction(field, fraction)
    held: set[Sample] = set()
    labels = [sample.label for sample in samples]
    if groups:
        for group in sorted({s.group for s in samples}, key=lambda g: hashed(name, g)):
            more = held | {s for s in samples if s.group == group}
            left = {s.label for s in samples if s not in more}
            if len(held) < exact * len(samples) and left == set(labels):
                held = more
    else:
        first = {path: group[0] for group in copies for path in group}
        names = [first.get(sample.path, sample.key) for sample in samples]
        held = {samples[i] for i in held_out(labels, exact, lambda i: hashed(name, names[i]))}
        kept = Counter(sample.label for sample in samples if sample not in held)
        at = {sample.path: sample for sample in samples} if copies else {}
        for paths in copies:
            same = {at[path] for path in paths if path in at}
            lost = Counter(sample.label for sample in same - held)
            if same & held and all(kept[label] > count for label, count in lost.items()):
                held, kept = held | same, kept - lost
    if not held:
        of = f" of {len({s.group for s in samples})} persons" if groups else ""
        raise DataError(
            f"{name}: {field}={fraction} of {len(samples)} samples{of} holds none out; give more "
            f"{'persons' if groups else 'samples'} or a larger fraction"
        )
    return sorted(s for s in samples if s not in held), sorted(held)


def limit(name: str, samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose `count` recordings, classes in proportion; a larger count keeps a smaller one's."""
    check(1 <= count <= len(samples), "limit", count, f"{name} has 1 to {len(samples)} samples")
    labels = [sample.label for sample in samples]
    chosen = in_proportion(labels, count, lambda i: hashed(name, samples[i].key))
    return sorted(samples[i] for i in chosen)


def limited(split: Split, limit_train: int | None, limit_test: int | None) -> Split:
    """Return a smaller split; validation shrinks by the factor of the training part."""
    if limit_train is not None:
        train = limit(split.name, split.train, limit_train)
        left = max(1, round(len(split.val) * len(train) / len(split.train)))
        val = limit(split.name, split.val, left)
        for what, small, whole in (("train on", train, split.train), ("validate", val, split.val)):
            if lost := {s.label for s in whole} - {s.label for s in small}:
                told = f"limit_train={limit_train} leaves nothing to {what} of {len(lost)} classes"
                log.warning("%s: %s", split.name, told)
        split = replace(split, train=tuple(train), val=tuple(val))
    if limit_test is not None:
        split = replace(split, test=tuple(limit(f"{split.name}/test", split.test, limit_test)))
    return split


def find_shared(root: str | Path, parts: Mapping[str, Sequence[Sample]]) -> list[tuple[str, str]]:
    """Return pairs of files below `root`, of different parts, that hold the same bytes."""
    paths = dict.fromkeys(sample.path for samples in parts.values() for sample in samples)
    return pairs_apart(find_copies(root, paths), parts)


def pairs_apart(
    copies: Sequence[Sequence[str]], parts: Mapping[str, Sequence[Sample]]
) -> list[tuple[str, str]]:
    """Return pairs of `copies` that are in different parts."""
    part_of: dict[str, str] = {}
    for part, samples in parts.items():
        for sample in samples:
            part_of.setdefault(sample.path, part)
    place = {path: i for i, path in enumerate(part_of)}  # those of the first part come first
    groups = [sorted(place.keys() & group, key=place.__getitem__) for group in map(set, copies)]
    pairs = [(group[0], other) for group in groups for other in group[1:]]
    return sorted((one, other) for one, other in pairs if part_of[one] != part_of[other])


def shared_groups(parts: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Return the persons, or other groups, of whom samples are in two parts, sorted."""
    seen = Counter(g for own in parts.values() for g in {s.group for s in own if s.group})
    return sorted(group for group, count in seen.items() if count > 1)


def report_apart(
    name: str, what: str, shared: Sequence[tuple[str, str]], parts: Mapping[str, Sequence[Sample]],
    duplicates: str,
) -> None:  # fmt: skip
    """Warn of copies of a set's files, `what`, and of persons in two parts, as `report_shared`."""
    people = shared_groups(parts)
    found = ((shared, what, ", byte for byte"), ([(person,) for person in people], "persons", ""))
    for some, kind, how in found:
        if some:
            text = f"{name}: {len(some)} {kind} are in two parts{how}; the first: "
            report_shared(text + " and ".join(some[0]), duplicates)


def find_copies(
    root: str | Path, paths: Iterable[str], *marks: Callable[[Path], object]
) -> list[list[str]]:
    """Return groups of files below `root` that hold the same bytes, in the order of `paths`.

    Only files of one size are opened, and only those that also begin alike are read whole; or
    those are the same that all `marks` find alike.
    """
    groups = [list(paths)]
    try:
        for mark in marks or (regular_size, _head, sha256_of):
            finer: dict[tuple[int, object], list[str]] = {}
            for number, group in enumerate(groups):
                for path in group:
                    finer.setdefault((number, mark(Path(root, path))), []).append(path)
            groups = [group for group in finer.values() if len(group) > 1]
    except OSError as fault:
        raise DataError(f"cannot read {name_of(fault.filename)}: {fault.strerror}") from fault
    return groups


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD)
