"""Configuration: nested frozen dataclasses, filled from a file and from the command line.

A field's docstring is its help. A model or data set with options of its own adds a group of its
name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import math
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

import yaml

from spikeformer_lt import runtime
from spikeformer_lt.disk import read_mapping, safe_name, write_atomic
from spikeformer_lt.errors import (
    ConfigError,
    Interrupted,
    SpikeformerError,
    near,
    one_of,
    painted,
    shown,
)
from spikeformer_lt.named import check_needs
from spikeformer_lt.registry import config_class, use_plugins
from spikeformer_lt.usage import (
    CHOICES,
    allowed_words,
    default_of,
    help_text,
    options_of,
    parse_error,
)
from spikeformer_lt.usage import field_kinds as field_kinds

C = TypeVar("C")
_ALWAYS = ("help", "config", "debug", "plugins", "dry_run", "print_config")
_GIVEN = "_given_options"
DRY_RUN, PRINT_CONFIG = "--dry-run", "--print-config"
DRY_RUN_ENDED = "dry run: options and names are in order; nothing was opened or written\n"
LAUNCHER = "(a traceback below is the launcher's own: accelerate launch --quiet leaves it out)\n"
SHORT = {DRY_RUN: "--run.dry-run", "--quick": "--run.quick", "--track": "--train.track"}
LEVELS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}
ASSIGNED = re.compile(r"[a-z][\w-]*(\.[A-Za-z][\w-]*)+=")  # group.field=value
INT_LIMIT, TEXT_LIMIT = 2**63, 4096


def parse(
    cls: type[C], argv: Sequence[str] | None = None, prog: str | None = None, words: str = ""
) -> C:
    """Make a configuration from command-line options ``--group.field value``.

    In option names '-' and '_' are alike. A boolean is ``--group.field`` or ``--group.no-field``.
    ``group.field=value`` and ``field=value`` do as well. ``--config FILE`` gives values that the
    others override, ``--print-config`` prints such a file and exits; ``--plugins FILE.py`` imports
    files that register names. The named model and data set add their own: ``--my-net.width``.

    `cls` is a nested frozen dataclass, every field with a default; `argv` and the program's name
    `prog` are the process's if None; `words` is what it takes before its options. A ConfigError is
    one line: given, allowed, what to do.
    """
    prog = prog or runtime.program or Path(sys.argv[0]).name
    given = list(sys.argv[1:] if argv is None else argv)
    loud = [token for token in LEVELS if token in given]
    check(len(loud) < 2, "--quiet", "--verbose", "one of the two")
    runtime.console_level = LEVELS[loud[0]] if loud else logging.INFO
    given = [token for token in given if token not in ("--debug", *LEVELS)]
    names = "|".join(option_names(cls)).replace("_", "[-_]")
    given = [f"--{t}" if re.match(f"({names})=|{ASSIGNED.pattern}", t) else t for t in given]
    given = [_at_home(token) for token in given]
    rest, files = _taken(given, "--config", most=1)
    if len(files) > 1:
        raise ConfigError(f"--config is there twice: {shown(files[0])} and {shown(files[1])}")
    rest, plugins = split_plugins(rest)
    use_plugins(plugins)
    in_file = read_mapping(files[0]) if files else {}
    cls = with_entries(cls, rest, in_file)
    options = dict(options_of(cls))
    if {"-h", "--help"} & set(rest):
        needs = (*getattr(cls, "NEEDS", ()), *runtime.needs)
        usual = _for_data(cls, value_of("data.name", rest))
        sys.stdout.write(f"{help_text(cls, prog, words or runtime.words, needs, usual)}\n")
        raise SystemExit(0)

    import tyro

    printing = PRINT_CONFIG in rest
    rest = _of_run([token for token in rest if token != PRINT_CONFIG], options)
    _refuse_unknown(rest, options)
    _refuse_contradictions(rest, options)
    default = load_config(cls, files[0], usual=cls()) if files else tyro.MISSING_NONPROP
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            made = tyro.cli(cls, args=rest, prog=prog, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise parse_error(stop, complaint.getvalue(), options, prog) from None
    named = {name for token in rest if (name := _option_of(token, options)) in options}
    named |= {name.replace("-", "_") for name, _ in flat_values(in_file)}
    check_limits(made)
    object.__setattr__(made, _GIVEN, frozenset(named))
    if printing:
        sys.stdout.write(_as_file(getattr(made, "settled", lambda: made)(), named))
        raise SystemExit(0)
    return typing.cast(C, made)


def _for_data(cls: Any, name: str | None) -> Any:
    """The defaults of a configuration class; where it knows others for a data set, those."""
    usual = cls()
    if not name or not hasattr(usual, "settled"):
        return usual
    made = dataclasses.replace(usual, data=dataclasses.replace(usual.data, name=name)).settled()
    return dataclasses.replace(made, data=dataclasses.replace(made.data, name=usual.data.name))


def check_limits(cfg: Any) -> None:
    """Refuse what no field of a configuration takes, by a ConfigError.

    These are numbers that are not finite or have more than 63 bits, and texts with a null byte or
    of more than 4,096 characters.
    """
    for name, found in flat_values(to_dict(cfg)):
        for value in found if isinstance(found, list) else [found]:
            if isinstance(value, float):
                check(math.isfinite(value), name, value, "a finite number")
            elif isinstance(value, int):
                check(abs(value) < INT_LIMIT, name, value, "an integer of at most 63 bits")
            elif isinstance(value, str):
                sound = "\0" not in value and len(value) <= TEXT_LIMIT
                rule = f"at most {TEXT_LIMIT} characters, none of them a null byte"
                check(sound, name, value, rule)


def with_entries(cls: type[C], argv: Sequence[str], in_file: Mapping[str, Any]) -> type[C]:
    """The configuration class with a group for the options of the named model and data set."""
    kinds, groups = field_kinds(cls), {}
    for kind, group in (("model", "model"), ("dataset", "data")):
        if "name" not in getattr(kinds.get(group), "__dataclass_fields__", ()):
            continue
        written = in_file.get(group)
        name = written.get("name") if isinstance(written, Mapping) else None
        name = str(value_of(f"{group}.name", argv) or name or default_of(cls, group).name)
        if config := config_class(kind, name):
            groups[name] = config()
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
    taken, fields = field_kinds(cls), []
    for name, config in groups.items():
        free = name.isidentifier() and name not in taken
        check(free, "name", name, f"an identifier other than {', '.join(taken)}")
        fields.append((name, type(config), dataclasses.field(default=config)))
    own = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    made = dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), frozen=True, namespace=own
    )
    return typing.cast(type[C], made)


def entry_options(cfg: object, name: str, given: bool = False) -> dict[str, Any]:
    """Options of the model or data set `name`, as plain values; only those named if `given`."""
    own, named = getattr(cfg, name, None), given_options(cfg)
    values = to_dict(own) if dataclasses.is_dataclass(own) else {}
    return {k: v for k, v in values.items() if not given or f"{name}.{k}" in named}


def given_options(cfg: object) -> frozenset[str]:
    """Options "group.field" that the user named to `parse`; none once a field was changed."""
    named: frozenset[str] = getattr(cfg, _GIVEN, frozenset())
    return named


def adapted(cfg: C, /, *named: str, **changes: Any) -> C:
    """A configuration with some fields changed, that still knows which options the user named.

    Those in `named` count among them.
    """
    made = dataclasses.replace(typing.cast(Any, cfg), **changes)
    object.__setattr__(made, _GIVEN, given_options(cfg) | frozenset(named))
    return typing.cast(C, made)


def run_recipe(
    main: Callable[[C], Any],
    cls: type[C],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> NoReturn:
    """Parse the options, call ``main(cfg)`` and exit: what the last line of a recipe does.

    With ``--dry-run`` a recipe without such an option of its own stops after its options and the
    names in them; `NEEDS` of its class are those that must be there, as `check_needs`. The exit
    status is 0 when done, 2 after an error that the user can mend (one line on stderr), 1 after a
    fault of ours or of a plug-in, and 130 or 143 when a signal stopped the run after a save.
    """
    given = list(sys.argv[1:] if argv is None else argv)

    def act() -> None:
        cfg, own = parse(cls, given, prog), {"dry_run", "run.dry_run"} & {*option_names(cls)}
        dry = DRY_RUN in given and not own
        check_needs(cfg, getattr(cls, "NEEDS", ()), dry)
        if dry:
            sys.stdout.write(DRY_RUN_ENDED)
            return
        main(cfg)

    exit_after(act, given)


def exit_after(action: Callable[[], Any], argv: Sequence[str] = ()) -> NoReturn:
    """Do something and exit with the status of `run_recipe`.

    Args:
        action: what is done.
        argv: the options; ``--debug`` among them prints tracebacks, and an error names an option
            as it was typed there.
    """
    status = 0
    try:
        action()
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as fault:  # the last resort: a panic of a compiled reader, too
        if "--debug" in argv:
            traceback.print_exc()
        status, text = verdict(fault, argv)
        text = "".join(c if c.isprintable() else " " for c in text).strip()
        kind, colon, rest = text.partition(":")
        text = f"{painted(f'{kind}{colon}', 31, sys.stderr)}{rest}"
        # By `accelerate launch` of one process: of several it has no quiet way.
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ and alone
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{text}\n{LAUNCHER * launched}" * (text != ""))
            sys.stderr.flush()
    sys.exit(status)


def verdict(fault: BaseException, argv: Sequence[str]) -> tuple[int, str]:
    """Exit status and line of an exception that ended a program."""
    text = str(fault)
    if isinstance(fault, KeyboardInterrupt):
        return 130, "stopped: interrupted by Ctrl-C"
    if isinstance(fault, Interrupted):
        return 128 + fault.signum, f"stopped: {text}"
    if isinstance(fault, SpikeformerError):
        return 2, f"error: {_as_typed(text, argv)}"
    if isinstance(fault, BrokenPipeError):  # also when Python flushes at the end
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if runtime.only_prints:
            return 141, ""  # as a program that SIGPIPE ends
        return 2, "error: the program that read this output has ended"
    if isinstance(fault, OSError):
        where = f" {shown(str(fault.filename), 300)}" if fault.filename else ""
        return 2, f"error: the system refuses{where}: {fault.strerror or text}"
    lacking = re.search(r"(?i)out of memory|not enough memory|allocate memory", text)
    if isinstance(fault, MemoryError) or (isinstance(fault, RuntimeError) and lacking):
        hint = "use a smaller batch, T or network"
        return 2, f"error: the memory does not suffice: {hint} ({shown(text, 200)})"
    kind, hint = type(fault).__name__, "" if "--debug" in argv else "; --debug shows where"
    return 1, f"bug or plug-in: {kind}: {shown(text, 300)[1:-1]}{hint}"


def _as_typed(text: str, argv: Sequence[str]) -> str:
    """An error that begins "field=", with the groups of the one option of `argv` ending so."""
    found = re.match(r"([A-Za-z_]\w*(?:\.\w+)*)=", text)
    if found is None:
        return text
    flags = [token.partition("=")[0] for token in argv if token.startswith("--")]
    for short, full in SHORT.items():
        if short in flags and full == f"--{found[1]}".replace("_", "-"):
            return f"{short}{text[len(found[1]) :]}"
    field = found[1].replace("-", "_")
    same = {f for f in flags if f"--.{f[2:]}".replace("-", "_").endswith(f".{field}")}
    return f"{same.pop()[: -len(field)]}{text}" if len(same) == 1 else text


def option_names(cls: Any) -> list[str]:
    """Names "group.field" of the options of a configuration class, in order."""
    return [name for name, _ in options_of(cls)]


def split_plugins(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take every ``--plugins FILE.py ...`` out of the options."""
    return _taken(argv, "--plugins")


def _taken(argv: Sequence[str], flag: str, most: int | None = None) -> tuple[list[str], list[str]]:
    """Take a flag of ours, with at most so many values each time, out of the options for tyro."""
    rest: list[str] = []
    values: list[str] = []
    room: float = 0
    for token in argv:
        name, equals, value = token.partition("=")
        if name == flag:
            room = 0 if equals else most or math.inf
            values += [value] if value else []
        elif room and not token.startswith("--"):
            values.append(token)
            room -= 1
        else:
            room = 0
            rest.append(token)
    if not values and len(rest) < len(argv):
        forms = "a file: --config FILE.yaml or --config FILE.json"
        if most is None:
            forms = "files: --plugins FILE.py [FILE.py ...]"
        raise ConfigError(f"{flag} needs {forms}")
    return rest, values


def _refuse_unknown(argv: Sequence[str], options: dict[str, Any]) -> None:
    for token in argv:
        given, name = token.partition("=")[0], _option_of(token, options)
        if not token.startswith("--") or name in options or name in _ALWAYS:
            continue
        # Whoever leaves out the group is offered the options that end so.
        leaf = name.rpartition(".")[2]
        same = [f"--{option}" for option in options if option.rpartition(".")[2] == leaf]
        flags = [f"--{option.replace('_', '-')}" for option in options]
        hint = f"; did you mean {' or '.join(same)}?" if same else near(given, flags)
        raise ConfigError(f"unknown option {shown(given)}{hint or ';'} see --help")


def _of_run(argv: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """The options with the short ones as those of a run, where it has them.

    ``--dry-run`` goes where there is none: such a program stops after its options.
    """
    found = []
    for token in argv:
        full = SHORT.get(token, token)
        known = full[2:].replace("-", "_") in options and token[2:].replace("-", "_") not in options
        if known or token != DRY_RUN or "dry_run" in options:
            found.append(full if known else token)
    return found


def _refuse_contradictions(argv: Sequence[str], options: dict[str, Any]) -> None:
    """Refuse an option that is there twice with different values."""
    seen: dict[str, list[str]] = {}
    name, values = "", list[str]()
    for token in [*argv, "--"]:
        if not token.startswith("--"):
            values.append(token)
            continue
        if values != seen.setdefault(name, values):
            first, second = (" ".join(one) for one in (seen[name], values))
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is there twice: {shown(first)} and {shown(second)}")
        flag, equals, value = token.partition("=")
        name = _option_of(token, options)
        values = [value] if equals else []
        if options.get(name) is bool:
            values.append("False" if flag[2:].replace("-", "_") != name else "True")


def last_of_each(tokens: Iterable[str]) -> list[str]:
    """Command-line tokens without the options that later ones give again."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for token in tokens:
        if token.startswith("--"):
            name = token.partition("=")[0].replace("_", "-")
            found.pop(name, None)
        found.setdefault(name, []).append(token)
    return [token for group in found.values() for token in group]


def _option_of(token: str, options: dict[str, Any]) -> str:
    """Name the option of a token ``--group.field=value`` as "group.field", negated or not."""
    name = token.partition("=")[0].removeprefix("--").replace("-", "_")
    group, dot, leaf = name.rpartition(".")
    positive = f"{group}{dot}{leaf[3:]}"
    return positive if leaf.startswith("no_") and options.get(positive) is bool else name


def check(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise a ConfigError unless `condition`; meant for the `__post_init__` of a configuration.

    `field` is the option as a user writes it, e.g. "train.epochs"; `allowed` also says what to do.
    """
    if not condition:
        raise ConfigError(f"{field}={shown(value)} is not allowed: {allowed}")


def check_fields(config: object, where: str = "", /, **rules: Any) -> None:
    """Raise a ConfigError for the first field of `config` whose rule does not allow its value.

    A rule is the least value, an interval such as "[0, 1)", or the allowed words (of a list, those
    of each entry), which ``--help`` shows; `where` is the prefix of the fields' names in messages.
    A field whose default is None may be None.
    """
    for name, rule in rules.items():
        value = getattr(config, name)
        if not isinstance(rule, int | str):
            CHOICES[type(config), name] = tuple(rule)
        if value is None and getattr(type(config), name, "") is None:
            continue
        if isinstance(rule, int):
            check(value >= rule, where + name, value, f"at least {rule}")
        elif isinstance(rule, str):
            low, high = (float(end) for end in rule[1:-1].split(","))
            at_end = (value == low and rule[0] == "[") or (value == high and rule[-1] == "]")
            check(low < value < high or at_end, where + name, value, f"in {rule}")
        else:
            for word in value if isinstance(value, tuple) else (value,):
                one_of(where + name, word, rule)


def to_dict(cfg: Any) -> dict[str, Any]:
    """Return the configuration as nested dicts of plain values, as JSON will hold them."""
    plain = json.loads(json.dumps(dataclasses.asdict(cfg), default=os.fspath))
    return typing.cast(dict[str, Any], plain)


def from_dict(cls: type[C], mapping: Mapping[str, Any], where: str = "", usual: Any = None) -> C:
    """Make a configuration from nested mappings; what is not named keeps its default.

    In keys '-' and '_' are alike; `where` is their start in messages; `usual` has other defaults.

    Raises:
        ConfigError: an unknown or missing key, a value of the wrong type, or whatever the
            dataclasses' own `__post_init__` refuses.
    """
    check(isinstance(mapping, Mapping), where[:-1], mapping, "'key: value' lines")
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
        inner = getattr(usual, name) if isinstance(usual, cls) else None
        values[name] = _from_plain(kinds[name], value, where + name, inner)
    if isinstance(usual, cls):
        return dataclasses.replace(usual, **values)  # type: ignore[type-var]
    for name in kinds:
        if name not in values and default_of(cls, name) is dataclasses.MISSING:
            raise ConfigError(f"the key {where}{name} is missing; it has no default")
    return cls(**values)


def save_config(cfg: Any, path: str | Path) -> None:
    """Write the configuration as JSON, atomically; a ConfigError if the disk refuses."""
    write_atomic(path, (json.dumps(to_dict(cfg), indent=2) + "\n").encode(), ConfigError)


def load_config(cls: type[C], path: str | Path, hint: str = "", usual: C | None = None) -> C:
    """Read a ``.json``, ``.yaml`` or ``.yml`` file; raises as `from_dict`, with a hint behind.

    What an older file does not name is as it was before there was such a field, or as in `usual`.
    """
    values = read_mapping(path)
    try:
        return from_dict(cls, values, usual=usual)
    except ConfigError as fault:
        raise ConfigError(f"{shown(str(path), 300)}: {fault}{hint}") from None


def _as_file(cfg: Any, named: Iterable[str]) -> str:
    """YAML for ``--config``: the options that were named; the others as comments.

    In a file they would be named, too, and a small data set or ``--quick`` would not replace them.
    """
    named, texts = {*named}, []
    for told in (True, False):
        tree: dict[str, Any] = {}
        for name, value in flat_values(to_dict(cfg)):
            *groups, last = name.split(".") if (name in named) == told else ("",)
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node |= {last: value} if last else {}
        texts.append(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    rest = re.sub("^", "# ", texts[1].rstrip(), flags=re.MULTILINE)
    return f"{texts[0]}# Not named, so that data and --quick may choose others:\n{rest}\n"


def flat_values(tree: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("group.field", value) for the leaves of a configuration's dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat_values(value, f"{where}{key}.")
        else:
            yield where + key, value


def differences(old: Any, new: Any) -> list[str]:
    """List the fields in which two configurations differ, as "group.field: old -> new"."""
    return changes(dict(flat_values(to_dict(old))), dict(flat_values(to_dict(new))))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the names under which two flat mappings differ, as "name: old -> new"."""
    pairs = {n: (before.get(n, "absent"), after.get(n, "absent")) for n in {**before, **after}}
    return [
        f"{name}: {shown(left)} -> {shown(right)}"
        for name, (left, right) in pairs.items()
        if _canonical(left) != _canonical(right)
    ]


def run_id(
    cfg: Any, slug: str, exclude: Sequence[str] = (), identity: Mapping[str, str] | None = None
) -> str:
    """Name a run after what it is: "slug-8hex"; every field counts, also where it has its default.

    `slug` is made safe as a file name; `exclude` names fields or groups that do not count, such as
    "out", and a ConfigError tells of one that is none; `identity` is what else the run is.
    """
    values = dict(flat_values(to_dict(cfg)))
    for name in exclude:
        if not any(f"{key}.".startswith(f"{name}.") for key in values):
            raise ConfigError(f"exclude={shown(name)} names no field{near(name, values)}")
    outside = tuple(f"{name}." for name in exclude)
    counted = {k: _canonical(v) for k, v in values.items() if not f"{k}.".startswith(outside)}
    text = json.dumps([dict(identity or {}), counted], sort_keys=True)
    return f"{safe_name(slug)}-{hashlib.sha256(text.encode('ascii')).hexdigest()[:8]}"


def _from_plain(kind: Any, value: Any, name: str, usual: Any = None) -> Any:
    origin, parts, hint = typing.get_origin(kind), typing.get_args(kind), ""
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, f"{name}.", usual)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
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
        if any(part == value and type(part) is type(value) for part in parts):
            return value
        hint = near(value, [p for p in parts if isinstance(p, str)]) if type(value) is str else ""
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is Path and isinstance(value, str | Path):
        return Path(value)
    elif type(value) is kind:
        return _at_home(value) if kind is str else value
    raise ConfigError(f"{name}={shown(value)} is not allowed{hint or ':'} {allowed_words(kind)}")


def _at_home(text: str) -> str:
    """A path under the home folder, written with the ~ that a shell leaves in --option=~/x."""
    home = os.path.expanduser("~")
    return re.sub(r"^((?:--[\w.-]+=)?)~(?=/|$)", lambda found: found[1] + home, text)


def _canonical(value: Any) -> Any:
    """Make 1 and 1.0 one value, which a float field may hold, and NaN equal to itself."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else "nan" if math.isnan(value) else value
    return [_canonical(entry) for entry in value] if isinstance(value, list) else value
