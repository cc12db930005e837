"""The fixtures of the layers' tests, for whole models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).resolve().parents[1] / "layers" / "conftest.py"
_spec = importlib.util.spec_from_file_location("layers_conftest", _path)
assert _spec is not None and _spec.loader is not None
_layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_layers)

awaken, outputs = _layers.awaken, _layers.outputs
