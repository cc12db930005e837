"""A reader for the pickled batches of CIFAR that cannot run code.

Source: pickle's own documentation, "Restricting Globals"; the file form is that of A. Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009, and its page's "python version".
"""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.fetch import read_checked

_reconstruct: Callable[..., Any] = np.empty(0, np.uint8).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _Unpickler(pickle.Unpickler):
    """Finds what an array of bytes needs, and no other global."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"asks for {shown(f'{module}.{name}')}, which a batch of images does not need"
            ) from None


def read_batch(path: str | Path, *, md5: str, sha256: str = "") -> dict[str, Any]:
    """Read one pickled batch, after its hash.

    Args:
        path: the file.
        md5: published hash; compared before a single opcode is looked at.
        sha256: a second hash, or "".

    Returns:
        The pickled dictionary with its keys as text: arrays, lists, numbers and bytes.

    Raises:
        DataError: a hash differs, the pickle asks for anything but an array, or it is no
            dictionary; nothing of it was run.
    """
    data = read_checked(path, md5=md5, sha256=sha256)
    name = shown(str(path), 300)
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except DataError as fault:
        raise DataError(f"{name} {fault}; refused, nothing of it was run") from None
    except Exception as fault:
        raise DataError(f"{name} is not a pickled batch: {shown(str(fault))}") from fault
    if not isinstance(found, dict):
        raise DataError(f"{name} holds {type(found).__name__}; expected a dictionary")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}
