"""Data sets of tonic, through the gate that every recording passes.

tonic is GPL-3.0-only: it is imported where a user names it.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spikeformer_lt.disk import allow_write
from spikeformer_lt.errors import ConfigError, DataError, name_of, near, shown
from spikeformer_lt.events.dataset import Source, event_splits
from spikeformer_lt.events.frame import EventDataOptions
from spikeformer_lt.events.recording import Raw, Sensor, decoding, file_state
from spikeformer_lt.events.simulate import SIMULATED
from spikeformer_lt.events.split import Sample, cut, first_of_each_class
from spikeformer_lt.published import Archive, provide
from spikeformer_lt.splits import Splits

log = logging.getLogger(__name__)
Parts = Mapping[str, Any]
"""tonic's own parts, "train" and "test", or a whole set that has none, as "train"."""
_LARGEST = 1 << 37  # bytes of an archive, packed or not: tonic does not tell sizes
_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
_FIGSHARE = ("figshare.com/ndownloader/files", "api.figshare.com/v2/file/download")


def open_parts(name: str, root: str | Path, download: bool, incomplete: str) -> Parts:
    """Make ``tonic.datasets.NAME`` of the files in ``root/NAME``, or in `root` itself.

    An archive that lies there is checked and unpacked. Nothing is fetched without `download`,
    whatever tonic's own check of presence says.

    Args:
        name: of the class.
        root: folder of data sets.
        download: whether the network may be used.
        incomplete: "report" accepts fewer files than tonic asks for.

    Raises:
        ConfigError: no such class, or one with arguments of its own.
        DataError: the files are missing, or what tonic says of them.
    """
    import tonic.datasets

    kinds = tonic.datasets.__all__
    if name not in kinds:
        hint = near(name, kinds) or ";"
        raise ConfigError(f"tonic has no data set {shown(name)}{hint} it has {', '.join(kinds)}")
    kind = getattr(tonic.datasets, name)
    taken = inspect.signature(kind).parameters
    needed = [n for n, p in taken.items() if n == "split" or p.default is p.empty]
    if needed := [n for n in needed if n != "save_to"]:
        raise ConfigError(
            f"tonic:{name} is not allowed: the class needs {', '.join(needed)}; make it in Python "
            "and give it to spikeformer_lt.events.tonic_dataset(ds)"
        )
    options = {"train": {"train": True}, "test": {"train": False}}
    if "train" not in taken:
        options = {"train": {}}
    home = Path(root).expanduser().absolute()
    if download or (home / name).is_dir():
        home /= name
    try:
        return {part: _opened(kind, home, download, incomplete, o) for part, o in options.items()}
    except DataError as fault:
        told = f"tonic:{name} is not in {name_of(home)}: {fault}; tonic's own layout is needed"
        if incomplete != "report":
            told += ", and fewer files are accepted with --data.incomplete report"
        raise DataError(told) from fault


def _opened(kind: Any, home: Path, download: bool, incomplete: str, own: Mapping[str, Any]) -> Any:
    """An object of one of tonic's classes, of the files in `home`."""

    def fetched(self: Any) -> None:
        name, md5 = (getattr(self, field, "") for field in ("filename", "file_md5"))
        if md5 and name.endswith(_ARCHIVES):
            # figshare's old addresses answer programs with an empty page.
            url = self.url.replace(*_FIGSHARE)
            limits: Any = {"at_most": _LARGEST, "unpacked": _LARGEST, "members": 1 << 24}
            states = iter((None, home))
            archive = Archive(name, 0, md5, url=url, **limits)
            provide(kind.__name__, home, download, lambda: next(states), archives=[archive])
        elif download:
            allow_write()
            kind.download(self)
        else:
            raise DataError(f"not all files of the set, and no {name or 'archive'}")

    # tonic derives the folder from the name of the class in the middle of its constructor, and
    # takes files without their archive beside them for none.
    body: dict[str, Any] = {
        "location_on_system": property(lambda self: str(home), lambda self, value: None),
        "_is_file_present": lambda self: home.is_dir(),
        "download": fetched,
    }
    if incomplete == "report" and not download:
        body["_check_exists"] = lambda self: home.is_dir()
    try:
        with decoding(home, "the set, by tonic,"):
            made = type(kind.__name__, (kind,), body)(save_to=str(home.parent), **own)
    except SystemExit:  # one class ends the process where its files are missing
        raise DataError("tonic finds no files") from None
    made.__class__ = kind
    made.location_on_system = str(home)
    if not len(made):
        raise DataError("tonic finds no recordings")
    return made


@dataclass(frozen=True, eq=False)
class TonicReader:
    """Reads recordings through data sets of tonic, with their own transforms."""

    names: tuple[str, ...]  # all that the events depend on: classes, options and transforms
    parts: Parts = field(repr=False)
    places: Mapping[str, tuple[str, int]] = field(repr=False)  # key -> part and number in it
    root: Path | None = field(repr=False)

    def __call__(self, sample: Sample) -> Raw:
        """Return the events of a recording; times are in microseconds, as tonic has them."""
        part, number = self.places[sample.key]
        with decoding(sample.key):
            events = self.parts[part][number][0]
            named = isinstance(events, np.ndarray) and events.dtype.names is not None
            # ASLDVS has one column, as MATLAB keeps vectors.
            return Raw(events[:, 0] if named and events.shape[1:] == (1,) else events)

    def fingerprint(self, sample: Sample) -> str:
        """Return size and date of a file; what is in memory has its hash in the key."""
        return "made" if self.root is None else file_state(self.root / sample.path)


def tonic_dataset(train: Any, test: Any = None, **options: Any) -> Splits:
    """Make splits of data sets of tonic: of the training and the test part.

    Without `test`, of each class, sorted by path, the first 90 % are to train and validate.

    Args:
        train: an object of a class of ``tonic.datasets``, or with the same attributes.
        test: the same.
        options: those of `EventDataOptions`, such as ``events=EventOptions(T=8)``.

    Raises:
        ConfigError: a target_transform; as `event_splits`.
        DataError: an object without recordings, targets or a sensor's size; as `event_splits`.
    """
    parts = {"train": train} if test is None else {"train": train, "test": test}
    return tonic_splits(type(train).__name__, parts, EventDataOptions(**options))


def tonic_splits(
    name: str, parts: Parts, options: EventDataOptions, classes: Sequence[str] = (), own: str = ""
) -> Splits:
    """Make splits of tonic's parts; see `tonic_dataset`.

    `classes` are names of the classes instead of tonic's, and `own` is our data set of the same
    files, whose validation part is taken.
    """
    if any(getattr(held, "target_transform", None) is not None for held in parts.values()):
        raise ConfigError(
            f"target_transform of {name} is not allowed: the classes are the set's own targets"
        )
    targets = {part: _targets(name, held) for part, held in parts.items()}
    found = {target for part in targets.values() for target in part}
    names = tuple(classes) or _classes(parts["train"], found)
    paths = [path for held in parts.values() for path in held.data]
    files = all(isinstance(path, str | os.PathLike) for path in paths)
    home = Path(parts["train"].location_on_system) if files else None
    samples: dict[str, list[Sample]] = {part: [] for part in parts}
    places, copies = dict[str, tuple[str, int]](), dict[str, list[str]]()
    for part, held in parts.items():
        people = [f"{user:02d}" for user in getattr(held, "users", ())] or [""] * len(held)
        for number, (target, person) in enumerate(zip(targets[part], people, strict=True)):
            key = _key(held.data[number], home, f"{part}/{number:06d}")
            if key in places:  # the same recording twice, in memory
                same = copies.setdefault(key, [key])
                key += "+" * len(same)
                same.append(key)
            places[key] = part, number
            label = target if isinstance(target, int) else names.index(target)
            samples[part].append(Sample(key, label=label, group=person))
    train, test = sorted(samples["train"]), sorted(samples.get("test", []))
    if "test" not in parts:
        train, test = first_of_each_class(train, 0.9)
    grouped = all(sample.group for sample in train)
    split = cut(own or name, names, train, test, options.val_fraction, grouped)
    sides = getattr(parts["train"], "sensor_size", None) or (1, 1)
    if sides == (1, 1) and options.events.sensor is None:
        raise DataError(f"{name} says no sensor_size; give the sensor's rows and columns: sensor")
    told = tuple(repr(_chosen(held)) for held in parts.values())
    known = files or all(isinstance(path, np.ndarray) for path in paths)
    if " at 0x" in "".join(told) or not (known or options.events.cache == "auto"):
        what = "a transform without a repr" if known else "data that are no arrays"
        log.info("%s: frames are not cached: %s tells nothing", name, what)
        options = replace(options, events=replace(options.events, cache="none"))
    reader = TonicReader((name, *told), parts, places, home)
    source = Source(reader, Sensor(int(sides[1]), int(sides[0])), root=home)
    if home is not None and (home / SIMULATED).is_file():
        name = "simulated_gestures"
    twice = list(copies.values()) if home is None else None
    return event_splits(replace(split, name=name), source, options, copies=twice)


def _targets(name: str, held: Any) -> list[Any]:
    targets = [int(t) if isinstance(t, np.integer) else t for t in getattr(held, "targets", ())]
    sound = all(isinstance(target, int | str) for target in targets)
    if not targets or len(targets) != len(held) or not sound:
        raise DataError(
            f"{name} has {len(targets)} targets for {len(held)} recordings; needed is a class "
            "each, by number or name"
        )
    return targets


def _classes(held: Any, found: set[Any]) -> tuple[str, ...]:
    named = tuple(map(str, getattr(held, "classes", ())))
    if all(isinstance(target, str) for target in found):
        return named if found <= set(named) else tuple(sorted(found))
    most = max(found)
    if most < len(named):
        return named
    if named:
        log.warning("targets reach %d: they are no numbers, from 0, of %s", most, shown(named, 100))
    return tuple(map(str, range(most + 1)))


def _key(held: Any, home: Path | None, place: str) -> str:
    """A name that is the same on every machine, in whatever order its file system lists files."""
    if home is not None:
        return Path(os.path.relpath(held, home)).as_posix()
    if not isinstance(held, np.ndarray):
        return place
    return hashlib.sha256(f"{held.dtype} {held.shape}".encode() + held.tobytes()).hexdigest()


def _chosen(held: Any) -> list[tuple[str, str]]:
    """What a user chose of a data set of tonic: numbers, words and transforms."""
    kinds, places = (bool, int, float, str, tuple), ("location_on_system", "filename", "url")
    return sorted(
        (name, repr(value))
        for name, value in vars(held).items()
        if name not in places and (isinstance(value, kinds) or name.startswith("transform"))
    )
