"""What a user may choose about any event data set, in one group of options."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spikeformer_lt.errors import ConfigError, near
from spikeformer_lt.events.frame import Framing
from spikeformer_lt.events.validate import ACTIONS, Policy

_CHOICES = {
    "bad_events": ("error", "drop", "count"),
    "empty": ("error", "zero", "skip"),
    "incomplete": ("error", "report"),
}


@dataclass(frozen=True)
class EventOptions:
    """Framing, faults and files of an event data set."""

    T: int = 16
    """Frames a recording is cut into: the model's time steps."""
    by: str = "n_event_bins"
    """n_event_bins (equal counts), n_time_bins (equal times) or time_window (window_us each)."""
    window_us: int | None = None
    """Length of a frame in microseconds, for by=time_window."""
    values: str = "counts"
    """counts, or binary: 1 where at least one event fell."""
    bad_events: str = "error"
    """error, drop, or count (keep what can be kept) for events off the sensor and the like."""
    empty: str = "error"
    """error, zero or skip for recordings with no event, or with all events at one time."""
    incomplete: str = "error"
    """error or report if recordings of the published set are missing."""
    cache: str = "auto"
    """Folder for frames that were made once; auto is .frames in the root, none keeps none."""
    split_file: str | None = None
    """JSON file of the split: read where it is, written where it is not."""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(
                    f"{name}={value!r} is not allowed{near(str(value), allowed) or ';'} "
                    f"use {', '.join(allowed)}"
                )
        if not self.cache:
            raise ConfigError("cache='' is not allowed: a folder, auto or none")
        if self.T is None:
            raise ConfigError("T=None is not allowed: a model needs a fixed number of frames")
        self.framing  # noqa: B018 (checks its own fields)

    @property
    def framing(self) -> Framing:
        """How a recording is cut."""
        return Framing(T=self.T, by=self.by, window_us=self.window_us, values=self.values)

    def policy(self, base: Policy | None = None) -> Policy:
        """Return what happens to each fault.

        Args:
            base: the set's own policy, whose other fields stay.
        """
        base = base or Policy()
        if self.bad_events == "error":
            return base
        actions = {
            fault: self.bad_events if self.bad_events in allowed else allowed[-1]
            for fault, allowed in ACTIONS.items()
        }
        return replace(base, **actions)  # type: ignore[arg-type]
