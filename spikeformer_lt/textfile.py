"""The door for text that people and programs hand in: JSON, YAML and cells of a CSV.

Both readers give plain dicts, lists, strings, numbers, booleans and None, and nothing else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from spikeformer_lt.errors import ConfigError, SpikeformerError, shown

FILE_LIMIT = 1_000_000  # bytes; a configuration of ours has a few thousand
DEPTH_LIMIT = 50  # nesting; ours has three levels


def parse_json(text: str, source: str, error: type[SpikeformerError] = ConfigError) -> Any:
    """Parse strict JSON: a repeated key is refused.

    Args:
        text: the document.
        source: the file's name, for messages.
        error: class of the exception.

    Raises:
        SpikeformerError: (as `error`) not JSON, a repeated key, or nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise error(f"{source}: the key {shown(key)} is there twice; keep one")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as fault:
        raise error(f"{source}, line {fault.lineno}: not JSON: {fault.msg}") from None
    except RecursionError:
        raise error(f"{source}: JSON nested too deeply") from None
    except SpikeformerError:
        raise
    except ValueError as fault:  # a number of more digits than Python converts
        raise error(f"{source}: not JSON: {fault}") from None


class _Loader(yaml.SafeLoader):
    """Plain scalars by YAML 1.2's core rules: 1e-3 is a number, `off` and 2026-11-21 are words."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the base class's protocol)


_TAG = "tag:yaml.org,2002:"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_TAG + "bool", lambda _, node: node.value.lower() == "true")
_Loader.add_constructor(
    _TAG + "int",
    lambda _, node: int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10),
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse plain YAML: no tag, no anchor or alias, no tab, no repeated key, one document.

    Args:
        text: the document.
        source: the file's name, for messages.

    Raises:
        ConfigError: any of the above, or not YAML; the message has the line.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line:
            raise ConfigError(f"{source}, line {number}: a tab; indent with spaces")
    try:
        # Events come before anything is expanded, so that a bomb is refused while it is small.
        _refuse_risky_events(text, source)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_repeated_keys(node, loader, source)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not YAML: {fault.problem or fault.context}") from None
    except SpikeformerError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as fault:
        raise ConfigError(f"{source}: not YAML: {shown(str(fault), 200)}") from None


def _refuse_risky_events(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        what = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            what = "an anchor or alias (& or *); write the value out"
        elif tag := getattr(event, "tag", None):
            what = f"the tag {shown(tag)}; only plain values are allowed"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            what = f"nested deeper than {DEPTH_LIMIT} levels" if depth > DEPTH_LIMIT else ""
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if what:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise ConfigError(f"{source}, line {line}: {what}")


def _refuse_repeated_keys(root: yaml.Node, loader: _Loader, source: str) -> None:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            seen: dict[Any, int] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    raise ConfigError(f"{source}, line {line}: a key must be one plain word")
                key = loader.construct_object(key_node)
                if key in seen:
                    raise ConfigError(
                        f"{source}, line {line}: the key {shown(key)} is there twice "
                        f"(first in line {seen[key]}); keep one"
                    )
                seen[key] = line
                waiting.append(value_node)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a ``.yaml``, ``.yml`` or ``.json`` file whose top level is a mapping.

    Raises:
        ConfigError: missing, unreadable, too large, of another kind, or malformed.
    """
    path = Path(path)
    name = shown(str(path), 300)
    parsers = {".json": parse_json, ".yaml": parse_yaml, ".yml": parse_yaml}
    parser = parsers.get(path.suffix.lower())
    if parser is None:
        raise ConfigError(f"{name}: the name must end in {', '.join(parsers)}")
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as fault:
        raise ConfigError(f"cannot read {name}: {fault.strerror or fault}") from None
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{name}: longer than {FILE_LIMIT} bytes; that is no configuration")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{name}: not UTF-8 text (byte {fault.start})") from None
    found = parser(text, name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: the top level must be 'key: value' lines, not {shown(found)}")
    return found


def csv_cell(value: object) -> str:
    """Return `value` as the text of one CSV cell on one line that no spreadsheet will execute.

    Numbers stay as they are. A text that begins like a formula (= + - @) gets a leading
    apostrophe, and control characters are escaped. Quoting of commas is left to the csv module.
    """
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return repr(value)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
