"""Configuration: nested frozen dataclasses, filled from a file and from the command line.

A field's docstring is its help; its default is in the class and nowhere else. A model or data set
with options of its own adds a group of its name. `parse` is the one place that imports tyro.
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
from spikeformer_lt.registry import config_class, use_plugins

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
    files that register names. The model and the data set that are named add their own options:
    ``--my-net.width``. ``--help`` prints each option with its default and exits with 0.

    Args:
        cls: nested frozen dataclass; every field with a default.
        argv: the options; those of the process if None.
        prog: the program's name in the help; the script's name if None.

    Raises:
        ConfigError: one line that says what was given, what is allowed, what to do.
    """
    import tyro

    prog = prog or Path(sys.argv[0]).name
    given = [token for token in (sys.argv[1:] if argv is None else argv) if token != "--debug"]
    rest, config_file = _split_config(given)
    rest, plugins = split_plugins(rest)
    use_plugins(plugins)
    in_file = {} if config_file is None else read_mapping(config_file)
    cls = with_entries(cls, rest, in_file)
    options = dict(_options(cls))
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
    named |= {name.replace("-", "_") for name, _ in flat_values(in_file)}
    object.__setattr__(made, _GIVEN, frozenset(named))
    return typing.cast(C, made)


def with_entries(cls: type[C], argv: Sequence[str], in_file: Mapping[str, Any]) -> type[C]:
    """The configuration class with a group for the options of the named model and data set.

    The names are those of the groups ``model`` and ``data``, by the options `argv` or a file.
    """
    kinds, groups = field_kinds(cls), {}
    for kind, group in (("model", "model"), ("dataset", "data")):
        if "name" not in getattr(kinds.get(group), "__dataclass_fields__", ()):
            continue
        written = in_file.get(group)
        name = written.get("name") if isinstance(written, Mapping) else None
        name = value_of(f"{group}.name", argv) or name or getattr(_default(cls, group), "name", "")
        config = config_class(kind, str(name))
        if config is not None:
            groups[str(name)] = config()
    return extended(cls, groups) if groups else cls


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value that the options give last to "group.field"; None if they do not name it."""
    found = None
    for token, following in zip(argv, [*argv[1:], ""], strict=False):
        flag, equals, value = token.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == option:
            found = value if equals else following
    return found


def extended(cls: type[C], groups: Mapping[str, Any]) -> type[C]:
    """A configuration class with more groups, whose defaults are the given configurations."""
    taken = field_kinds(cls)
    for name in groups:
        free = name.isidentifier() and name not in taken
        check(free, "name", name, f"an identifier other than {', '.join(taken)}")
    fields = [
        (name, type(config), dataclasses.field(default=config)) for name, config in groups.items()
    ]
    made: Any = dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), frozen=True, namespace={"__doc__": cls.__doc__}
    )
    made.__module__ = cls.__module__
    return typing.cast(type[C], made)


def entry_options(cfg: object, name: str, given: bool = False) -> dict[str, Any]:
    """Options of a model's or data set's own group, as plain values; {} where it has none.

    `name` is the registered name, which is the group's; `given` leaves what the user named.
    """
    own = getattr(cfg, name, None)
    values = to_dict(own) if dataclasses.is_dataclass(own) else {}
    named = given_options(cfg)
    return {k: v for k, v in values.items() if not given or f"{name}.{k}" in named}


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
    exit_after(lambda: main(parse(cls, given, prog)), "--debug" in given)


def exit_after(action: Callable[[], Any], debug: bool = False) -> NoReturn:
    """Do something and exit with the status of `run_recipe`; `debug` prints tracebacks, too."""
    status = 0
    try:
        action()
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


def split_plugins(argv: list[str]) -> tuple[list[str], list[str]]:
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


def check_fields(config: object, where: str = "", /, **rules: Any) -> None:
    """Refuse the values of fields that their rules do not allow.

    Args:
        config: a dataclass.
        where: prefix of the fields' names in messages.
        rules: by field: the least value, an interval such as "[0, 1)", or the allowed words.

    Raises:
        ConfigError: one line with the field, its value and what is allowed.
    """
    for name, rule in rules.items():
        value = getattr(config, name)
        if isinstance(rule, int):
            check(value >= rule, where + name, value, f"at least {rule}")
        elif isinstance(rule, str):
            low, high = (float(end) for end in rule[1:-1].split(","))
            inside = low <= value if rule[0] == "[" else low < value
            inside = inside and (value <= high if rule[-1] == "]" else value < high)
            check(inside, where + name, value, f"in {rule}")
        else:
            words = " or ".join(rule) if len(rule) == 2 else f"one of {', '.join(rule)}"
            check(value in rule, where + name, value, words)


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
    for name in kinds:
        if name not in values and _default(cls, name) is dataclasses.MISSING:
            raise ConfigError(f"the key {where}{name} is missing; it has no default")
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
    pairs = {n: (before.get(n, "absent"), after.get(n, "absent")) for n in {**before, **after}}
    return [
        f"{name}: {shown(left)} -> {shown(right)}"
        for name, (left, right) in pairs.items()
        if _canonical(left) != _canonical(right)
    ]


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
    outside = tuple(f"{name}." for name in exclude)
    counted = {k: _canonical(v) for k, v in values.items() if not f"{k}.".startswith(outside)}
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


def _default(cls: Any, name: str) -> Any:
    """Default of one field of a configuration class; MISSING if it has none."""
    field = cls.__dataclass_fields__[name]
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default
