"""Which directory a run goes to, and whether it begins there or goes on."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeformer_lt.config import differences, load_config
from spikeformer_lt.errors import ConfigError, near, shown

__all__ = ["CONFIG", "RunChoice", "holds_run"]

CONFIG = "config.json"
LEFTOVERS = (".lock", f".{CONFIG}.tmp-")  # what a start that was killed may leave behind
TWINS = 10_000  # runs of one configuration under one root


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`: its configuration is the first file it writes."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class RunChoice:
    """What was asked for.

    Args:
        config: the configuration, a nested frozen dataclass.
        run_id: name of the run, one safe path component.
        resume: "never", "auto" or the path of a run.
        allow: fields or groups that may differ from the run that is resumed.
        own: fields or groups that are about the directory and are not compared.
        root: parent of the directories that are named here.
    """

    config: Any
    run_id: str
    resume: str
    allow: Sequence[str]
    own: Sequence[str]
    root: Path

    def choose(self, path: str) -> tuple[Path, bool]:
        """Give the directory and whether a run goes on there.

        Args:
            path: the directory that was asked for; empty for one named after the run, which is made
                here and is nobody else's, even if two processes ask in the same instant.

        Raises:
            ConfigError: it holds another run, or something that is no run; nothing to resume.
            OSError: the system refuses.
        """
        if self.resume not in ("never", "auto"):
            return self._resumed_path(path), True
        if path:
            folder = Path(path)
            if holds_run(folder):
                if self.resume == "auto":
                    return folder, True
                raise ConfigError(
                    f"{shown(path, 300)} already holds a run, and nothing is ever overwritten"
                    f"{self._differing(folder)}; go on with it by --run.resume auto, or choose "
                    "another --run.out"
                )
            _refuse_foreign(folder)
            return folder, False
        if self.resume == "auto":
            for folder in self._twins():
                with contextlib.suppress(ConfigError):  # damaged, or of another version
                    if not self.changes(folder):
                        return folder, True
        return self._new_twin(), False

    def changes(self, folder: Path) -> list[str]:
        """List where the run in `folder` differs: "field: old -> new", the own fields left out.

        Raises:
            ConfigError: its configuration cannot be read.
        """
        old = load_config(type(self.config), folder / CONFIG)
        return [line for line in differences(old, self.config) if not _within(line, self.own)]

    def allows(self, line: str) -> bool:
        """Whether a line of `changes` is one that may change."""
        return _within(line, self.allow)

    def _resumed_path(self, path: str) -> Path:
        folder = Path(self.resume)
        if not holds_run(folder):
            hint = near(self.resume, ("never", "auto"))
            raise ConfigError(
                f"resume={shown(self.resume, 300)} is not allowed: never, auto, or a directory "
                f"that holds a run, which has a {CONFIG}{hint}"
            )
        if path and Path(path).resolve() != folder.resolve():
            raise ConfigError(
                f"resume={shown(self.resume, 300)} and out={shown(path, 300)} are two directories; "
                "give one of them"
            )
        return folder

    def _differing(self, folder: Path) -> str:
        with contextlib.suppress(ConfigError):
            changed = self.changes(folder)
            if changed:
                return f" (a run of another configuration: {'; '.join(changed)})"
        return ""

    def _twins(self) -> list[Path]:
        """Runs of this name under the root, newest first."""
        pattern = re.compile(rf"{re.escape(self.run_id)}(?:-(\d{{1,6}}))?")
        found = []
        for name in os.listdir(self.root) if self.root.is_dir() else []:
            match = pattern.fullmatch(name)
            if match and holds_run(self.root / name):
                found.append((int(match[1] or 1), self.root / name))
        return [folder for _, folder in sorted(found, reverse=True)]

    def _new_twin(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        for number in range(1, TWINS):
            folder = self.root / (self.run_id if number == 1 else f"{self.run_id}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()  # the one step that only one of two processes can win
                return folder
        raise ConfigError(f"{shown(str(self.root), 300)} has {TWINS} runs {self.run_id}; clear it")


def _within(line: str, names: Sequence[str]) -> bool:
    field = line.partition(":")[0]
    return any(f"{field}.".startswith(f"{name}.") for name in names)


def _refuse_foreign(folder: Path) -> None:
    where = shown(str(folder), 300)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{where} is a file, not a directory; choose another --run.out")
    names = sorted(os.listdir(folder)) if folder.exists() else []
    foreign = [name for name in names if not name.startswith(LEFTOVERS)]
    if foreign:
        raise ConfigError(
            f"{where} is not empty ({shown(foreign[0])}, {len(foreign)} in all) and holds no run; "
            "choose a new or empty --run.out"
        )
