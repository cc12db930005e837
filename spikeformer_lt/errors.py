"""The errors that a user may see. A message says what was given, what is allowed, what to do."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO


class SpikeformerError(Exception):
    """Base of every error that this package raises on purpose.

    `most` is the largest sparsity that could be reached, where a sparsity was refused and it is
    known.
    """

    most: float | None = None


class ConfigError(SpikeformerError, ValueError):
    """An option, a name or a keyword is not allowed."""


class DataError(SpikeformerError, ValueError):
    """A data set, a recording or a batch is not what it should be."""


class MaskError(SpikeformerError, ValueError):
    """A mask cannot be made, or does not belong to the weights at hand."""


class TicketError(SpikeformerError, ValueError):
    """A ticket is damaged, incomplete or of another model."""


class CheckpointError(SpikeformerError, ValueError):
    """A tensor file or a checkpoint is damaged, foreign or from a newer version."""


class ExportError(SpikeformerError, ValueError):
    """A network cannot be exported, or an export does not repeat its source."""


class NonFiniteError(SpikeformerError):
    """A NaN or an infinity appeared where only finite numbers may be."""


class RankError(SpikeformerError):
    """A process of the run died or does not answer."""


STOPS = [
    found
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if (found := getattr(signal, name, None)) is not None
]  # signals that ask a run to save and stop


class Interrupted(SpikeformerError):
    """A signal stopped the run after a save; the exit status of a recipe is ``128 + signum``."""

    def __init__(self, signum: int, message: str = "") -> None:
        known = signum in set(signal.Signals)
        name = signal.Signals(signum).name if known else f"signal {signum}"
        super().__init__(message or f"stopped by {name}")
        self.signum = int(signum)


def near(name: str, allowed: Iterable[str]) -> str:
    """Hint at the most similar name: ``"; did you mean 'x'?"``, or ``""`` if none comes near."""
    by_lower = {option.lower(): option for option in sorted(allowed, reverse=True)}
    found = difflib.get_close_matches(str(name)[:200].lower(), by_lower, n=1)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""


def shown(value: object, limit: int = 80) -> str:
    """Return `value` as one line: control characters escaped, a long text without its middle."""
    text = ascii(value) if isinstance(value, bytes) else repr(value)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) <= limit:
        return text
    return f"{text[: limit - 20]}...{text[-10:]} ({len(text)} characters)"


def painted(text: str, colour: int, stream: TextIO) -> str:
    """Return text in an ANSI colour, if `stream` is a terminal with colours and NO_COLOR empty."""
    plain = not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"


def emphasised(markdown: str) -> str:
    """Return Markdown for standard output: headings and heads of tables as `painted`."""
    head = re.compile(r"^(?:#.*|\|.*(?=\n\|[-:| ]+$))", re.MULTILINE)
    return head.sub(lambda found: painted(found[0], 1, sys.stdout), markdown)


def name_of(path: str | Path) -> str:
    """Return a path as messages show it."""
    return shown(str(path), 300)


def listed(words: Iterable[str], limit: int = 5, between: str = ", ") -> str:
    """Return the first few words, and how many more there are."""
    every = list(words)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return between.join(every[:limit]) + more


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 layer", "1,024 layers"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def leaf(option: str) -> str:
    """Return the keyword that an option is in a function of this package: its last word."""
    return option.rpartition(".")[2].replace("-", "_")


@contextlib.contextmanager
def in_python(argument: Callable[[str], str] = leaf) -> Iterator[None]:
    """Let an error speak of arguments and functions, not of options and commands.

    Args:
        argument: the argument that an option, such as "data.name", came from.
    """
    try:
        yield
    except SpikeformerError as fault:
        text = re.sub(r",? ?;? ?see (find )?[\w ]*--help$", "", str(fault))
        text = re.sub(r"--plugins FILE\.py( after it)?", 'use_plugins(["FILE.py"])', text)
        text = re.sub(r"^--plugins (?=')", "files=", text)
        text = re.sub(r"spikeformer-lt ls (\w+)", r"list_\1()", text)
        text = re.sub(r"--data\.download", f"{argument('data.download')}=True", text)
        with_value = r"--(data\.name|run\.resume) (\w+)"
        text = re.sub(with_value, lambda m: f'{argument(m[1])}="{m[2]}"', text)
        text = re.sub(r"'?--([A-Za-z][\w-]*(?:\.[\w-]+)*)'?", lambda m: argument(m[1]), text)
        text = re.sub(r"^([a-z_]\w*(?:\.\w+)+)(?==)", lambda m: argument(m[1]), text)
        fault.args = (text,)
        raise


def one_of(field: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a value that is not among the allowed words, by a ConfigError that lists them."""
    if value not in (words := list(allowed)):
        hint = near(str(value), words) or ":"
        told = " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"
        raise ConfigError(f"{field}={shown(value)} is not allowed{hint} {told}")


def check_license(license: str) -> None:
    """Raise a ConfigError for other characters than those of the hub's words; "" names none."""
    if not re.fullmatch("([a-z0-9][a-z0-9.+-]{0,63})?", license):
        told = "a word of the hub, such as mit, apache-2.0 or cc-by-4.0"
        raise ConfigError(f"license={shown(license)} is not allowed: {told}")
