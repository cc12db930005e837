"""Nested frozen dataclasses as configuration: to plain values and back, compared, named, saved.

`spikeformer_lt.config` is the door; import from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from spikeformer_lt.errors import ConfigError, near, shown
from spikeformer_lt.paths import safe_name, write_atomic
from spikeformer_lt.textfile import read_mapping

C = TypeVar("C")
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


def run_id(cfg: Any, slug: str, exclude: Sequence[str] = ()) -> str:
    """Name a run after what its configuration changes: "slug-8hex".

    Only fields that differ from their default are hashed, so that a new field with a default
    leaves the names of old runs as they are.

    Args:
        cfg: the configuration.
        slug: readable part; made safe as a file name.
        exclude: fields or groups that do not count, e.g. "out" or "data.root".

    Raises:
        ConfigError: `exclude` names no field.
    """
    defaults = dict(flat_values(_defaults(type(cfg))))
    values = dict(flat_values(to_dict(cfg)))
    for name in exclude:
        if not any(f"{key}.".startswith(f"{name}.") for key in values):
            raise ConfigError(f"exclude={shown(name)} names no field{near(name, values)}")
    changed = {
        name: _canonical(value)
        for name, value in values.items()
        if (name not in defaults or _canonical(defaults[name]) != _canonical(value))
        and not any(f"{name}.".startswith(f"{out}.") for out in exclude)
    }
    text = json.dumps(changed, sort_keys=True)
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
