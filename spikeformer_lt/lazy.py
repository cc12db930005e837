"""Public names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, while its ``__init__`` is being run.

    The names are those that the ``__init__`` imports under ``if TYPE_CHECKING:``, where type
    checkers see them as they are; its ``__all__`` lists the same names.
    """
    source = Path(str(sys.modules[package].__file__)).read_text("utf-8")
    homes = {
        alias.asname or alias.name: (node.module, alias.name)
        for guard in ast.parse(source).body
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = homes[name]
        value = getattr(importlib.import_module(str(module)), original)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, listed
