"""Where a run's log goes: to log.txt and, unless the program has its own logging, to stderr."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from spikeformer_lt.errors import ConfigError, shown

__all__ = ["RunLog"]

PACKAGE = "spikeformer_lt"


class _Plain(logging.Formatter):
    """Escapes control characters and indents further lines: no message can look like another's."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        lines = record.message.splitlines() or [""]
        record.message = "\n    ".join(
            "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
            for line in lines
        )
        return super().formatMessage(record)


class RunLog:
    """Handlers on the package's logger, from INFO up, until `close`.

    Args:
        path: the file, appended to; None for a rank that logs nothing.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._logger = logging.getLogger(PACKAGE)
        self._level = self._logger.level
        self._handlers: list[logging.Handler] = []
        if path is None:
            return
        try:
            file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as fault:
            where = shown(str(path), 300)
            raise ConfigError(f"cannot write {where}: {fault.strerror or fault}") from None
        file.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
        self._handlers.append(file)
        if not logging.getLogger().handlers:
            console = logging.StreamHandler(sys.stderr)
            console.setFormatter(_Plain("%(message)s"))
            self._handlers.append(console)
        for handler in self._handlers:
            handler.setLevel(logging.INFO)
            self._logger.addHandler(handler)
        if self._level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)

    def close(self) -> None:
        """Leave the logger as it was."""
        if not self._handlers:
            return
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
        self._handlers = []
        self._logger.setLevel(self._level)
