"""Configuration: nested frozen dataclasses, filled from a file and from the command line.

A field's docstring is its help; its default is in the class and nowhere else. `parse` is the one
place that imports tyro.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from spikeformer_lt.configtree import allowed_words, field_kinds
from spikeformer_lt.configtree import check as check
from spikeformer_lt.configtree import differences as differences
from spikeformer_lt.configtree import flat_values as flat_values
from spikeformer_lt.configtree import from_dict as from_dict
from spikeformer_lt.configtree import load_config as load_config
from spikeformer_lt.configtree import run_id as run_id
from spikeformer_lt.configtree import save_config as save_config
from spikeformer_lt.configtree import to_dict as to_dict
from spikeformer_lt.errors import ConfigError, Interrupted, SpikeformerError, near, shown
from spikeformer_lt.plugins import use_plugins
from spikeformer_lt.textfile import read_mapping

C = TypeVar("C")
_ALWAYS = ("help", "config", "debug", "plugins")
_GIVEN = "_given_options"
_HELP = (
    "Beside the options below: --config FILE (.yaml or .json) gives values that options override; "
    "--plugins FILE.py [FILE.py ...] imports models, data sets and searches of your own; "
    "--debug shows the traceback of an error."
)


def parse(cls: type[C], argv: Sequence[str] | None = None, prog: str | None = None) -> C:
    """Make a configuration from command-line options ``--group.field value``.

    In option names '-' and '_' are alike. A boolean is ``--group.field`` or ``--group.no-field``.
    ``--config FILE`` gives values that the other options override; ``--plugins FILE.py`` imports
    files that register names. ``--help`` prints each option with its default and exits with 0.

    Args:
        cls: nested frozen dataclass; every field with a default.
        argv: the options; those of the process if None.
        prog: the program's name in the help; the script's name if None.

    Raises:
        ConfigError: one line that says what was given, what is allowed, what to do.
    """
    import tyro

    prog = prog or Path(sys.argv[0]).name
    options = dict(_options(cls))
    given = [token for token in (sys.argv[1:] if argv is None else argv) if token != "--debug"]
    rest, config_file = _split_config(given)
    rest, plugins = _split_plugins(rest)
    use_plugins(plugins)
    _refuse_unknown(rest, options)
    default = tyro.MISSING_NONPROP if config_file is None else load_config(cls, config_file)
    own = inspect.cleandoc(cls.__doc__ or "")
    intro = "" if own.startswith(f"{cls.__name__}(") else f"{own}\n\n"  # dataclass's own docstring
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            made = tyro.cli(cls, args=rest, prog=prog, description=intro + _HELP, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _as_config_error(stop, complaint.getvalue(), options, prog) from None
    named = {name for token in rest if (name := _option_of(token, options)) in options}
    if config_file is not None:
        in_file = flat_values(read_mapping(config_file))
        named |= {name.replace("-", "_") for name, _ in in_file}
    object.__setattr__(made, _GIVEN, frozenset(named))
    return typing.cast(C, made)


def given_options(cfg: object) -> frozenset[str]:
    """Options "group.field" that the user named, also where they gave the default's value.

    Empty for a configuration that `parse` did not make, and for one changed since.
    """
    named: frozenset[str] = getattr(cfg, _GIVEN, frozenset())
    return named


def adapted(cfg: C, **changes: Any) -> C:
    """A configuration with some fields changed, that still knows which options the user named."""
    made: Any = cfg
    made = dataclasses.replace(made, **changes)
    object.__setattr__(made, _GIVEN, given_options(cfg))
    return typing.cast(C, made)


def run_recipe(
    main: Callable[[C], Any],
    cls: type[C],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> NoReturn:
    """Parse the options, call ``main(cfg)`` and exit: what the last line of a recipe does.

    The exit status is 0 when done, 2 after an error that the user can mend (one line on stderr,
    and the traceback with ``--debug`` anywhere among the options), and 130 or 143 when a signal
    stopped the run after a save.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    status = 0
    try:
        main(parse(cls, given, prog))
    except (SpikeformerError, KeyboardInterrupt) as fault:
        if debug:
            traceback.print_exc()
        status = 2
        if isinstance(fault, KeyboardInterrupt):
            status, fault = 130, Interrupted(2, "interrupted by Ctrl-C")
        elif isinstance(fault, Interrupted):
            status = 128 + fault.signum
        text = "".join(c if c.isprintable() else " " for c in str(fault)).strip()
        word = "stopped" if isinstance(fault, Interrupted) else "error"
        sys.stderr.write(f"{word}: {text}\n")
        sys.stderr.flush()
    sys.exit(status)


def _options(cls: type, where: str = "") -> list[tuple[str, Any]]:
    """List ("group.field", type) of every option."""
    found: list[tuple[str, Any]] = []
    for name, kind in field_kinds(cls).items():
        if dataclasses.is_dataclass(kind):
            found += _options(kind, f"{where}{name}.")  # type: ignore[arg-type]
        else:
            found.append((where + name, kind))
    return found


def _split_config(argv: list[str]) -> tuple[list[str], str | None]:
    """Take ``--config FILE`` out of the options; they are tyro's, it is ours."""
    rest: list[str] = []
    chosen: str | None = None
    waiting = iter(argv)
    for token in waiting:
        name, equals, value = token.partition("=")
        if name != "--config":
            rest.append(token)
            continue
        found = value if equals else next(waiting, "")
        if not found or found.startswith("--"):
            raise ConfigError("--config needs a file: --config FILE.yaml or --config FILE.json")
        if chosen is not None:
            raise ConfigError(f"--config is there twice: {shown(chosen)} and {shown(found)}")
        chosen = found
    return rest, chosen


def _split_plugins(argv: list[str]) -> tuple[list[str], list[str]]:
    """Take every ``--plugins FILE.py ...`` out of the options."""
    rest: list[str] = []
    files: list[str] = []
    taking = False
    for token in argv:
        name, equals, value = token.partition("=")
        if name == "--plugins":
            taking, files = not equals, files + ([value] if equals else [])
        elif taking and not token.startswith("--"):
            files.append(token)
        else:
            taking = False
            rest.append(token)
    if not files and len(rest) < len(argv):
        raise ConfigError("--plugins needs files: --plugins FILE.py [FILE.py ...]")
    return rest, files


def _refuse_unknown(argv: Sequence[str], options: dict[str, Any]) -> None:
    for token in argv:
        if not token.startswith("--"):
            continue
        given = token.partition("=")[0]
        name = _option_of(token, options)
        leaf = name.rpartition(".")[2]
        if name in options or name in _ALWAYS:
            continue
        # Whoever leaves out the group is offered the options that end so.
        same = [f"--{option}" for option in options if option.rpartition(".")[2] == leaf]
        flags = [f"--{option.replace('_', '-')}" for option in options]
        hint = f"; did you mean {' or '.join(same)}?" if same else near(given, flags)
        raise ConfigError(f"unknown option {shown(given)}{hint or ';'} see --help")


def _option_of(token: str, options: dict[str, Any]) -> str:
    """Name the option of a token ``--group.field=value`` as "group.field", negated or not."""
    name = token.partition("=")[0].removeprefix("--").replace("-", "_")
    group, dot, leaf = name.rpartition(".")
    positive = f"{group}{dot}{leaf[3:]}"
    return positive if leaf.startswith("no_") and options.get(positive) is bool else name


def _as_config_error(
    stop: SystemExit, printed: str, options: dict[str, Any], prog: str
) -> SpikeformerError:
    """Turn a failure of tyro, which prints a box and exits, into an error of one line."""
    cause: BaseException | None = stop
    while cause is not None:
        # What a __post_init__ raised is better than tyro's words about it.
        if isinstance(cause, SpikeformerError):
            return cause
        cause = cause.__context__
    text = _first_block(printed).removeprefix("Error parsing ") or "the options cannot be read"
    named = re.search(r"--([\w.-]+)", text)
    kind = options.get(named[1].replace("-", "_")) if named else None
    allowed = f"; allowed: {allowed_words(kind)}" if kind is not None else ""
    return ConfigError(f"{text.rstrip('.')}{allowed}; see {prog} --help")


def _first_block(printed: str) -> str:
    """Return as one line what tyro's box says below its title.

    The box is drawn with lines where stdout takes UTF-8, and its title is in the upper line; else
    with blanks, and the title has a line of its own above a rule.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    blocks: list[list[str]] = [[]]
    for line in plain.splitlines():
        inner = line.strip("│ ")
        if line.startswith("╭"):
            continue
        if inner and set(inner) <= set("─-╰╯"):
            blocks.append([])
        elif inner:
            blocks[-1].append(inner)
    chosen = blocks[0] if "╭" in plain or len(blocks) == 1 else blocks[1]
    return "".join(c for c in " ".join(chosen) if c.isprintable())
