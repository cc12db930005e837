"""A reader for gzipped IDX files, the form of MNIST and Fashion-MNIST.

Source of the form: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats":
two zero bytes, a byte for the type, one for the number of dimensions, each size as a big-endian
32-bit number, then the values, the last dimension running fastest.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.fetch import read_checked

_UNSIGNED_BYTES = 8
_GZIP = 31  # zlib's number for a gzip header and the largest window


def read_idx(
    path: str | Path, *, md5: str, sha256: str = "", dims: int, max_bytes: int = 1 << 30
) -> Tensor:
    """Read one gzipped IDX file of bytes, after its hash.

    Args:
        path: the file.
        md5: published hash; compared before anything is unpacked.
        sha256: a second hash, or "".
        dims: number of dimensions that it must have.
        max_bytes: most bytes that it may unpack to.

    Returns:
        uint8 tensor of the sizes that the file names.

    Raises:
        DataError: a hash differs, it is no whole gzip file, unpacks to too much, or is no IDX
            file of bytes with `dims` dimensions and exactly the values that they need.
    """
    name = shown(str(path), 300)
    data = _unpack(read_checked(path, md5=md5, sha256=sha256), name, max_bytes)
    head = 4 + 4 * dims
    if len(data) < head or data[:2] != b"\0\0":
        raise DataError(f"{name} is no IDX file: it does not begin like one")
    if (data[2], data[3]) != (_UNSIGNED_BYTES, dims):
        raise DataError(
            f"{name} has values of type {data[2]} in {data[3]} dimensions; expected are bytes "
            f"(type {_UNSIGNED_BYTES}) in {dims}"
        )
    sizes = struct.unpack(f">{dims}I", data[4:head])
    if math.prod(sizes) != len(data) - head or 0 in sizes:
        raise DataError(
            f"{name} names the sizes {list(sizes)}, {math.prod(sizes)} values, but holds "
            f"{len(data) - head}"
        )
    return torch.frombuffer(bytearray(data[head:]), dtype=torch.uint8).view(sizes)


def _unpack(packed: bytes, name: str, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        data = stream.decompress(packed, max_bytes + 1)
    except zlib.error as fault:
        raise DataError(f"{name} is not a whole gzip file: {fault}") from fault
    if len(data) > max_bytes:
        raise DataError(f"{name} unpacks to more than the {max_bytes} bytes allowed")
    if not stream.eof or stream.unused_data:
        state = "ends too soon" if not stream.eof else "goes on behind its end"
        raise DataError(f"{name} is not a whole gzip file: it {state}")
    return data
