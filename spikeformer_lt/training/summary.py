"""summary.csv: one row an epoch, whole on the disk at any moment."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path

from spikeformer_lt.errors import ConfigError, shown
from spikeformer_lt.paths import write_atomic
from spikeformer_lt.textfile import csv_cell

__all__ = ["Summary"]

logger = logging.getLogger(__name__)


class Summary:
    """The rows of a run, in the order they were appended.

    Columns keep their places. A row that brings a new one gets it at the right end, and the rows
    before it an empty cell there. The file is replaced as a whole, so a kill leaves no half row.

    Args:
        path: the file; read if it is there.

    Raises:
        ConfigError: the file is there and is no table of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: list[str] = []
        self._rows: list[list[str]] = []
        self._read()

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row and write the file.

        Args:
            row: column -> number, text or None (an empty cell). Text that a spreadsheet would take
                for a formula is disarmed; line breaks are escaped.

        Raises:
            ConfigError: the disk refuses.
        """
        cells = {csv_cell(name): csv_cell(_plain(value)) for name, value in row.items()}
        self._header += [name for name in cells if name not in self._header]
        self._rows.append([cells.get(name, "") for name in self._header])
        self._write()

    def truncate(self, rows: int) -> None:
        """Keep the first `rows` rows: those that were there when a checkpoint was made.

        Where fewer are left, because the file was edited or lost, empty ones take their places, so
        that a later checkpoint's count still fits.
        """
        lost = rows - len(self._rows)
        if lost == 0:
            return
        if lost > 0:
            logger.warning("%s has lost %d of its %d rows", self.path, lost, rows)
        self._rows = self._rows[:rows] + [[] for _ in range(lost)]
        self._write()

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._header)
        for row in self._rows:
            writer.writerow(row + [""] * (len(self._header) - len(row)))
        write_atomic(self.path, text.getvalue().encode("utf-8"), ConfigError)

    def _read(self) -> None:
        where = shown(str(self.path), 300)
        try:
            text = self.path.read_text("utf-8-sig")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigError(f"cannot read {where}: {fault}") from None
        try:
            table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error as fault:
            raise ConfigError(f"{where}: not a CSV table: {fault}; move it away") from None
        if not table:
            return
        self._header, self._rows = table[0], table[1:]
        for line, row in enumerate(self._rows, start=2):
            if len(row) > len(self._header) or len(set(self._header)) != len(self._header):
                raise ConfigError(
                    f"{where}, row {line}: {len(row)} cells under {len(self._header)} columns; "
                    "repair the file or move it away"
                )


def _plain(value: object) -> object:
    """Python's own number for a NumPy or torch scalar, whose repr is no number."""
    item = getattr(value, "item", None)
    return item() if callable(item) else value
