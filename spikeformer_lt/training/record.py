"""What an epoch leaves behind: its rows, a line of the log, the points of a board."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spikeformer_lt.training.progress import epoch_line

if TYPE_CHECKING:
    from spikeformer_lt.training.phase_run import PhaseRun

__all__ = ["record_epoch"]

log = logging.getLogger(__name__)


def record_epoch(run: PhaseRun, row: Mapping[str, Any], speed: float) -> None:
    """Write an epoch's rows to summary.csv and firing.csv, log it, and pass it to the board.

    Args:
        run: at the end of the epoch, before its position moves on; its firing rates are those of
            the images that this process trained on. Ranks other than the first write nothing.
        row: of summary.csv, with ``phase`` and ``epoch``.
        speed: images/s over all ranks.
    """
    trainer, at, phase = run.trainer, run.at, run.phase
    if not trainer.main:
        return
    rates = run.watch.rates()
    trainer.run.append_row(dict(row) | phase.tags)
    trainer.run.append_row({"phase": row["phase"], "epoch": row["epoch"], **rates}, "firing")
    left = at.seconds / (at.epoch + 1) * (phase.epochs - at.epoch - 1)
    log.info("%s", epoch_line(row, phase.epochs, speed, left))
    if trainer.board is None:
        return
    points = {**row, **{f"firing/{name}": rate for name, rate in rates.items()}}
    for key, value in points.items():
        if isinstance(value, float):
            trainer.board.add_scalar(f"{phase.name}/{key}", value, at.epoch + 1)
    trainer.board.flush()
