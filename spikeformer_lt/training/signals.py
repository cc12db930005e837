"""A polite stop: the first signal asks, the second one insists."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopRequest"]


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag; the second ends the process at once.

    The loop looks at `requested` between steps, saves, and raises ``errors.Interrupted(signum)``.
    The second signal exits with status 130 (SIGINT) or 143 (SIGTERM) and saves nothing: the last
    published checkpoint is good at any moment. Outside the main thread, where Python allows no
    handlers, it does nothing. Forked loader workers inherit the handlers and so survive a Ctrl-C
    that reaches the whole process group until the loop has saved.

    Args:
        signals: which signals to take over.
    """

    def __init__(self, signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.signals = tuple(signals)
        self.signum = 0
        """The first signal that came, or 0."""
        self._previous: dict[int, Any] = {}
        self._pid = 0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum != 0

    def __enter__(self) -> StopRequest:
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for signum in self.signals:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, previous in self._previous.items():
            # None: a handler that was not set from Python and cannot be set from it.
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        if os.getpid() == self._pid:
            name = signal.Signals(signum).name
            # Not the logger: the signal may have come while it held its own stream.
            text = f"\n{name}: saving after this step, then stopping; again to stop at once\n"
            os.write(2, text.encode())
