"""The door of the package: light, lazy, complete."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

import spikeformer_lt

NAMES = {
    *("create_model", "create_dataset", "create_search"),
    *("list_models", "list_datasets", "list_searches", "Mask", "Ticket"),
}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, spikeformer_lt\n"
        "heavy = {'torch', 'numpy', 'timm', 'numba', 'tyro', 'spikingjelly', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_every_public_name_is_there_and_listed() -> None:
    for name in NAMES:
        assert getattr(spikeformer_lt, name).__name__ == name
    assert set(dir(spikeformer_lt)) >= NAMES
    assert set(spikeformer_lt.__all__) >= NAMES


def test_load_exported_is_offered_exactly_when_the_export_is_there() -> None:
    there = importlib.util.find_spec("spikeformer_lt.export") is not None
    assert ("load_exported" in spikeformer_lt.__all__) == there
    assert hasattr(spikeformer_lt, "load_exported") == there


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = spikeformer_lt.create_modle


def test_the_version_is_that_of_the_installed_package() -> None:
    assert spikeformer_lt.__version__ == importlib.metadata.version("spikeformer_lt")
