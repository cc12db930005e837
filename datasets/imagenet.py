"""ImageNet, and sets laid out like it: folders, WebDataset's tars, Hugging Face's parquet files.

Those of the hub are found by their id, in its cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.bundle import building, sweep_files
from spikeformer_lt.config import check
from spikeformer_lt.datasets.folders import PictureConfig, picture_splits
from spikeformer_lt.disk import allow_write, free_bytes, write_atomic
from spikeformer_lt.errors import ConfigError, DataError, name_of, shown
from spikeformer_lt.events.split import PARTS, Sample, scan
from spikeformer_lt.published import MemberOfWhole
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

log = logging.getLogger(__name__)
_PART = re.compile(r"(?:^|[^a-z])(train|val|test)")
_FORMS = (".tar", ".parquet")
_MOST = 1 << 28  # bytes of one picture
_LABEL = 20  # characters of a number
_ID = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)/?")
_NUMBERED = re.compile(r"(.*\D|)(\d+)-of-(\d+)(?:\D.*)?")


@dataclass(frozen=True)
class ImageNetConfig:
    """A set on the hub, and where parquet files are unpacked."""

    id: str = ""
    """OWNER/NAME of a data set on the Hugging Face hub, in parquet files or tars, instead of a
    folder; OWNER/NAME/FOLDER where it holds several. The hub's cache is read, and what it lacks is
    fetched with --data.download only."""
    revision: str = ""
    """Branch, tag or commit of it; empty is main."""
    unpacked: str = ""
    """Folder for the tars that parquet files are unpacked to, once; empty is .images in the root,
    where the list of pictures in tars is kept, too."""

    def __post_init__(self) -> None:
        sound = not self.id or (_ID.fullmatch(self.id) and ".." not in self.id)
        check(bool(sound), "imagenet.id", self.id, "OWNER/NAME or OWNER/NAME/FOLDER")
        check(bool(self.id or not self.revision), "imagenet.revision", self.revision, "with an id")


@register_dataset("imagenet", ImageNetConfig)
@takes(DataOptions, ImageNetConfig)
def imagenet(options: DataOptions, config: ImageNetConfig) -> Splits:
    """Pictures laid out as ImageNet, 224 pixels; the part val, which has labels, is the test.

    `root`, or ``imagenet`` in it, holds train/CLASS/* and val/CLASS/*; or the tars of WebDataset
    (``KEY.jpg`` and ``KEY.cls``), or the parquet files of Hugging Face (``image``, ``label``), with
    the part in the name of each file or of its folder. Tars are read in place. Parquet files have
    no place of a picture: they are unpacked to tars once (extra ``parquet``), their size again.
    With `id` they are those of the hub's cache.
    A test picture is the middle 7/8 of its largest square. Pictures are decoded when they are read,
    in ``--train.workers``; files that two parts share are looked for with
    ``--data.duplicates refuse`` only.

    Source: O. Russakovsky et al., arXiv:1409.0575; crops as in K. He et al., arXiv:1512.03385.
    """
    root = Path(options.root)
    root = root / "imagenet" if (root / "imagenet").is_dir() else root
    home = _from_hub(config, options.download) if config.id else root
    kept = Path(config.unpacked or root / ".images")
    options = replace(options, image_size=options.image_size or 224)
    facts: Any = {"crop": 0.875, "augment": "imagenet"}
    if config.id or not (root / "train").is_dir() or _shards(root / "train"):
        if not (files := _shards(home)):
            raise DataError(
                f"imagenet is not in {name_of(home.absolute())}. Put there the folders train and "
                "val, with a folder for each class in each, or tars of WebDataset, or parquet files"
            )
        if lacking := _lacking(files):
            text = f"imagenet: {len(files)} files in {name_of(home)}, but {lacking} is missing"
            if config.id:
                raise DataError(f"{text}: fetch it with --data.download")
            log.warning("%s", text)
        classes, tars = _unpacked(home, files, kept)
        shards = Shards.of(home, tars, kept)
        facts |= {"found": shards.labelled(classes), "shards": shards}
    return picture_splits("imagenet", home, options, PictureConfig(keep_mb=0), **facts)


def _from_hub(config: ImageNetConfig, download: bool) -> Path:
    """The folder of the hub's cache that holds the files of a data set, fetched or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    found = _ID.fullmatch(config.id)
    assert found is not None
    name, inner = found[1], found[2].strip("/")
    how: Any = {"repo_type": "dataset", "revision": config.revision or None}
    how["allow_patterns"] = [f"{inner}/*{form}" if inner else f"*{form}" for form in _FORMS]
    try:
        if download:
            allow_write()
        # Read anew: huggingface_hub looks at it when it is imported.
        how["endpoint"] = os.environ.get("HF_ENDPOINT")
        home = Path(snapshot_download(name, local_files_only=not download, **how))
    except Exception as fault:
        said = shown(str(getattr(fault, "strerror", None) or fault).partition("\n")[0], 200)
        if not download:
            said = f"it is not in {name_of(HF_HUB_CACHE)}; allow the network with --data.download"
        raise DataError(f"imagenet.id={shown(config.id)}: {said}") from fault
    sets = {_outside(file) for file in _shards(home / inner)}
    if len(sets) > 1:
        names = ", ".join(sorted(sets)[:5])
        rule = f"one set: it holds {names}; write {name}/FOLDER"
        raise ConfigError(f"imagenet.id={shown(config.id)} is not allowed; needed is {rule}")
    return home / inner


def _outside(shard: str) -> str:
    """The folder of a file, without the folders that are named for a part."""
    return "/".join(p for p in PurePosixPath(shard).parts[:-1] if not _PART.search(p.lower()))


def _lacking(files: Sequence[str]) -> str:
    """The first file that is missing in a series NAME-NUMBER-of-COUNT; "" if none is."""
    series: dict[tuple[str, str], set[int]] = {}
    for found in filter(None, map(_NUMBERED.fullmatch, files)):
        series.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (name, count), numbers in series.items():
        if left := sorted({*range(int(count))} - numbers)[:1] if len(count) < 7 else []:
            return f"{name}{left[0]:0{len(count)}d}-of-{count}"
    return ""


def _shards(root: Path) -> list[str]:
    """The tars, or else the parquet files, below a folder."""
    found = scan(root, _FORMS) if root.is_dir() else []
    forms = {path.rsplit(".", 1)[1] for path in found}
    if len(forms) > 1:
        raise DataError(f"{name_of(root)} holds tars and parquet files: keep one of the two there")
    return found


def _part(shard: str) -> str:
    """The part that a file's name, or else its folder's, begins a word with."""
    named = [_PART.findall(word.lower()) for word in reversed(PurePosixPath(shard).parts)]
    for found in filter(None, named):
        return str(found[0])
    raise DataError(f"{shown(shard)} names no part: train, val or test must be in its name")


@dataclass(frozen=True, eq=False)
class Shards:
    """Pictures in tars: where each begins, so that any of them is read in place.

    A rank holds about 100 bytes a picture.
    """

    root: Path
    files: Mapping[str, Path]  # name of what a tar was made of, or its own, and the tar
    names: NDArray[np.bytes_]  # [N], sorted: path of the tar, then of the picture in it
    places: NDArray[np.int64]  # [N, 4]: number of the tar, first byte, bytes, label

    @classmethod
    def of(cls, root: Path, files: Mapping[str, Path], kept: Path) -> Shards:
        """Read the heads of all tars, or the list of their pictures that was kept in a folder."""
        states = [(file, os.stat(path)) for file, path in files.items()]
        state = [(file, found.st_size, found.st_mtime_ns) for file, found in states]
        digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
        path = kept / f"{digest[:20]}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):
            found = np.load(path, allow_pickle=False)
            if found.dtype.names == ("name", "place"):
                return cls(root, files, found["name"], found["place"])
        log.info("reading the heads of %d tars of %s", len(files), root)
        rows = [(os.fsencode(f"{file}/{name}"), (number, *place))
                for number, (file, path) in enumerate(files.items())
                for name, place in _pictures(path)]  # fmt: skip
        width = max((len(name) for name, _ in rows), default=1)
        kind = [("name", f"S{width}"), ("place", np.int64, (4,))]
        table = np.array(sorted(rows), dtype=kind)
        if not len(table) or (table["name"][1:] == table["name"][:-1]).any():
            raise DataError(f"{name_of(root)}: tars hold no picture, or one of a name twice")
        out = io.BytesIO()
        np.save(out, table, allow_pickle=False)
        try:
            write_atomic(path, out.getvalue(), DataError)
        except DataError as fault:
            log.warning("the list of pictures is not kept: %s", fault)
        return cls(root, files, table["name"], table["place"])

    def labelled(self, named: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, list[Sample]]]:
        """Return the classes, `named` or else numbers, and by part the pictures with a label."""
        count = max(len(named), int(self.places[:, 3].max()) + 1)
        if named and count > len(named):
            raise DataError(f"a picture is of class {count - 1}; the set names {len(named)}")
        of = [_part(file) for file in self.files]
        parts: dict[str, list[Sample]] = {part: [] for part in PARTS}
        for name, (number, _, _, label) in zip(self.names, self.places.tolist(), strict=True):
            if label >= 0:  # -1: the test pictures of ImageNet, whose labels nobody has
                parts[of[number]].append(Sample(os.fsdecode(name), label=label))
        if not parts["train"]:
            raise DataError(f"{name_of(self.root)}: no picture with a label is in a part train")
        return named or tuple(map(str, range(count))), {p: own for p, own in parts.items() if own}

    def reader(self, paths: NDArray[np.bytes_]) -> Callable[[int], bytes]:
        """Return what reads the files of some of the pictures, by their places in `paths`."""
        return functools.partial(self._read, np.searchsorted(self.names, paths))

    def marks(self) -> tuple[Callable[[Path], object], ...]:
        """Size and hash of a picture by its path, to tell copies."""

        def row(path: Path) -> int:
            name = os.fsencode(path.relative_to(self.root).as_posix())
            return int(np.searchsorted(self.names, name))

        return (
            lambda path: int(self.places[row(path), 2]),
            lambda path: hashlib.sha256(self._read([0, row(path)], 1)).digest(),
        )

    @functools.cached_property
    def _tars(self) -> tuple[Path, ...]:
        return tuple(self.files.values())

    def _read(self, rows: Sequence[int] | NDArray[np.int64], index: int) -> bytes:
        number, first, size, _ = self.places[rows[index]].tolist()
        path = self._tars[number]
        try:
            with open(path, "rb") as file:
                file.seek(first)
                return file.read(size)
        except OSError as fault:
            raise DataError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from fault


def _pictures(path: Path) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Name, first byte, bytes and label of each picture of a tar."""
    from spikeformer_lt.images.folders import SUFFIXES

    found: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    where = name_of(path)
    try:
        with tarfile.open(path, "r:", tarinfo=MemberOfWhole) as tar:
            end = os.stat(path).st_size
            for member in tar:
                if any(part[:2] == "._" or part == "__MACOSX" for part in member.name.split("/")):
                    continue  # what macOS adds to archives
                key, dot, suffix = member.name.rpartition(".")
                if not member.isreg() or member.issparse():
                    if f"{dot}{suffix}".lower() in SUFFIXES:
                        raise DataError(f"{where}: {shown(member.name)} is no plain file")
                elif suffix == "cls":
                    text = b"" if member.size > _LABEL else _of(tar, member)
                    if not re.fullmatch(rb"\s*-?\d+\s*", text):
                        raise DataError(f"{where}: {shown(member.name)} holds no number of a class")
                    labels[key] = int(text)
                elif f".{suffix.lower()}" in SUFFIXES:
                    if not 0 < member.size <= min(_MOST, end - member.offset_data):
                        raise DataError(f"{where}: {shown(member.name)} has {member.size} bytes")
                    if key in found:
                        raise DataError(f"{where}: {shown(member.name)} is a second picture of it")
                    found[key] = (member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as fault:
        raise DataError(f"{where} is no whole tar: {shown(str(fault))}") from fault
    for key, (name, first, size) in found.items():
        if not -1 <= labels.get(key, -2) < 1 << 20:
            raise DataError(f"{where}: {shown(name)} has no class: its number belongs in {key}.cls")
        yield name, (first, size, labels[key])


def _of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read(_LABEL + 1)


def _unpacked(
    root: Path, files: list[str], folder: Path
) -> tuple[tuple[str, ...], dict[str, Path]]:
    """Return names of the classes, if they are told, and tars; parquet files are unpacked once."""
    if files[0].endswith(".tar"):
        return (), {file: root / file for file in files}
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as fault:
        needed = "needs pyarrow; install it with: pip install 'spikeformer_lt[parquet]'"
        raise ConfigError(f"imagenet in parquet files {needed}") from fault
    made, waiting = {}, list(files)
    random.Random(os.getpid()).shuffle(waiting)  # ranks divide the work
    told: dict[tuple[str, ...], str] = {}  # names of the classes -> a file that has them
    for file in waiting:
        path = root / file
        try:
            with parquet.ParquetFile(path) as table:
                told[_class_names(table.schema_arrow.metadata or {})] = file
                state = os.stat(path)
                mark = hashlib.sha256(f"{file} {state.st_size} {state.st_mtime_ns}".encode())
                tar = folder / f"{_part(file)}-{Path(file).stem}-{mark.hexdigest()[:12]}.tar"
                made[file] = tar
                if not tar.is_file():
                    _unpack(table, path, tar)
        except (arrow.ArrowException, OSError) as fault:
            text = shown(str(fault), 200)
            raise DataError(f"{name_of(path)} cannot be unpacked: {text}") from fault
    told.pop((), None)
    if len(told) > 1:
        first, second = sorted(told.values())[:2]
        raise DataError(f"{name_of(root)}: {shown(first)} and {shown(second)} name other classes")
    return next(iter(told), ()), {file: made[file] for file in files}


def _class_names(about: dict[bytes, bytes]) -> tuple[str, ...]:
    """Names of the classes that the hub's libraries write into a file's schema; else ()."""
    try:
        names = json.loads(about[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if whole else ()


def _unpack(table: Any, path: Path, tar: Path) -> None:
    """Write the pictures of a parquet file, and their labels, as a tar of WebDataset."""
    free, needed = free_bytes(tar.parent), path.stat().st_size
    if not isinstance(free, str):
        check(needed < free, "imagenet.unpacked", str(tar.parent), f"a disk with {needed} bytes")
    sweep_files(tar.parent.glob(".*.tmp-*"))
    log.info("unpacking %s into %s", path, tar)
    with building(tar) as file, tarfile.open(fileobj=file, mode="w") as out:
        for row, (picture, label) in enumerate(_rows(table, path)):
            suffix = "png" if picture[:4] == b"\x89PNG" else "jpg"
            for end, data in ((suffix, picture), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{row:08d}.{end}")
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))


def _rows(table: Any, path: Path) -> Iterator[tuple[bytes, int]]:
    import pyarrow as arrow

    schema = table.schema_arrow
    kinds = {name: schema.field(name).type for name in ("image", "label") if name in schema.names}
    sound = len(kinds) == 2 and arrow.types.is_struct(kinds["image"])
    if not sound or not arrow.types.is_integer(kinds["label"]):
        raise DataError(
            f"{name_of(path)} has the columns {shown(schema.names, 200)}; needed are image, with "
            "the bytes of a file, and label, a number"
        )
    for batch in table.iter_batches(batch_size=64, columns=["image.bytes", "label"]):
        for row in batch.to_pylist():
            data, label = (row["image"] or {}).get("bytes"), row["label"]
            if not isinstance(data, bytes) or not 0 < len(data) <= _MOST or label is None:
                raise DataError(f"{name_of(path)}: a row has no picture or no label")
            yield data, label
