"""One checkpoint on disk: a folder of tensor files, a state and a manifest that seals them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spikeformer_lt.errors import CheckpointError, NonFiniteError, shown
from spikeformer_lt.paths import safe_name, sha256_of, sync_folder
from spikeformer_lt.tensorfile import read_tensors, write_tensors
from spikeformer_lt.textfile import parse_json
from spikeformer_lt.training.guard import count_nonfinite
from spikeformer_lt.training.jsonfile import dump_json

__all__ = ["Checkpoint", "Content", "read_folder", "write_folder"]

FORMAT = "spikeformer_lt.checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"

Content = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group and name."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a folder held: its number, place, tensors by group and name, and state."""

    number: int
    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write_folder(folder: Path, number: int, tensors: Content, state: Mapping[str, Any]) -> None:
    """Make `folder` and fill it with ``<group>.safetensors``, ``state.json`` and the manifest.

    Every file is on the disk, and not only in its cache, when this returns.

    Raises:
        NonFiniteError: a NaN or infinity in a tensor; nothing was written.
        CheckpointError: a value that cannot be stored, or (from an OSError) a disk that refuses.
        OSError: the system refuses.
    """
    for group, members in tensors.items():
        if safe_name(group) != group or group != group.lower():
            raise CheckpointError(
                f"group {shown(group)} cannot be a file name; use lower-case letters and digits"
            )
        for name, value in members.items():
            _refuse_nonfinite(value, f"{group} tensor {shown(name)}")
    text = dump_json(dict(state), "state", CheckpointError)
    folder.mkdir()
    for group, members in tensors.items():
        own = {"group": group, "number": number}
        write_tensors(folder / f"{group}.safetensors", members, own)
    _write_through(folder / STATE, text)
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    body = {"format": FORMAT, "format_version": VERSION, "number": number, "files": files}
    _write_through(folder / MANIFEST, json.dumps({**body, "seal": _seal(body)}, indent=1))
    sync_folder(folder)


def read_folder(folder: Path, number: int) -> Checkpoint:
    """Read a folder, every byte of it verified.

    Args:
        folder: the folder.
        number: the number that it must have.

    Raises:
        CheckpointError: any fault, with the file, the tensor if it is one tensor, and what the file
            is if it is none of ours.
    """
    files = _manifest_files(folder / MANIFEST, number)
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name, written in files.items():
        path = folder / name
        where = shown(str(path), 300)
        if path.suffix == ".safetensors":
            # First, since its message about a damaged file says most.
            tensors[path.stem], own = read_tensors(path)
            if own != {"group": path.stem, "number": number}:
                raise CheckpointError(f"{where}: belongs to another checkpoint: {shown(own)}")
        try:
            size, digest = path.stat().st_size, sha256_of(path)
        except OSError as fault:
            raise CheckpointError(f"cannot read {where}: {fault.strerror or fault}") from None
        if size != written.get("size"):
            raise CheckpointError(
                f"{where}: {size} bytes there, {written.get('size')} were written"
            )
        if digest != written.get("sha256"):
            raise CheckpointError(f"{where}: damaged: its sha256 is not that of the manifest")
        if name == STATE:
            state = parse_json(path.read_text("utf-8"), where, CheckpointError)
    return Checkpoint(number, folder, tensors, state)


def _write_through(path: Path, text: str) -> None:
    """Write a file to the disk; nobody reads it before its folder is published."""
    with open(path, "xb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _manifest_files(path: Path, number: int) -> dict[str, dict[str, Any]]:
    where = shown(str(path), 300)
    try:
        text = path.read_text("utf-8")
    except OSError as fault:
        raise CheckpointError(f"cannot read {where}: {fault.strerror or fault}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{where}: damaged: not UTF-8 text") from None
    found = parse_json(text, where, CheckpointError)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{where}: not the manifest of a checkpoint")
    version = found.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{where}: found v{version}, supports <= v{VERSION}; install a newer spikeformer_lt"
        )
    if found.pop("seal", None) != _seal(found) or version != VERSION:
        raise CheckpointError(f"{where}: damaged: its content and its checksum differ")
    if found.get("number") != number:
        raise CheckpointError(
            f"{where}: is of checkpoint {shown(found.get('number'))}, not {number}"
        )
    files = found.get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise CheckpointError(f"{where}: damaged: it lists no files")
    for name, written in files.items():
        if safe_name(name) != name or not isinstance(written, dict) or len(written) != 2:
            raise CheckpointError(f"{where}: damaged: odd entry {shown(name)}")
    return files


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _refuse_nonfinite(value: Tensor, what: str) -> None:
    count = count_nonfinite(value)
    if count:
        raise NonFiniteError(
            f"not saved: {what} has {count} non-finite values of {value.numel()}; the last good "
            "checkpoint is untouched; resume from it, e.g. with a lower learning rate"
        )
