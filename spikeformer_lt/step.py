"""A point in training, in epochs and iterations: "2ep", "500it", "2ep50it"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from spikeformer_lt.errors import ConfigError, shown

_FORM = re.compile(r"(?:([0-9]{1,12})ep)?(?:([0-9]{1,12})it)?")


@dataclass(frozen=True, init=False)
class Step:
    """So many epochs and then so many iterations (optimizer steps), integers of 0 or more.

    Two steps compare by their count of iterations. Where the answer depends on how many iterations
    an epoch has ("1ep50it" against "2ep"), a comparison raises and `iterations` is to be used.
    """

    epochs: int
    extra: int

    def __init__(self, epochs: int = 0, iterations: int = 0) -> None:
        for field, value in (("epochs", epochs), ("iterations", iterations)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{field}={shown(value)} is not allowed: an integer >= 0")
        object.__setattr__(self, "epochs", epochs)
        object.__setattr__(self, "extra", iterations)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "2ep", "500it" or "2ep50it"; a ConfigError for any other form."""
        found = _FORM.fullmatch(text) if isinstance(text, str) and text else None
        if found is None:
            raise ConfigError(
                f"step {shown(text)} is not allowed: write epochs and iterations as '2ep', "
                "'500it' or '2ep50it'"
            )
        return cls(int(found[1] or 0), int(found[2] or 0))

    def __str__(self) -> str:
        epochs = f"{self.epochs}ep" if self.epochs else ""
        return epochs + (f"{self.extra}it" if self.extra or not epochs else "")

    def iterations(self, steps_per_epoch: int) -> int:
        """Count iterations from the start of training, with so many (1 or more) in an epoch."""
        if steps_per_epoch < 1:
            raise ConfigError(f"steps_per_epoch={steps_per_epoch} is not allowed: 1 or more")
        return self.epochs * steps_per_epoch + self.extra

    def __le__(self, other: Step) -> bool:
        if not isinstance(other, Step):
            raise TypeError("a Step compares with a Step only; read a text with Step.parse")
        epochs, extra = other.epochs - self.epochs, other.extra - self.extra
        if epochs >= 0 and epochs + extra >= 0:
            return True
        if epochs <= 0 and epochs + extra < 0:
            return False
        raise ConfigError(
            f"which of '{self}' and '{other}' comes first depends on the iterations in an epoch; "
            "compare step.iterations(steps_per_epoch)"
        )

    def __gt__(self, other: Step) -> bool:
        return not self <= other
