"""The checkpoints of a run: published by one rename, verified when loaded, never lost to a kill.

A folder holds ``ckpt-00000012/`` and its predecessors, and ``LATEST``, which names the one to go on
from. Whatever is half written bears another name (``ckpt-00000012.tmp-<pid>``), is ignored, and is
swept by the next save. Old ones go only after the new one is published.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spikeformer_lt.config import check
from spikeformer_lt.errors import CheckpointError, shown
from spikeformer_lt.paths import free_bytes, write_atomic
from spikeformer_lt.training.checkpoint_folder import Checkpoint, Content, read_folder, write_folder

__all__ = ["Checkpoint", "CheckpointStore"]

logger = logging.getLogger(__name__)

LATEST = "LATEST"
NUMBER_LIMIT = 10**18
_NAME = re.compile(r"ckpt-(\d{8,18})(?:\.(\d{1,9}))?")
_STALE = re.compile(rf"(?:ckpt-.+|\.{LATEST})\.tmp-[0-9a-f]+")


class _Published(NamedTuple):
    number: int
    revision: int  # above 0 where a run that had gone back saved the same number once more
    path: Path


class CheckpointStore:
    """The checkpoints in one folder, written by one process.

    Args:
        folder: where they are; made by the first save.
        keep: how many published ones stay; 2 leave one to fall back on.

    Raises:
        ConfigError: `keep` below 1.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        check(keep >= 1, "keep", keep, "an integer >= 1; 2 leave one to fall back on")
        self.folder, self.keep = Path(folder), keep

    def save(self, number: int, tensors: Content, state: Mapping[str, Any]) -> Path:
        """Publish a checkpoint, then delete those that `keep` no longer covers.

        Args:
            number: its place in the run, e.g. the optimizer step. Published ones of a higher number
                belong to a future that the run has turned back from; they go, too.
            tensors: group -> name -> tensor; a group becomes one file.
            state: JSON values with text keys; tuples come back as lists.

        Returns:
            The published folder.

        Raises:
            NonFiniteError: a NaN or infinity in a tensor.
            CheckpointError: a value that cannot be stored, or a disk that refuses, with path, bytes
                needed and bytes free. Earlier checkpoints are untouched in every case.
        """
        check(0 <= number < NUMBER_LIMIT, "number", number, "a checkpoint's number is 0 or above")
        stage = self.folder / f"ckpt-{number:08d}.tmp-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            write_folder(stage, number, tensors, state)
            target = self._free_name(number)
            os.replace(stage, target.path)
            write_atomic(self.folder / LATEST, f"{target.path.name}\n".encode())
        except (OSError, CheckpointError) as fault:
            cause = fault if isinstance(fault, OSError) else fault.__cause__
            if not isinstance(cause, OSError):
                raise
            needed = sum(value.nbytes for group in tensors.values() for value in group.values())
            free = free_bytes(self.folder)
            raise CheckpointError(
                f"cannot save checkpoint {number} in {shown(str(self.folder), 300)}: "
                f"{cause.strerror or cause}; {needed} bytes needed, {free} free; earlier "
                "checkpoints are untouched; make room or repair the folder, then resume"
            ) from fault
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self._discard_beyond(target)
        return target.path

    def load(self, number: int | None = None) -> Checkpoint | None:
        """Read and verify the latest checkpoint, or else, with a warning, the previous good one.

        Args:
            number: read this one and no other.

        Returns:
            The checkpoint, its tensors on the CPU; None if nothing was ever published.

        Raises:
            CheckpointError: checkpoints are there and none is good, or `number` is not there or not
                good; with the fault of each.
        """
        published = self._published()
        if number is not None:
            chosen = [entry for entry in published if entry.number == number]
            if not chosen:
                there = sorted({entry.number for entry in published})
                raise CheckpointError(
                    f"no checkpoint {number} in {shown(str(self.folder), 300)}; there are {there}"
                )
            return read_folder(chosen[-1].path, number)
        latest = self._latest_name()
        faults: list[str] = []
        if latest and not any(entry.path.name == latest for entry in published):
            faults.append(f"LATEST names {shown(latest)}, which is not there")
        for entry in _by_trust(published, latest):
            try:
                found = read_folder(entry.path, entry.number)
            except CheckpointError as fault:
                faults.append(str(fault))
                continue
            if faults:
                logger.warning("skipped: %s; going on from %s", "; ".join(faults), found.path)
            return found
        if faults:
            raise CheckpointError(
                f"none of {len(published)} checkpoints in {shown(str(self.folder), 300)} is good: "
                f"{'; '.join(faults)}; restore one from a copy, or start anew in another folder"
            )
        return None

    def latest_number(self) -> int | None:
        """Return the number that `load` tries first, unverified; None if there is none."""
        ordered = _by_trust(self._published(), self._latest_name())
        return ordered[0].number if ordered else None

    def _published(self) -> list[_Published]:
        """Published checkpoints, oldest first."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as fault:
            raise CheckpointError(
                f"cannot read {shown(str(self.folder), 300)}: {fault.strerror or fault}"
            ) from None
        matches = [match for match in map(_NAME.fullmatch, names) if match]
        return sorted(_Published(int(m[1]), int(m[2] or 0), self.folder / m[0]) for m in matches)

    def _latest_name(self) -> str:
        try:
            return (self.folder / LATEST).read_bytes()[:100].decode("ascii", "replace").strip()
        except OSError:
            return ""

    def _free_name(self, number: int) -> _Published:
        """A name that nothing has: a folder that is in use can be replaced by no atomic step."""
        same = [entry.revision for entry in self._published() if entry.number == number]
        revision = max(same) + 1 if same else 0
        suffix = f".{revision}" if revision else ""
        return _Published(number, revision, self.folder / f"ckpt-{number:08d}{suffix}")

    def _sweep(self) -> None:
        for name in os.listdir(self.folder):
            if _STALE.fullmatch(name):
                _remove(self.folder / name)

    def _discard_beyond(self, newest: _Published) -> None:
        others = [entry for entry in self._published() if entry.path != newest.path]
        older = sorted({entry.number for entry in others if entry.number < newest.number})
        kept = older[-(self.keep - 1) :] if self.keep > 1 else []
        for entry in others:
            if entry.number in kept:
                continue
            if entry.number > newest.number:
                logger.info("deleting %s: the run went back to before it", entry.path)
            # Renamed first, so that a kill amid the deletion leaves no damaged checkpoint.
            trash = self.folder / f"{entry.path.name}.tmp-{os.getpid()}"
            try:
                os.replace(entry.path, trash)
            except OSError as fault:
                logger.warning("cannot delete the old checkpoint %s: %s", entry.path, fault)
                continue
            _remove(trash)


def _by_trust(published: list[_Published], latest: str) -> list[_Published]:
    """LATEST's own, those before it from new to old, then any after; without LATEST the newest."""
    current = [entry for entry in published if entry.path.name == latest]
    before = [entry for entry in published if not current or entry < current[0]]
    after = [entry for entry in published if current and entry > current[0]]
    return [*current, *reversed(before), *reversed(after)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
