"""Configuration: nested frozen dataclasses, filled from a file and from the command line.

A field's docstring is its help; its default is in the class and nowhere else. `parse` is the one
place that imports tyro.

Nested frozen dataclasses as configuration: to plain values and back, compared, named, saved.

`spikeformer_lt.config` is the door; import from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from spikeformer_lt.disk import read_mapping, safe_name, write_atomic
from spikeformer_lt.errors import ConfigError, Interrupted, SpikeformerError, near, shown
from spikeformer_lt.registry import use_plugins

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


_PLAIN = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text (quote it if it looks like a number)",
    Path: "a path",
}


def check(condition: bool, field: str, value: object, allowed: str) -> None:
    """Refuse the value of a field; meant for the `__post_init__` of a configuration.

    Args:
        condition: whether the value is allowed.
        field: the option as a user writes it, e.g. "train.epochs".
        value: what was given.
        allowed: what is allowed, and what to do if that is not obvious.

    Raises:
        ConfigError: `condition` is false.
    """
    if not condition:
        raise ConfigError(f"{field}={shown(value)} is not allowed: {allowed}")


def to_dict(cfg: Any) -> dict[str, Any]:
    """Return the configuration as nested dicts of plain values, as JSON will hold them."""
    return {field.name: _to_plain(getattr(cfg, field.name)) for field in dataclasses.fields(cfg)}


def from_dict(cls: type[C], mapping: Mapping[str, Any], where: str = "") -> C:
    """Make a configuration from nested mappings; what is not named keeps its default.

    Args:
        cls: the dataclass.
        mapping: values by field; in keys '-' and '_' are alike.
        where: start of the keys in messages.

    Raises:
        ConfigError: an unknown or missing key, a value of the wrong type, or whatever the
            dataclasses' own `__post_init__` refuses.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where[:-1]}={shown(mapping)} is not allowed: 'key: value' lines")
    kinds = field_kinds(cls)
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            known = [where + kind for kind in kinds]
            hint = near(where + name, known) or f"; allowed are {', '.join(known)}"
            raise ConfigError(f"unknown key {shown(where + str(key))}{hint}")
        if name in values:
            raise ConfigError(f"the key {shown(where + name)} is there twice; keep one")
        values[name] = _from_plain(kinds[name], value, where + name)
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if field.init and field.name not in values and not _has_default(field):
            raise ConfigError(f"the key {where}{field.name} is missing; it has no default")
    return cls(**values)


def save_config(cfg: Any, path: str | Path) -> None:
    """Write the configuration as JSON, atomically.

    Raises:
        ConfigError: the disk refuses.
    """
    write_atomic(path, (json.dumps(to_dict(cfg), indent=2) + "\n").encode(), ConfigError)


def load_config(cls: type[C], path: str | Path) -> C:
    """Read a configuration from a ``.json``, ``.yaml`` or ``.yml`` file.

    Raises:
        ConfigError: as `from_dict`, with the file's name; or the file is malformed.
    """
    values = read_mapping(path)
    try:
        return from_dict(cls, values)
    except ConfigError as fault:
        raise ConfigError(f"{shown(str(path), 300)}: {fault}") from None


def flat_values(tree: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("group.field", value) for the leaves of a configuration's dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat_values(value, f"{where}{key}.")
        else:
            yield where + key, value


def differences(old: Any, new: Any) -> list[str]:
    """List the fields in which two configurations differ, as "group.field: old -> new"."""
    before, after = dict(flat_values(to_dict(old))), dict(flat_values(to_dict(new)))
    listed = []
    for name in [*before, *(name for name in after if name not in before)]:
        left, right = before.get(name, "absent"), after.get(name, "absent")
        if _canonical(left) != _canonical(right):
            listed.append(f"{name}: {shown(left)} -> {shown(right)}")
    return listed


def run_id(
    cfg: Any, slug: str, exclude: Sequence[str] = (), identity: Mapping[str, str] | None = None
) -> str:
    """Name a run after what it is: "slug-8hex".

    Every field counts, also where it has its default: two classes with other defaults are told
    apart, and values written out are the same run as values left alone.

    Args:
        cfg: the configuration.
        slug: readable part; made safe as a file name.
        exclude: fields or groups that do not count, e.g. "out" or "data.root".
        identity: what the run is besides its configuration: recipe, search, data split.

    Raises:
        ConfigError: `exclude` names no field.
    """
    values = dict(flat_values(to_dict(cfg)))
    for name in exclude:
        if not any(f"{key}.".startswith(f"{name}.") for key in values):
            raise ConfigError(f"exclude={shown(name)} names no field{near(name, values)}")
    counted = {
        name: _canonical(value)
        for name, value in values.items()
        if not any(f"{name}.".startswith(f"{out}.") for out in exclude)
    }
    text = json.dumps([dict(identity or {}), counted], sort_keys=True)
    return f"{safe_name(slug)}-{hashlib.sha256(text.encode('ascii')).hexdigest()[:8]}"


def field_kinds(cls: type) -> dict[str, Any]:
    """Return {field: resolved type} of a configuration class, for fields that can be set."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def allowed_words(kind: Any) -> str:
    """Say in words which values a type allows."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(allowed_words(part) for part in parts)
    if origin is tuple:
        if len(parts) == 2 and parts[1] is Ellipsis:
            return f"a list, each entry {allowed_words(parts[0])}"
        return f"a list of {len(parts)}: {', '.join(allowed_words(part) for part in parts)}"
    if kind is type(None):
        return "None (null in a file)"
    return _PLAIN.get(kind) or str(getattr(kind, "__name__", kind))


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_to_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _from_plain(kind: Any, value: Any, name: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, f"{name}.")
    if origin in (Union, types.UnionType):
        for part in parts:
            try:
                return _from_plain(part, value, name)
            except ConfigError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        each = [parts[0]] * len(value) if parts[1:] == (Ellipsis,) else list(parts)
        if len(each) == len(value):
            pairs = zip(each, value, strict=True)
            return tuple(_from_plain(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(pairs))
    elif origin is Literal:
        # `1 == True` and `0 == False` in Python, not in a configuration.
        for part in parts:
            if part == value and type(part) is type(value):
                return part
        hint = near(value, [p for p in parts if isinstance(p, str)]) if type(value) is str else ""
        allowed = allowed_words(kind)
        raise ConfigError(f"{name}={shown(value)} is not allowed{hint or ':'} {allowed}")
    elif kind is type(None):
        if value is None:
            return None
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is Path and isinstance(value, str | Path):
        return Path(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"{name}={shown(value)} is not allowed: {allowed_words(kind)}")


def _canonical(value: Any) -> Any:
    """Make 1 and 1.0 one value: a float field may hold either."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value != value:  # NaN, which differs from itself
        return "nan"
    return [_canonical(entry) for entry in value] if isinstance(value, list) else value


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _defaults(cls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = _to_plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = _to_plain(field.default_factory())
    return found
