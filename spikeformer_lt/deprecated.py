"""Deep imports that README and docs printed at version 0.1.0.dev0 and that have moved since.

Each still works and says where the name is now. Nothing else of the old paths is kept.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

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
