"""Exports: a ticket packed into a folder that loads by itself, verified before it appears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spikeformer_lt.bundle import staged
from spikeformer_lt.disk import parse_json
from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.file import (
    CARD,
    CONFIG,
    EXPORT,
    TENSORS,
    read_packed,
    write_packed,
)
from spikeformer_lt.export.fold import compact
from spikeformer_lt.export.verify import Check, Size, model_card, size_table, sizes, verify
from spikeformer_lt.ticket import Ticket, finished_folder
from spikeformer_lt.tickets.surgery import model_from_ticket

__all__ = ["Exported", "export_run", "export_ticket", "load_exported", "read_ticket"]

REPORTED = ("test_accuracy", "val_accuracy", "test_count", "sparsity", "run_id")


@dataclass(frozen=True)
class Exported:
    """An export that was written: its folder, its sizes, and the result of its check."""

    folder: Path
    sizes: list[Size]
    check: Check
    trained: bool = True

    def summary(self) -> str:
        """Sizes and check as text of several lines."""
        notice = "NOTICE: this ticket holds its start weights: an untrained network is exported\n"
        check = self.check
        return (
            f"{'' if self.trained else notice}{size_table(self.sizes)}\n"
            f"verified: reloaded logits within {check.reload_gap:.3g}; compact within "
            f"{check.compact_gap_float64:.3g} (float64), {check.compact_gap_float32:.3g} "
            f"(float32); same class {100 * check.same_class:.0f} %"
        )


def export_run(run: str | Path, folder: str | Path, **options: Any) -> Exported:
    """Export the network that a run ended with; accuracies and sparsities of its report go along.

    Args:
        run: a run directory, or a ticket folder.
        folder: new or empty folder.
        options: `precision` and `overwrite` of `export_ticket`.

    Raises:
        ExportError, TicketError: as `export_ticket`; an unreadable ticket or report.
    """
    ticket, report = Ticket.load(finished_folder(run)), Path(run) / "report.json"
    about: dict[str, Any] = {}
    if report.is_file():
        known = parse_json(report.read_text(encoding="utf-8"), str(report), ExportError)
        about = {name: known[name] for name in REPORTED if name in known}
    return export_ticket(ticket, folder, about=about, **options)


def export_ticket(
    ticket: Ticket,
    folder: str | Path,
    *,
    precision: str = "fp32",
    about: Mapping[str, Any] | None = None,
    images: Tensor | None = None,
    overwrite: bool = False,
) -> Exported:
    """Pack a ticket, load it back and compare it; the folder appears only if both are equal.

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
    with staged(folder, EXPORT, overwrite) as stage:
        write_packed(stage, ticket, precision, about)
        packed = read_packed(stage.path)
        check = verify(ticket, packed, images)
        found = sizes(packed, stage.path, check.stem)
        stage.write(CARD, model_card(packed, found, check).encode("utf-8"))
    trained = ticket.provenance.get("trained") is not False
    return Exported(Path(folder), found, check, trained)


def load_exported(folder: str | Path, *, plain: bool = False, **overrides: Any) -> Any:
    """Load an export; the folder is all that is needed and nothing is ever unpickled.

    Args:
        folder: what `export_ticket` or ``recipes/export.py`` wrote.
        plain: return the network as it was trained instead of its compact form.
        overrides: model arguments to change, such as T.

    Returns:
        ``nn.Module`` in eval mode: images ``[B, C, H, W]`` or frames ``[B, T, 2, H, W]`` ->
        logits ``[B, T, K]``.

    Raises:
        ExportError: no export, a newer one, or files changed since it was written.
        CheckpointError: a damaged tensor file; the tensor is named where it is one.
        TicketError: the stored weights are not of the model that they name.
    """
    model = model_from_ticket(read_packed(folder).ticket, **overrides).eval()
    return model if plain else compact(model)


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
