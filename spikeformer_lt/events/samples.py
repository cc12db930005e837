"""Which recordings there are: found on disk in an order that no file system decides."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt.errors import DataError, near, shown
from spikeformer_lt.events.source import name_of

_log = logging.getLogger(__name__)
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_DEPTH = 3  # folders below the root in which a set's own folder is looked for


@dataclass(frozen=True, order=True)
class Sample:
    """One labelled recording, or one stretch of a longer one.

    Attributes:
        path: below the root of the set, with "/" on every system.
        start_us: beginning of the stretch; None is the whole file.
        end_us: first time after the stretch.
        label: class number.
        group: whom or what it was taken from, where whole groups must stay together.
    """

    path: str
    start_us: int | None = None
    end_us: int | None = None
    label: int = 0
    group: str = ""

    @property
    def key(self) -> str:
        """A name that no other sample of the set has."""
        if self.start_us is None:
            return self.path
        return f"{self.path}[{self.start_us}:{self.end_us}]"


def scan(folder: str | Path, suffixes: Sequence[str]) -> list[str]:
    """Find files by the ends of their names, in all folders below one.

    Hidden files and what desktops leave behind (.DS_Store, __MACOSX, Thumbs.db) are passed over.

    Args:
        folder: where to look.
        suffixes: ends of names, e.g. (".npy",).

    Returns:
        Paths below `folder`, with "/", in the order of their characters: the same on every machine.

    Raises:
        DataError: `folder` is no folder, or a link in it leads out of it.
    """
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"{name_of(top)} is not a folder")
    home = top.resolve()
    found: list[str] = []
    for here, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not _junk(name)]
        for name in [*folders, *files]:
            path = Path(here, name)
            if path.is_symlink() and not _junk(name) and not _within(path, home):
                raise DataError(
                    f"{name_of(path)} is a link that leads out of {name_of(top)}: it is not "
                    "followed; copy what it shows, or give that folder as the root"
                )
        wanted = (name for name in files if not _junk(name) and name.endswith(tuple(suffixes)))
        found += [Path(here, name).relative_to(top).as_posix() for name in wanted]
    return sorted(found)


def _junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _within(path: Path, home: Path) -> bool:
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a link to itself
        return False


def find_folder(root: str | Path, names: Sequence[str]) -> Path | None:
    """Find the folder of a set at the root or up to three levels below it.

    Args:
        root: where to begin; it may be the folder itself.
        names: names that the folder may have.

    Returns:
        The folder, or None.

    Raises:
        DataError: two such folders, as an archive unpacked twice leaves them.
    """
    top = Path(root)
    if top.absolute().name in names and top.is_dir():
        return top
    level = [top]
    for _ in range(_DEPTH):
        below: list[Path] = []
        for folder in level:
            try:
                entries = sorted(entry for entry in folder.iterdir() if not _junk(entry.name))
            except OSError:
                continue
            below += [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
        found = [folder for folder in below if folder.name in names]
        if len(found) > 1:
            raise DataError(
                f"{name_of(found[0])} and {name_of(found[1])} both look like the set: remove one, "
                "or give the folder above the right one as the root"
            )
        if found:
            return found[0]
        level = below
    return None


def label_of(name: str, classes: Mapping[str, int], path: str) -> int:
    """Return the class number of a folder or file name.

    Raises:
        DataError: no class has that name; the path is named and the nearest class offered.
    """
    if name not in classes:
        raise DataError(
            f"{shown(path, 300)}: {shown(name)} is no class{near(name, classes) or ';'} "
            f"there are {len(classes)}: {', '.join(list(classes)[:20])}"
        )
    return classes[name]


def check_counts(
    name: str,
    samples: Sequence[Sample],
    classes: Sequence[str],
    expected: int | Mapping[str, int],
) -> str:
    """Compare what was found with what the published set has.

    Args:
        name: of the part, e.g. "dvs128_gesture train".
        samples: what was found.
        classes: names by class number.
        expected: recordings in all, or {class: recordings}.

    Returns:
        "" if they agree, else one sentence with the counts of each class.
    """
    counts = Counter(sample.label for sample in samples)
    total = expected if isinstance(expected, int) else sum(expected.values())
    told = []
    wrong = len(samples) != total
    for label, each in enumerate(classes):
        wanted = "" if isinstance(expected, int) else f" of {expected.get(each, 0)}"
        told.append(f"{each} {counts[label]}{wanted}")
        if isinstance(expected, int):
            wrong |= counts[label] == 0
        else:
            wrong |= counts[label] != expected.get(each, 0)
    if not wrong:
        return ""
    return f"{name} has {len(samples)} recordings of {total}: {', '.join(told)}"


def accept(fault: str, incomplete: str) -> None:
    """Refuse an incomplete set, or tell of it.

    Args:
        fault: what `check_counts` says.
        incomplete: "error" or "report".

    Raises:
        DataError: there is a fault and it is an error.
    """
    if not fault:
        return
    if incomplete == "error":
        raise DataError(f"{fault}; get the rest, or use incomplete=report to go on with these")
    _log.warning("%s", fault)
