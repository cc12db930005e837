"""The frame counter in numba; imported at first use, because numba takes half a second to load."""

from __future__ import annotations

import logging
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)


def _jit(function: Any) -> Any:
    """numba.njit, cached on disk or, where no folder can be written, compiled in each process."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as fault:
        _log.info("the frame kernel is compiled anew in this process: %s", fault)
        return numba.njit(nogil=True)(function)


@_jit
def _count(x: Any, y: Any, p: Any, edges: Any, frames: Any, height: int, width: int) -> int:
    # One flat frame at a time: a frame stays in cache while its events are added.
    area = height * width
    for i in range(len(edges) - 1):
        frame = frames[i]
        for k in range(edges[i], edges[i + 1]):
            row, column, sign = np.int64(y[k]), np.int64(x[k]), np.int64(p[k])
            if column >= width or row >= height or sign > 1:
                return k
            frame[sign * area + row * width + column] += 1
    return -1


def count_numba(x: Any, y: Any, p: Any, edges: NDArray[np.int64], frames: NDArray[np.int32]) -> int:
    """Add events to `frames`.

    Args:
        x: columns, uint16 [N].
        y: rows, uint16 [N].
        p: polarities, uint8 [N].
        edges: int64 [T + 1], ascending positions in [0, N]: the borders of the frames.
        frames: int32 [T, 2, H, W], contiguous; changed in place.

    Returns:
        Position of the first event that does not fit into a frame, or -1.
    """
    T, polarities, height, width = frames.shape
    assert polarities == 2 and frames.flags.c_contiguous
    assert edges[0] >= 0 and edges[-1] <= len(x) == len(y) == len(p)
    return int(_count(x, y, p, edges, frames.reshape(T, -1), height, width))
