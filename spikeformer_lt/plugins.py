"""Files of a user that register models, data sets or searches: ``--plugins FILE.py``.

The files are kept in an environment variable, so that the child processes of a comparison know the
same names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from spikeformer_lt.errors import ConfigError, shown

__all__ = ["VARIABLE", "import_plugins", "use_plugins"]

VARIABLE = "SPIKEFORMER_LT_PLUGINS"
"""Environment variable: paths of the files, separated as those of PATH are."""


def use_plugins(files: Iterable[str | Path]) -> None:
    """Import files, here and in every process that this one starts.

    Args:
        files: Python files; each is imported once a process.

    Raises:
        ConfigError: a file is missing, is no Python file, or fails while it is imported.
    """
    paths = [str(Path(file).absolute()) for file in files]
    known = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    for path in paths:
        _import(Path(path))
    if paths:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*known, *paths]))


def import_plugins() -> None:
    """Import the files that the environment names.

    Raises:
        ConfigError: as `use_plugins`.
    """
    for path in os.environ.get(VARIABLE, "").split(os.pathsep):
        if path:
            _import(Path(path))


def _import(path: Path) -> None:
    where = shown(str(path), 300)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"--plugins {where} is not allowed: a Python file that exists, FILE.py")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"spikeformer_lt_plugin_{digest}_{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # first: dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        del sys.modules[name]
        said = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise ConfigError(f"--plugins {where} cannot be imported: {said}") from fault
