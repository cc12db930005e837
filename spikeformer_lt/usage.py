"""What a configuration class takes: its fields, their types in words, and the help of a program.

A field's docstring is its help, a class's docstring that of its group. What None stands for is
said as "; None is WORDS", and becomes the default that is shown.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import linecache
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

from spikeformer_lt.errors import ConfigError, SpikeformerError, painted

BASIC = re.compile(
    r"[^.]+|run\.(out|resume|extend)|data\.(name|root|download)|model\.(name|T|init_from)|"
    r"train\.(seed|batch_size|workers|mixed_precision|optim\.lr)|"
    r"multisp\.(epochs|preset|(patches|weights|encoder)\.sparsity|activation\.kind)"
)
"""Options that `help_text` shows first."""
ALWAYS = {
    "--config FILE": "Values from a .yaml or .json file; options override them.",
    "--print-config": "Print the named values as such a file, defaults as comments, and stop.",
    "--plugins FILE.py ...": "Import models, data sets and searches of your own.",
    "--dry-run": "Check options, data and memory; make nothing.",
    "--quick": "Shorten a training to try it out: 2 epochs at most, the rest in proportion.",
    "--quiet, --verbose": "Show warnings and results alone, or what is done inside.",
    "--debug": "Show the traceback of an error.",
}
CHOICES: dict[tuple[type, str], tuple[str, ...]] = {}
"""Words that a field of a configuration class may be, as `config.check_fields` met them."""
_EXAMPLE = re.compile(
    r"^(?:accelerate launch|torchrun|python|spikeformer-lt|%\(prog\)s)(?: .*)?$", re.M
)
_NONE = re.compile(r"(?:[;,]| or)? None (?:is|for) ([^.;)]*)")
_EMPTY = re.compile(r"; empty makes ([^.;)]*)")
_PLAIN = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text (quote it if it looks like a number)",
    Path: "a path",
    type(None): "None (null in a file)",
}


def field_kinds(cls: type) -> dict[str, Any]:
    """Return {field: resolved type} of a configuration class, for fields that can be set."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def default_of(cls: Any, name: str) -> Any:
    """Default of one field of a configuration class; MISSING if it has none."""
    field = cls.__dataclass_fields__[name]
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def options_of(cls: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("group.field", type) of every option."""
    for name, kind in field_kinds(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from options_of(kind, f"{where}{name}.")
        else:
            yield where + name, kind


def allowed_words(kind: Any) -> str:
    """Say in words which values a type allows."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(allowed_words(part) for part in parts)
    if origin is tuple and parts[1:] == (Ellipsis,):
        return f"a list, each entry {allowed_words(parts[0])}"
    if origin is tuple:
        return f"a list of {len(parts)}: {', '.join(allowed_words(part) for part in parts)}"
    return _PLAIN.get(kind) or str(getattr(kind, "__name__", kind))


def help_text(
    cls: Any, prog: str, words: str = "", needs: Sequence[str] = (), usual: Any = None
) -> str:
    """The help of the program `prog`, which takes `words` and then the options of `cls`.

    Options in `needs` have no default, the others those of `usual`, or of the class.

    Examples come first, then basic options, then all others by group. Examples are the lines of
    the class's docstring, or else of its module's, that are commands.
    """
    own = inspect.cleandoc(cls.__doc__ or "")
    own = "" if own.startswith(f"{cls.__name__}(") else own  # dataclass's own docstring
    module = getattr(sys.modules.get(cls.__module__), "__doc__", None) or ""
    width = min(shutil.get_terminal_size().columns, 100)

    def section(name: str, about: str, options: Iterable[Sequence[str]]) -> Iterator[str]:
        told = "\n".join(textwrap.wrap(f"{name}: {about}", width))
        yield f"\n{painted(name, 1, sys.stdout)}{told[len(name) :]}"
        for *names, flag, told in options:
            if {*names[2:]} & {*needs}:
                told = re.sub(r"\(default: .*\)$", "(required)", told)
            lines = textwrap.wrap(told, max(width - 30, 20), break_on_hyphens=False)
            if len(flag) > width - 2:  # many words
                parts = textwrap.wrap(flag.replace(",", ", "), width - 6)
                flag = "\n      ".join(parts).replace(", ", ",")
            first = lines.pop(0) if len(flag) <= 26 else ""
            first = f"  {painted(flag, 36, sys.stdout)}{first and ' ' * (28 - len(flag))}{first}"
            yield "\n".join([first, *(f"{'':30}{line}" for line in lines)])

    found = [*_listed(cls, cls() if usual is None else usual)]  # which notes the choices, too
    basic, rest = ([o for o in found if bool(BASIC.fullmatch(o[2])) is b] for b in (True, False))
    names = {f"--{name.replace('_', '-')}" for _, _, name, *_ in found}
    text = [
        f"usage: {prog} {words}{words and ' '}[options]\n",
        introduction(own, module, prog, cls),
    ]
    always = (one for one in ALWAYS.items() if one[0] not in names)
    always = (one for one in always if "--run.quick" in names or one[0] != "--quick")
    text += section("basic options", "", [*basic, *always])
    for (group, about), options in itertools.groupby(rest, lambda option: option[:2]):
        text += section(f"{group} options", about, options)
    return "\n".join(text)


def introduction(doc: str, module: str = "", prog: str = "", cls: type = object) -> str:
    """What a docstring says, then the commands in it, or else in its module's, as examples."""
    doc = inspect.cleandoc(doc)
    examples = [*_as_typed(_EXAMPLE.findall(doc) or _EXAMPLE.findall(module), prog, cls)]
    head = [f"\n{painted('examples', 1, sys.stdout)}:"] if examples else []
    return "\n".join([_EXAMPLE.sub("", doc).strip(), *head, *examples])


def table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of cells as aligned columns, cut at the width of the terminal if there is one."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        line = indent + "  ".join([*cells, row[-1]]).rstrip()
        lines.append(line if len(line) <= room else f"{line[: room - 3]}...")
    if not indent:  # the first row is a head
        lines[0] = painted(lines[0], 1, sys.stdout)
    return "\n".join(lines)


def _as_typed(examples: Sequence[str], prog: str, cls: type) -> Iterator[str]:
    """Commands of a docstring as the user of `prog` types them, who may have no checkout."""
    own = "" if cls is object else Path(inspect.getsourcefile(cls) or "").stem
    forms = {
        rf"^(accelerate launch|python) recipes/{own}\.py": prog,
        r"^(accelerate launch|python) recipes/(\w+)\.py": r"spikeformer-lt run \2",
        r"^spikeformer-lt find \w+": prog if " find " in prog else r"\g<0>",
    }
    for form, typed in forms.items() if not prog.endswith(".py") else ():
        examples = [re.sub(form, typed, command) for command in examples]
    pairs = [[part.strip() for part in f"{line}  # ".split("  # ")[:2]] for line in examples]
    longest = max((len(command) for command, about in pairs if about), default=0)
    for command, about in pairs:
        yield f"  {command:{longest}}  {about and '# '}{about}".rstrip()


def _listed(
    cls: Any, usual: Any, group: str = "", about: str = ""
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield group, what it is, name, flag and help of each option, in the order of groups."""
    below = []
    for field, kind in field_kinds(cls).items():
        name = f"{group}.{field}".removeprefix(".")
        value = getattr(usual, field)
        if dataclasses.is_dataclass(kind):
            told = " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())
            below.append((kind, value, name, re.sub(r"^\w+\(.*", "", told)))
            continue
        told = field_docs(cls).get(field, "")
        if value == "" and (empty := _EMPTY.search(told)):
            value, told = empty[1], _EMPTY.sub("", told)
        if value is None and (none := _NONE.search(told) or _NONE.search(about)):
            value = none[1]
        told = _NONE.sub("", told)
        flag = f"--{name}"
        words = CHOICES.get((cls, field))
        flag += (
            f", --{name[: -len(field)]}no_{field}" if kind is bool else f" {_metavar(kind, words)}"
        )
        flag = re.sub(r"--\S+", lambda found: found[0].replace("_", "-"), flag)
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
        default = "none" if shown in (None, "") else shown
        yield group, _NONE.sub("", about), name, flag, f"{told} (default: {default})".strip()
    for inner in below:
        yield from _listed(*inner)


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """{field: its docstring} of a configuration class, from its source and its bases'."""
    found = {}
    for base in reversed(cls.__mro__):
        try:
            body = _classes(inspect.getsourcefile(base) or "").get(base.__qualname__, ())
        except (OSError, TypeError, SyntaxError):  # object, or a class that no file defines
            continue
        for field, text in itertools.pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(words))):
                    found[name] = " ".join(words.split())
    return found


@functools.cache
def _classes(file: str) -> dict[str, list[ast.stmt]]:
    """{qualified name: body} of the classes of a source file, which is read once for them all."""
    found = {}
    below: list[tuple[str, ast.AST]] = [("", ast.parse("".join(linecache.getlines(file))))]
    for name, node in below:
        for inner in ast.iter_child_nodes(node):
            match inner:
                case ast.ClassDef():
                    found[name + inner.name] = inner.body
                    below.append((f"{name}{inner.name}.", inner))
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    below.append((f"{name}{inner.name}.<locals>.", inner))
                case ast.If() | ast.Try() | ast.With():
                    below.append((name, inner))
    return found


def _metavar(kind: Any, words: Sequence[str] | None = None) -> str:
    """What stands for a value of this type, which may be one of `words` alone."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return "|".join(_metavar(part, words) for part in parts if part is not type(None))
    if origin is tuple and parts[1:] == (Ellipsis,):
        return f"[{_metavar(parts[0], words)} ...]"
    if origin is Literal or words:
        return f"{{{','.join(map(str, words or parts))}}}"
    if origin is tuple:
        return " ".join(map(_metavar, parts))
    return "{True,False}" if kind is bool else str(getattr(kind, "__name__", kind)).upper()


def parse_error(
    stop: SystemExit, printed: str, options: dict[str, Any], prog: str
) -> SpikeformerError:
    """Turn a failure of tyro, which prints a box and exits, into an error of one line."""
    cause: BaseException | None = stop
    while cause is not None:
        # What a __post_init__ raised is better than tyro's words about it.
        if isinstance(cause, SpikeformerError):
            return cause
        cause = cause.__context__
    # The box's title is in its upper line where stdout takes UTF-8, else above a rule of its own.
    plain = re.sub(r"\x1b\[[0-9;]*m|^╭.*$", "", printed, flags=re.MULTILINE)
    blocks = [
        block.split() for block in re.split(r"^[│ ]*[─╰╯-]+[│ ]*$", plain, flags=re.MULTILINE)
    ]
    chosen = blocks[0] if "╭" in printed or len(blocks) == 1 else blocks[1]
    text = " ".join(word for word in chosen if word != "│")
    text = "".join(c for c in text if c.isprintable()).removeprefix("Error parsing ")
    named = re.search(r"--([\w.-]+)", text)
    kind = options.get(named[1].replace("-", "_")) if named else None
    allowed = f"; allowed: {allowed_words(kind)}" if kind is not None else ""
    parsers = re.search("instantiated|literal|not convert|valid parse", text)
    quoted = r"\[[^\]]*\]$" if "valid parse" in text else "'[^']*'|\"[^\"]*\""
    if named and allowed and parsers and (values := re.findall(quoted, text)):
        text = f"--{named[1]}={values[-1]} is not allowed"
        allowed = allowed.replace("; allowed", "")
    text = text.rstrip(".") or "the options cannot be read"
    text = text if named and text.startswith("--") else f"{text[0].lower()}{text[1:]}"
    text = text if len(text) <= 400 else f"{text[:200]} ... {text[-100:]}"
    return ConfigError(f"{text}{allowed}; see {prog} --help")


class Parser(argparse.ArgumentParser):
    """A parser with help in the form of `help_text` and errors of one line.

    Its description is a docstring; ``%(prog)s`` in it is the program.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Formatter)
        self.description = self.description and introduction(self.description)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        told = painted("error:", 31, sys.stderr)
        self.exit(2, f"{told} {message}; {self.prog} --help lists what it takes\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def start_section(self, heading: str | None) -> None:
        super().start_section(painted(heading or "", 1, sys.stdout))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = "(default: " in (action.help or "")
        return action.help if said else super()._get_help_string(action)
