"""Lottery tickets in spiking transformers: find, train, measure and export sparse binary networks.

Importing this package imports no torch; each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from spikeformer_lt.runtime import OPENMP as OPENMP  # before torch is imported

if TYPE_CHECKING:
    from spikeformer_lt.mask import Mask as Mask
    from spikeformer_lt.registry import create_dataset as create_dataset
    from spikeformer_lt.registry import create_model as create_model
    from spikeformer_lt.registry import create_search as create_search
    from spikeformer_lt.registry import list_datasets as list_datasets
    from spikeformer_lt.registry import list_models as list_models
    from spikeformer_lt.registry import list_searches as list_searches
    from spikeformer_lt.ticket import Ticket as Ticket

try:
    __version__ = importlib.metadata.version(__name__)
except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

_HOMES = {
    "Mask": "mask",
    "Ticket": "ticket",
    "create_dataset": "registry",
    "create_model": "registry",
    "create_search": "registry",
    "list_datasets": "registry",
    "list_models": "registry",
    "list_searches": "registry",
}
if importlib.util.find_spec(f"{__name__}.export") is not None:
    _HOMES["load_exported"] = "export"

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


logging.getLogger(__name__).addHandler(logging.NullHandler())
importlib.import_module(f"{__name__}.timm").join_timm()
importlib.import_module(f"{__name__}.deprecated").keep_old_imports()
