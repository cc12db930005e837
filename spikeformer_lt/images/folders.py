"""Pictures in files of any size: decoded when they are read, or once into a file that is mapped."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.bundle import building, sweep_files
from spikeformer_lt.disk import content_kind, free_bytes, sha256_of
from spikeformer_lt.errors import DataError, name_of, shown
from spikeformer_lt.splits import described

log = logging.getLogger(__name__)
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"),
    *(".avif", ".jfif", ".jp2", ".tga"),
)
_TAIL = 8  # bytes of the checksum behind the pixels of a mapped file


def open_picture(path: str | Path, data: bytes | None = None) -> Any:
    """Return a PIL picture whose header was read, of a file or of its bytes; else a DataError."""
    from PIL import Image, UnidentifiedImageError

    if data is None and not Path(path).is_file():
        raise DataError(f"{name_of(path)} is no file of a picture")
    try:
        if data is None:
            return Image.open(path)
        picture = Image.open(io.BytesIO(data))
        picture.filename = str(path)
        return picture
    except UnidentifiedImageError:
        with io.BytesIO(data) if data is not None else open(path, "rb") as file:
            head = file.read(1024)
        raise DataError(f"{name_of(path)} is no picture but {content_kind(head)}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise DataError(f"{name_of(path)} is no whole picture: {shown(str(fault))}") from None


def square(picture: Any, size: int, channels: int = 3, crop: float = 1.0) -> NDArray[np.uint8]:
    """Return the middle of a PIL picture, upright, as ``[size, size, channels]``.

    It is the largest square in the middle, scaled bilinearly, or, bicubically, the part `crop` of
    its side.

    Raises:
        DataError: more than 8 bits a pixel, or a file that is cut or damaged.
    """
    from PIL import Image, ImageOps

    where = refuse_deep(picture)
    try:
        upright = ImageOps.exif_transpose(picture).convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise DataError(f"{where} is no whole picture: {shown(str(fault))}") from None
    way = Image.Resampling.BILINEAR if crop == 1 else Image.Resampling.BICUBIC
    fitted = ImageOps.fit(upright, (size, size), way, bleed=(1 - crop) / 2)
    return np.array(fitted, dtype=np.uint8).reshape(size, size, channels)


def refuse_deep(picture: Any) -> str:
    """Return what messages call a PIL picture; a DataError for more than 8 bits a pixel."""
    where = name_of(getattr(picture, "filename", "") or "the picture")
    if picture.mode[0] in "IF":
        raise DataError(f"{where} has more than 8 bits a pixel, mode {picture.mode}: convert it")
    return where


@dataclass(eq=False, repr=False)
class FileImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Labelled pictures in files, as a map-style data set; a process holds their names only."""

    name: str  # what messages call it
    root: Path
    paths: NDArray[np.bytes_]  # [N], below `root`: one block of memory, which workers share
    labels: Tensor  # int64 [N]
    size: int  # pixels a side of what is read
    _: KW_ONLY
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0  # part of the largest square in the middle
    pixels: NDArray[np.uint8] | None = None  # [N, size, size, 3] where they were decoded before
    read: Callable[[int], bytes] | None = None  # of pictures that are no files of their own

    __repr__ = described

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the square of picture `index` as uint8 [3, size, size], and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} pictures, no number {index}")
        pixels = self.pixels[index].copy() if self.pixels is not None else self._decoded(index)
        return torch.from_numpy(pixels).permute(2, 0, 1), int(self.labels[index])

    def opened(self, index: int) -> Any:
        """Return the whole picture `index` of PIL, not decoded yet, for an augmentation that crops.

        It is that of the file also where squares are kept decoded, which lack its sides.
        """
        data = None if self.read is None else self.read(index)
        return open_picture(self.root / os.fsdecode(self.paths[index]), data)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        return square(self.opened(index), self.size, 3, self.crop)


def map_pixels(data: FileImages, folder: Path) -> NDArray[np.uint8] | None:
    """Decode all pictures of a set into a file of `folder`, once, and map it.

    Every process that maps it shares the same memory. A file that was damaged, or whose pictures
    changed, is made again; where the folder cannot be written, a warning says so.

    Returns:
        uint8 ``[N, size, size, 3]``, or None.
    """
    import PIL

    state = [data.size, data.crop, len(data), PIL.__version__, sha256_of(__file__)]
    digest = hashlib.sha256(json.dumps(state).encode())
    for path in data.paths:
        found = os.stat(data.root / os.fsdecode(path))
        digest.update(b"%b %d %d\n" % (path, found.st_size, found.st_mtime_ns))
    shape = (len(data), data.size, data.size, 3)
    file, count = folder / f"{digest.hexdigest()[:20]}.u8", int(np.prod(shape))
    if (kept := _mapped(file, shape, count)) is not None:
        return kept
    try:
        sweep_files(folder.glob(".*.tmp-*"))
        log.info("%s: decoding %d pictures into %s", data.name, len(data), file)
        with building(file) as out:
            checksum = 0
            for index in range(len(data)):
                pixels = data._decoded(index).tobytes()
                checksum = zlib.crc32(pixels, checksum)
                out.write(pixels)
            out.write(checksum.to_bytes(_TAIL, "little"))
    except OSError as fault:
        log.warning(
            "%s: pictures are decoded each time: %s: %s (%s bytes free)",
            data.name, folder, fault.strerror or fault, free_bytes(folder),
        )  # fmt: skip
        return None
    return _mapped(file, shape, count)


def _mapped(path: Path, shape: tuple[int, ...], count: int) -> NDArray[np.uint8] | None:
    if not path.is_file() or path.stat().st_size != count + _TAIL:
        return None
    whole = np.memmap(path, np.uint8, mode="r")
    if zlib.crc32(whole[:count].data) != int.from_bytes(whole[count:].tobytes(), "little"):
        log.warning("%s is damaged: it is made again", name_of(path))
        return None
    return whole[:count].reshape(shape)
