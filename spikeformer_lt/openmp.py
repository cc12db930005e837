"""One OpenMP runtime for torch and the numba kernels, instead of one each."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from spikeformer_lt.errors import ConfigError

__all__ = ["OPENMP", "openmp_runtimes", "share_openmp"]

_VARIABLE = "SPIKEFORMER_OPENMP"
_SYSTEM = "libgomp.so.1.0.0"  # the name by which numba asks for it


def share_openmp() -> str:
    """Load the system's OpenMP before torch loads its own copy, so that both use this one.

    Threads of OpenMP spin for a while after their work. Two runtimes have twice as many, which keep
    each other from the processor wherever torch and the kernels take turns: one image through an
    exported ticket was measured at 13 to 30 % less time with one. It can only be done before torch
    is imported. The environment variable SPIKEFORMER_OPENMP=own leaves everything as it is.

    Returns:
        What was done: "shared", or "own" with the reason.

    Raises:
        ConfigError: SPIKEFORMER_OPENMP is neither "share" nor "own".
    """
    mode = os.environ.get(_VARIABLE, "share")
    if mode not in ("share", "own"):
        raise ConfigError(f"{_VARIABLE}={mode!r} is not allowed: share or own")
    if mode == "own":
        return f"own ({_VARIABLE})"
    if sys.platform != "linux":
        return "own (not Linux)"
    if "torch" in sys.modules:
        return "own (torch was imported first)"
    try:
        ctypes.CDLL(_SYSTEM, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return f"own (no {_SYSTEM})"
    return "shared"


def openmp_runtimes() -> list[str]:
    """Paths of the GNU OpenMP runtimes that this process has loaded; of interest on Linux."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return sorted({line.split()[-1] for line in lines if "libgomp" in line})


OPENMP = share_openmp()
"""What was done when this package was imported, for the log."""
