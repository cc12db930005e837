"""Event files in their true forms, for the tests of this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def files():
    """The writers of tests/event_files.py."""
    path = Path(__file__).parents[1] / "event_files.py"
    spec = importlib.util.spec_from_file_location("event_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sample_events(files):
    """A thousand valid events on 128 x 128 pixels over a second."""
    return files.some_events()
