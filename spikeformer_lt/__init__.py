"""Lottery tickets in spiking transformers: find, train, measure and export sparse binary networks.

Importing this package imports no torch; each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from typing import TYPE_CHECKING

from spikeformer_lt.errors import in_python
from spikeformer_lt.runtime import OPENMP as OPENMP  # before torch is imported
from spikeformer_lt.runtime import lazy

try:
    __version__ = importlib.metadata.version(__name__)
except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = [
    "Mask", "Prediction", "Run", "Ticket", "__version__", "adapt", "check", "check_fields",
    "check_model", "compare", "create_dataset", "create_model", "create_search", "find",
    "from_pretrained", "list_datasets", "list_models", "list_searches", "load_exported",
    "predict", "register_dataset", "register_model", "register_search", "run_recipe", "train",
    "use_plugins",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.adapted import adapt
    from spikeformer_lt.config import check, check_fields, run_recipe
    from spikeformer_lt.export import Prediction, from_pretrained, load_exported, predict
    from spikeformer_lt.mask import Mask
    from spikeformer_lt.registry import (
        create_dataset,
        create_model,
        create_search,
        list_datasets,
        list_models,
        list_searches,
        register_dataset,
        register_model,
        register_search,
        use_plugins,
    )
    from spikeformer_lt.runs import Run, compare, find, train
    from spikeformer_lt.testing import check_model
    from spikeformer_lt.ticket import Ticket
else:
    spoken = ("adapt", "create_", "from_", "load_", "predict", "use_")
    __getattr__, __dir__ = lazy(__name__, lambda function: in_python()(function), spoken)

logging.getLogger(__name__).addHandler(logging.NullHandler())
importlib.import_module(f"{__name__}.registry").join_timm()
