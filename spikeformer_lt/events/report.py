"""What was found in one recording."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """What was found in one recording; empty `faults` is a clean one.

    Attributes:
        source: the file.
        given: events in the file.
        kept: events that passed.
        faults: number of events with each fault, by the names of `Policy`.
        examples: the first event with each fault, in words.
        duration_us: last time minus first time of what was kept.
        on: kept events of polarity 1.
        skipped: entries of the file that are no events of a pixel, by kind.
    """

    source: str
    given: int
    kept: int
    faults: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    duration_us: int = 0
    on: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> str:
        """Say why there is nothing to see in time: "no event", "one time", or ""."""
        if not self.kept:
            return "no event"
        return "" if self.duration_us else "one time"

    @property
    def dropped(self) -> int:
        """Events that were left out."""
        return self.given - self.kept

    @property
    def rate_hz(self) -> float:
        """Kept events a second; 0 where the duration is 0."""
        return self.kept * 1e6 / self.duration_us if self.duration_us else 0.0

    def line(self) -> str:
        """Return the faults on one line, or "no faults"."""
        if not self.faults:
            return "no faults"
        told = [f"{name} {count} ({self.examples[name]})" for name, count in self.faults.items()]
        return f"{'; '.join(told)}; {self.dropped} of {self.given} events left out"
