"""Strict JSON out: what is written can be read by any reader and comes back as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from spikeformer_lt.errors import SpikeformerError, shown

__all__ = ["dump_json"]


def dump_json(
    value: object, where: str, error: type[SpikeformerError], indent: int | None = None
) -> str:
    """Return `value` as JSON text.

    Args:
        value: mappings with text keys, lists, tuples (which come back as lists), text, booleans,
            None, integers and finite floats.
        where: name of `value` in messages.
        error: class of the exception.
        indent: spaces a level; None for one line.

    Raises:
        SpikeformerError: (as `error`) anything else, a NaN or an infinity, with its place.
    """
    _refuse_odd(value, where, error)
    return json.dumps(value, indent=indent)


def _refuse_odd(value: object, where: str, error: type[SpikeformerError]) -> None:
    if isinstance(value, Mapping):
        if type(value) is not dict:
            raise error(f"{where} is a {type(value).__name__}; allowed is a plain dict")
        for key, member in value.items():
            if not isinstance(key, str):
                raise error(f"{where} has the key {shown(key)}; keys must be text")
            _refuse_odd(member, f"{where}.{shown(key)[1:-1]}", error)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            _refuse_odd(member, f"{where}[{index}]", error)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise error(f"{where} is {value}; allowed are finite numbers, and None for 'no value'")
    elif value is not None and not isinstance(value, str | int):
        raise error(
            f"{where} is {shown(value)} of type {type(value).__name__}; allowed are None, numbers, "
            "text, lists and dicts; convert it first"
        )
