"""A lottery ticket: a mask, the weights to start from, and where both came from."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.disk import (
    content_kind,
    free_bytes,
    parse_json,
    read_tensors,
    sha256_of,
    sync_folder,
    write_atomic,
    write_tensors,
)
from spikeformer_lt.errors import TicketError, near, shown
from spikeformer_lt.mask import Mask

VERSION = 1
_TENSOR_FILES = ("mask.safetensors", "model.safetensors")


@dataclass(frozen=True, eq=False)
class Ticket:
    """What a search finds and a training starts from.

    Args:
        mask: which weights are kept.
        tensors: whole `state_dict` of the start weights; removed weights are exactly 0.
        provenance: how it was found, in values that JSON can hold: model, search, seed, run id...

    Raises:
        TicketError: a masked layer is missing, has another shape, or has a removed weight that is
            not 0; a weight is NaN or infinite.
    """

    mask: Mask
    tensors: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kept in self.mask.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                hint = near(name, self.tensors) or "; save the whole state_dict of the model"
                raise TicketError(f"layer {shown(name)} of the mask has no weights{hint}")
            if tensor.shape != kept.shape:
                raise TicketError(
                    f"layer {shown(name)}: the mask has shape {list(kept.shape)}, the weights "
                    f"{list(tensor.shape)}; they are of different models"
                )
            alive = int((tensor.detach().cpu()[~kept] != 0).sum())
            if alive:
                raise TicketError(
                    f"layer {shown(name)}: {alive} of {int((~kept).sum())} removed weights are not "
                    "0, so mask and weights do not belong together; call mask.apply_(model) first"
                )
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TicketError(f"tensor {shown(name)} has NaN or infinite values")

    @classmethod
    def of(cls, model: nn.Module, mask: Mask, provenance: dict[str, Any] | None = None) -> Ticket:
        """Take the present weights of `model` as start weights, those that `mask` removes as 0.

        The model is not changed and the ticket shares no memory with it.

        Raises:
            TicketError: the mask is not of this model.
        """
        tensors = {}
        for name, tensor in model.state_dict().items():
            copy = tensor.detach().to("cpu", copy=True)
            if name in mask and copy.shape == mask[name].shape:
                copy[~mask[name]] = 0
            tensors[name] = copy
        return cls(mask, tensors, dict(provenance or {}))

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write ``mask.safetensors``, ``model.safetensors`` and ``ticket.json``, all at once.

        Args:
            folder: new or empty folder, which appears complete or not at all.
            overwrite: replace the ticket that is there.

        Raises:
            TicketError: the folder is in use, or the disk refuses.
        """
        folder = Path(folder)
        where = shown(str(folder), 300)
        self._refuse_foreign(folder, overwrite)
        tag = uuid.uuid4().hex[:12]
        stage = folder.with_name(f".{folder.name[:100]}.tmp-{tag}")
        try:
            self._write(stage)
            if overwrite and folder.exists():
                old = folder.with_name(f".{folder.name[:100]}.old-{tag}")
                os.rename(folder, old)
                os.rename(stage, folder)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(stage, folder)
        except OSError as fault:
            raise TicketError(
                f"cannot write {where}: {fault.strerror or fault}; "
                f"{free_bytes(folder.parent)} bytes free"
            ) from fault
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        sync_folder(folder.parent)

    def _write(self, stage: Path) -> None:
        self.mask.save(stage / "mask.safetensors")
        write_tensors(stage / "model.safetensors", self.tensors, {"kind": "ticket weights"})
        about = {
            "format": "spikeformer_lt.ticket",
            "format_version": VERSION,
            "sparsity": self.mask.sparsity,
            "sha256": {name: sha256_of(stage / name) for name in _TENSOR_FILES},
            "provenance": self.provenance,
        }
        try:
            text = json.dumps(about, indent=2) + "\n"
        except (TypeError, ValueError) as fault:
            raise TicketError(f"the provenance cannot be stored as JSON: {fault}") from None
        write_atomic(stage / "ticket.json", text.encode(), TicketError)

    @staticmethod
    def _refuse_foreign(folder: Path, overwrite: bool) -> None:
        if not folder.is_dir():
            if folder.exists() or folder.is_symlink():
                raise TicketError(f"{shown(str(folder), 300)} is a file; give a folder's name")
            return
        ours = {"ticket.json", *_TENSOR_FILES}
        there = sorted(entry.name for entry in folder.iterdir())
        if there and not (overwrite and ours.issuperset(there)):
            raise TicketError(
                f"{shown(str(folder), 300)} already holds {shown(there[0])}; give a new folder"
                + ("" if overwrite else " or overwrite=True, which replaces a ticket only")
            )

    @classmethod
    def load(cls, folder: str | Path) -> Ticket:
        """Read and verify a ticket; nothing is ever unpickled.

        Raises:
            TicketError: no ticket, a newer one, or files changed since it was saved.
            CheckpointError: a tensor file is damaged.
        """
        folder = Path(folder)
        about = _read_about(folder)
        where = shown(str(folder), 300)
        for name in _TENSOR_FILES:
            expected = about["sha256"].get(name)
            try:
                found = sha256_of(folder / name)
                head = (folder / name).read_bytes()[:1024]
            except OSError as fault:
                raise TicketError(f"{where}: cannot read {name}: {fault.strerror}") from None
            if found != expected:
                kind = "" if head[8:9] == b"{" else f"; it now is {content_kind(head)}"
                raise TicketError(
                    f"{where}: {name} changed since the ticket was saved (sha256 {found[:12]}..., "
                    f"{shown(expected)[1:13]}... was written); restore it from a copy{kind}"
                )
        tensors, _ = read_tensors(folder / "model.safetensors")
        try:
            return cls(Mask.load(folder / "mask.safetensors"), tensors, about["provenance"])
        except TicketError as fault:
            raise TicketError(f"{where}: {fault}") from None

    def apply_(self, model: nn.Module) -> None:
        """Copy the start weights into `model`, in place; nothing is written if one does not fit.

        Raises:
            TicketError: names or shapes differ; the first five are listed.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        faults = _differences(given, wanted)
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise TicketError(
                f"the ticket is not of this model: {'; '.join(faults[:5])}{more}; make the model "
                "with the arguments in the ticket's provenance"
            )
        model.load_state_dict(self.tensors)


def start_folder(path: str | Path) -> Path:
    """Where a run's ticket is, as it was before any training from it: ``ticket``, or the path."""
    return Path(path) / "ticket" if (Path(path) / "ticket").is_dir() else Path(path)


def finished_folder(path: str | Path) -> Path:
    """Where the network that a run ended with is.

    Args:
        path: a run directory, or a ticket folder.

    Returns:
        ``trained`` of a run that trained its ticket, else ``ticket`` of a run, else the path.
    """
    trained = Path(path) / "trained"
    return trained if trained.is_dir() else start_folder(path)


def _differences(
    given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    faults = []
    for name in [*wanted, *(name for name in given if name not in wanted)]:
        if name not in given:
            faults.append(f"{shown(name)} {list(wanted[name])} is missing in the ticket")
        elif name not in wanted:
            faults.append(f"{shown(name)} {list(given[name])} is unknown to the model")
        elif given[name] != wanted[name]:
            faults.append(
                f"{shown(name)} is {list(given[name])}, the model has {list(wanted[name])}"
            )
    return faults


def _read_about(folder: Path) -> dict[str, Any]:
    where = shown(str(folder), 300)
    try:
        if folder.is_file():
            kind = content_kind(folder.read_bytes()[:1024])
            raise TicketError(f"{where}: a ticket is a folder with ticket.json; this is {kind}")
        text = (folder / "ticket.json").read_text(encoding="utf-8")
    except OSError as fault:
        raise TicketError(f"{where}: no ticket: ticket.json: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise TicketError(f"{where}: ticket.json is not UTF-8 text") from None
    about = parse_json(text, f"{where}: ticket.json", TicketError)
    if not isinstance(about, dict) or about.get("format") != "spikeformer_lt.ticket":
        raise TicketError(f"{where}: ticket.json is not of a ticket of spikeformer_lt")
    version = about.get("format_version")
    if version != VERSION:
        raise TicketError(
            f"{where}: found ticket format v{shown(version)}, supports <= v{VERSION}; "
            "install a newer spikeformer_lt"
        )
    if not isinstance(about.get("sha256"), dict) or not isinstance(about.get("provenance"), dict):
        raise TicketError(f"{where}: ticket.json has no sha256 or no provenance; it was edited")
    return about
