"""Public names that are imported when they are first used (PEP 562), and names that have moved.

Deep imports that README and docs printed at version 0.1.0.dev0 still work and say where the name is
now. Nothing else of the old paths is kept.
"""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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


PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    "layers.cnn_units": {"ConvLayer": "layers.units"},
    "plugins": {"use_plugins": "registry"},
    "reports.run_report": {"write_report": "reports.run_page"},
    "tickets.base": {"OneShotConfig": "tickets.configs"},
    "tickets.rebuild": {"model_from_ticket": "tickets.surgery"},
    "training.settings": {"TrainConfig": "training.options"},
}
"""Old module -> name -> the module that has it now."""


def moved(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module from which names of `MOVED` have moved away."""
    names = MOVED[module.removeprefix(f"{PACKAGE}.")]

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = f"{PACKAGE}.{names[name]}"
        warnings.warn(f"{module}.{name} is now {home}.{name}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), name)

    return find


for _old in MOVED.keys() - {"tickets.base"}:  # that module is still there
    _module = ModuleType(f"{PACKAGE}.{_old}", "A module whose names have moved.")
    vars(_module).update(__getattr__=moved(_module.__name__), __all__=list(MOVED[_old]))
    sys.modules[_module.__name__] = _module
