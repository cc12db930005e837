"""Published images: the files of a set, and readers of IDX files and pickled batches.

Sources: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats" (IDX); A.
Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009 (batches); pickle's
documentation, "Restricting Globals".
"""

from __future__ import annotations

import codecs
import io
import math
import pickle
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError, name_of, shown
from spikeformer_lt.images.loader import ArrayImages
from spikeformer_lt.images.splits import make_splits
from spikeformer_lt.published import Archive, PublishedFile, provide, read_checked
from spikeformer_lt.splits import DataOptions, Splits

Labelled = tuple[Tensor, Tensor]
"""Images uint8 [N, C, H, W] and their labels int64 [N]."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A published set of images: what it consists of, and how it is read."""

    name: str
    folder: str  # its folder, below the root
    archive: Archive | None = None  # that holds the folder; None for single files
    train: tuple[PublishedFile, ...] = ()
    test: tuple[PublishedFile, ...] = ()
    num_classes: int
    sizes: tuple[int, ...]  # heights and widths that it comes in, in pixels, its own first
    mean: tuple[float, ...]  # of the training pixels in [0, 1], per channel, as `std`
    std: tuple[float, ...]
    augment: str = "none"
    classes: tuple[str, ...] = ()  # names by class number; default the numbers

    def names(self, folder: Path) -> tuple[str, ...]:
        """Names of the classes; () are their numbers."""
        return self.classes

    def read(self, folder: Path, size: int) -> tuple[Labelled, Labelled]:
        """Read the training and the test images of `size` pixels a side, in file order."""
        return self.read_part(folder, self.train, size), self.read_part(folder, self.test, size)

    def read_part(self, folder: Path, files: Sequence[PublishedFile], size: int) -> Labelled:
        """Read the files of one part."""
        raise NotImplementedError

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder holds all files of the set."""
        return all((folder / file.name).is_file() for file in self.train + self.test)

    def load(self, options: DataOptions) -> tuple[ArrayImages, ArrayImages]:
        """Return all training and all test images; missing or other files are a DataError."""
        size = self.sizes[0] if options.image_size is None else options.image_size
        own = f"{self.name} has images of {' or '.join(map(str, self.sizes))} pixels a side"
        check(size in self.sizes, "image_size", size, f"{own}; use that or leave it out")
        home = Path(options.root) / self.folder
        provide(
            self.name, options.root, options.download, lambda: self.is_in(home),
            archives=(self.archive,) if self.archive else (),
            files=self.train + self.test, folder=self.folder,
        )  # fmt: skip
        facts: Any = {"num_classes": self.num_classes, "mean": self.mean, "std": self.std}
        train, test = self.read(home, size)
        facts["classes"] = self.names(home)
        return (
            ArrayImages(f"{self.name} train", *train, **facts),
            ArrayImages(f"{self.name} test", *test, **facts),
        )

    def splits(self, options: DataOptions) -> Splits:
        """Return the set with validation cut from the training images; see `make_splits`."""
        parts = self.load(options)
        return make_splits(self.name, *parts, augment=self.augment, **options.parts())


_UNSIGNED_BYTES = 8  # IDX's number of that type


def read_idx(
    path: str | Path, *, md5: str, sha256: str = "", dims: int, max_bytes: int = 1 << 30
) -> Tensor:
    """Read one gzipped IDX file of bytes as uint8 of the sizes that it names.

    Raises:
        DataError: a published hash differs (nothing is unpacked then), it is no whole gzip file,
            unpacks to more than `max_bytes`, or is no IDX file of bytes with `dims` dimensions and
            exactly the values that they need.
    """
    name = name_of(path)
    data = _gunzip(read_checked(path, md5=md5, sha256=sha256), name, max_bytes)
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


def _gunzip(packed: bytes, name: str, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(31)  # a gzip header and the largest window
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


_ALLOWED: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": np.empty(0, np.uint8).__reduce__()[0],
    "numpy._core.multiarray._reconstruct": np.empty(0, np.uint8).__reduce__()[0],
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": codecs.encode,
}


class _Unpickler(pickle.Unpickler):
    """Finds what an array of bytes needs, and no other global."""

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in _ALLOWED:
            raise DataError(f"asks for {shown(wanted)}, which a batch of images does not need")
        return _ALLOWED[wanted]


def read_batch(path: str | Path, *, md5: str, sha256: str = "") -> dict[str, Any]:
    """Read one pickled batch: a dictionary of arrays, lists, numbers and bytes, its keys as text.

    The published hashes are compared before a single opcode is looked at.

    Raises:
        DataError: a hash differs, the pickle asks for anything but an array, or it is no
            dictionary; nothing of it was run.
    """
    data = read_checked(path, md5=md5, sha256=sha256)
    name = name_of(path)
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except DataError as fault:
        raise DataError(f"{name} {fault}; refused, nothing of it was run") from None
    except Exception as fault:
        raise DataError(f"{name} is not a pickled batch: {shown(str(fault))}") from fault
    if not isinstance(found, dict):
        raise DataError(f"{name} holds {type(found).__name__}; expected a dictionary")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}


_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class BatchFiles(ImageFiles):
    """Pickled batches of RGB images, such as CIFAR's."""

    label_key: str  # entry of a batch that holds the labels

    def read_part(self, folder: Path, files: Sequence[PublishedFile], size: int) -> Labelled:
        """Read batches, one behind the other."""
        images, labels = zip(*(self._batch(folder, file, size) for file in files), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _batch(self, folder: Path, file: PublishedFile, size: int) -> Labelled:
        path = folder / file.name
        batch = read_batch(path, md5=file.md5, sha256=file.sha256)
        data, labels = batch.get("data"), batch.get(self.label_key)
        width = _CHANNELS * size * size
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (width,):
            raise DataError(f"{path}: 'data' is no uint8 array of rows of {width} pixels")
        whole = isinstance(labels, list) and all(type(label) is int for label in labels)
        if not whole or len(labels or ()) != len(data):
            raise DataError(f"{path}: {self.label_key!r} is no list of {len(data)} whole numbers")
        pixels = torch.from_numpy(np.array(data)).view(-1, _CHANNELS, size, size)
        return pixels, torch.tensor(labels, dtype=torch.int64)
