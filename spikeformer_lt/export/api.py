"""From a ticket to a folder that others can load, complete and verified or not there at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spikeformer_lt.disk import free_bytes, sync_folder, write_atomic
from spikeformer_lt.errors import ExportError, shown
from spikeformer_lt.export.file import CONFIG, TENSORS, read_packed, write_packed
from spikeformer_lt.export.fold import CompactModel, compact
from spikeformer_lt.export.hub import model_card
from spikeformer_lt.export.verify import Check, Size, sizes, verify
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.surgery import model_from_ticket

__all__ = ["Exported", "export_ticket", "load_exported", "read_ticket"]

CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written, and what its check found."""

    folder: Path
    sizes: list[Size]
    check: Check


def export_ticket(
    ticket: Ticket,
    folder: str | Path,
    *,
    precision: str = "fp32",
    about: Mapping[str, Any] | None = None,
    images: Tensor | None = None,
    overwrite: bool = False,
) -> Exported:
    """Pack a ticket, load it back, compare, and only then let the folder appear.

    Args:
        ticket: its provenance must name the model, as that of every recipe's ticket does.
        folder: new or empty folder.
        precision: "fp32", "fp16" or "bf16", see `write_packed`.
        about: further values for config.json: run id, accuracy, sparsities...
        images: batch of the comparison; None is a fixed one.
        overwrite: replace an export that is there.

    Raises:
        ExportError: the folder is in use, the ticket cannot be stored, or the check failed.
        TicketError: the ticket names no model, or not the one it is of.
    """
    folder = Path(folder)
    _refuse_foreign(folder, overwrite)
    tag = uuid.uuid4().hex[:12]
    stage = folder.with_name(f".{folder.name[:100]}.tmp-{tag}")
    try:
        write_packed(stage, ticket, precision, about)
        packed, check = verify(ticket, stage, images)
        found = sizes(packed, stage)
        card = model_card(packed, found, check)
        write_atomic(stage / CARD, card.encode("utf-8"), ExportError)
        if folder.exists():
            old = folder.with_name(f".{folder.name[:100]}.old-{tag}")
            os.rename(folder, old)
            os.rename(stage, folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(stage, folder)
    except OSError as fault:
        raise ExportError(
            f"cannot write {shown(str(folder), 300)}: {fault.strerror or fault}; "
            f"{free_bytes(folder.parent)} bytes free"
        ) from fault
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    sync_folder(folder.parent)
    return Exported(folder, found, check)


def load_exported(folder: str | Path, *, plain: bool = False, **overrides: Any) -> Any:
    """Load an export; the folder is all that is needed and nothing is ever unpickled.

    Args:
        folder: what `export_ticket` or ``recipes/export.py`` wrote.
        plain: give the network as it was trained instead of its compact form.
        overrides: model arguments to change, such as T.

    Returns:
        ``nn.Module`` in eval mode: images ``[B, C, H, W]`` or frames ``[B, T, 2, H, W]`` ->
        logits ``[B, T, K]``.

    Raises:
        ExportError: no export, a newer one, or an edited config.json.
        CheckpointError: a damaged tensor file; the tensor is named where it is one.
        TicketError: the stored weights are not of the model that they name.
    """
    model = model_from_ticket(read_packed(folder).ticket, **overrides).eval()
    if plain:
        return model
    fast: CompactModel = compact(model)
    return fast


def read_ticket(folder: str | Path) -> Ticket:
    """Read a ticket from its folder, or from that of an export.

    Raises:
        ExportError, CheckpointError: as `load_exported`.
        TicketError: neither an export nor a ticket, or a damaged ticket.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file() and (folder / TENSORS).is_file():
        return read_packed(folder).ticket
    return Ticket.load(folder)


def _refuse_foreign(folder: Path, overwrite: bool) -> None:
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise ExportError(f"{shown(str(folder), 300)} is a file; give a folder's name")
        return
    there = sorted(entry.name for entry in folder.iterdir())
    if there and not (overwrite and {CARD, CONFIG, TENSORS}.issuperset(there)):
        raise ExportError(
            f"{shown(str(folder), 300)} already holds {shown(there[0])}; give a new folder"
            + (
                ""
                if overwrite
                else " or overwrite=True (--overwrite), which replaces an export only"
            )
        )
