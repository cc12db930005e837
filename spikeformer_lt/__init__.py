"""Lottery tickets in spiking transformers: find, train, measure and export sparse binary networks.

Importing this package imports no torch; each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy
from spikeformer_lt.runtime import OPENMP as OPENMP  # before torch is imported

try:
    __version__ = importlib.metadata.version(__name__)
except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from spikeformer_lt.config import check as check
    from spikeformer_lt.config import check_fields as check_fields
    from spikeformer_lt.config import run_recipe as run_recipe
    from spikeformer_lt.export import load_exported as load_exported
    from spikeformer_lt.mask import Mask as Mask
    from spikeformer_lt.registry import create_dataset as create_dataset
    from spikeformer_lt.registry import create_model as create_model
    from spikeformer_lt.registry import create_search as create_search
    from spikeformer_lt.registry import list_datasets as list_datasets
    from spikeformer_lt.registry import list_models as list_models
    from spikeformer_lt.registry import list_searches as list_searches
    from spikeformer_lt.registry import register_dataset as register_dataset
    from spikeformer_lt.registry import register_model as register_model
    from spikeformer_lt.registry import register_search as register_search
    from spikeformer_lt.registry import use_plugins as use_plugins
    from spikeformer_lt.ticket import Ticket as Ticket
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
    __all__ = ["__version__", *__all__]

logging.getLogger(__name__).addHandler(logging.NullHandler())
importlib.import_module(f"{__name__}.timm").join_timm()
importlib.import_module(f"{__name__}.deprecated").keep_old_imports()
