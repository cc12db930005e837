"""Keep the memory of a training step for the next one, instead of handing it back to the system."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

from spikeformer_lt.errors import ConfigError

__all__ = ["keep_heap"]

_VARIABLE = "SPIKEFORMER_HEAP"
_TRIM, _MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_LARGEST = 2**31 - 1


def keep_heap() -> str:
    """Tell the C library to keep freed memory; the whole process is concerned, peaks are not.

    Every step asks for the same blocks. By default glibc returns large ones to the system, which
    hands them out again page by page, each to be zeroed: measured at 4 to 27 % of a step's
    processor time. The environment variable SPIKEFORMER_HEAP=system leaves everything as it is.

    Returns:
        What is in force, for the log: "kept", or "system" with the reason.

    Raises:
        ConfigError: SPIKEFORMER_HEAP is neither "keep" nor "system".
    """
    mode = os.environ.get(_VARIABLE, "keep")
    if mode not in ("keep", "system"):
        raise ConfigError(f"{_VARIABLE}={mode!r} is not allowed: keep or system")
    if mode == "system":
        return f"system ({_VARIABLE})"
    return "kept" if _keep() else "system (no glibc)"


@cache
def _keep() -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, ctypes.c_int(_LARGEST)) for option in (_MMAP, _TRIM))
