"""Binary files of an ATIS camera: the form of N-MNIST and N-Caltech101.

Source: G. Orchard et al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using
Saccades", 2015, and its readers. An event has 5 bytes: column, row, a bit of polarity, 23 bits of
microseconds, big-endian. Row 240 is no pixel: it says that the camera's clock ran over, and all
later times grow by 8192 us.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.recording import make_events
from spikeformer_lt.events.source import Raw, name_of, opened
from spikeformer_lt.tensorfile import content_kind

_SIZE = 5  # bytes an event
_OVERFLOW_ROW = 240
_OVERFLOW_US = 2**13
# Kinds whose first bytes cannot be events by chance; those of a zip or a pickle can.
_FOREIGN = ("an HTML", "a Git LFS", "a text file")
_SHORT = 64  # bytes; a dozen events may well be printable


def read_bin(path: str | Path) -> Raw:
    """Read a recording.

    The form has no mark of its own: any 5-byte multiple is taken for events, so that garbage shows
    as faults of coordinates and order. Texts and web pages are refused.

    Args:
        path: the file. Memory stays below ten times its size.

    Returns:
        `EVENTS` in file order; clock marks are counted as "overflow".

    Raises:
        DataError: a cut event, or a file of another kind.
    """
    with opened(path) as (file, size):
        head = file.read(1024)
        kind = content_kind(head)
        if kind.startswith(_FOREIGN) and len(head) > _SHORT:
            raise DataError(f"{name_of(path)} is not an ATIS recording but {kind}")
        if size % _SIZE:
            raise DataError(
                f"{name_of(path)} breaks off: {size} bytes are no multiple of {_SIZE}; the file is "
                "truncated or damaged"
            )
        file.seek(0)
        rows = np.fromfile(file, np.uint8).reshape(-1, _SIZE)
    mark = rows[:, 1] == _OVERFLOW_ROW
    times = ((rows[:, 2] & 127).astype(np.int64) << 16) | (rows[:, 3].astype(np.int64) << 8)
    times |= rows[:, 4]
    overflows = int(np.count_nonzero(mark))
    if overflows:
        times += np.cumsum(mark) * _OVERFLOW_US
        rows, times = rows[~mark], times[~mark]
    events = make_events(rows[:, 0], rows[:, 1], rows[:, 2] >> 7, times)
    return Raw(events, {"overflow": overflows} if overflows else {})
