"""Sets that are published as pickled batches in a tar archive, such as CIFAR: find, check, read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt import fetch
from spikeformer_lt.archive import extract_tar
from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.images.arrays import ArrayImages
from spikeformer_lt.images.pickled import read_batch

_log = logging.getLogger(__name__)
_CHANNELS = 3
_SLACK = 16_000_000  # bytes an archive may hold beside the batches: names of classes, a readme
_MAX_MEMBERS = 100


@dataclass(frozen=True)
class PublishedFile:
    """A file as its author publishes it.

    Attributes:
        name: file name.
        size: bytes.
        md5: 32 hex digits.
        sha256: 64 hex digits, or "" where no file at hand gave it.
    """

    name: str
    size: int
    md5: str
    sha256: str = ""


@dataclass(frozen=True)
class BatchFiles:
    """Where a set of pickled batches lies and what is in it.

    Attributes:
        folder: folder of the batches, below the root.
        archive: the archive that holds the folder.
        url: https address of the archive.
        train: batches of the training set.
        test: batches of the test set.
        label_key: entry of a batch that holds the labels.
        image_size: height and width of an image, in pixels.
        num_classes: number of classes.
        mean: of the training pixels in [0, 1], per channel.
        std: of the training pixels in [0, 1], per channel.
    """

    folder: str
    archive: PublishedFile
    url: str
    train: tuple[PublishedFile, ...]
    test: tuple[PublishedFile, ...]
    label_key: str
    image_size: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_batches(
    name: str,
    files: BatchFiles,
    root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
) -> tuple[ArrayImages, ArrayImages]:
    """Read the training and the test images of a set.

    An archive found in `root` is unpacked after its hash was checked; the network is used only
    with `download`, and only if neither batches nor archive are there.

    Args:
        name: of the data set.
        files: what it consists of.
        root: folder that holds the folder of the batches, or their archive.
        download: fetch the archive if need be.
        image_size: the size of its images in pixels, or None.

    Returns:
        All training images and all test images, in file order.

    Raises:
        ConfigError: another image size.
        DataError: files are missing (all are named, with size and md5), differ from the published
            ones, or hold something else than images and labels.
    """
    if image_size not in (None, files.image_size):
        raise ConfigError(
            f"image_size={image_size} is not allowed: {name} has images of {files.image_size} x "
            f"{files.image_size} pixels; use {files.image_size} or leave it out"
        )
    root = Path(root)
    _provide(name, files, root, download)
    return (
        _read(f"{name} train", files, root, files.train),
        _read(f"{name} test", files, root, files.test),
    )


def _provide(name: str, files: BatchFiles, root: Path, download: bool) -> None:
    """See to it that all batches are there, from the archive or the network if need be."""
    batches = files.train + files.test
    missing = [file for file in batches if not (root / files.folder / file.name).is_file()]
    if not missing:
        return
    archive = root / files.archive.name
    if archive.is_file():
        fetch.check_file(archive, md5=files.archive.md5, sha256=files.archive.sha256)
    elif download:
        fetch.download(
            files.url,
            archive,
            md5=files.archive.md5,
            size=files.archive.size,
            sha256=files.archive.sha256,
        )
    else:
        raise _not_there(name, files, root, missing)
    _log.info("unpacking %s", archive)
    limit = sum(file.size for file in batches) + _SLACK
    extract_tar(archive, root, max_bytes=limit, max_members=_MAX_MEMBERS)
    missing = [file for file in batches if not (root / files.folder / file.name).is_file()]
    if missing:
        raise DataError(f"{archive} does not hold {files.folder}/{missing[0].name}")


def _not_there(name: str, files: BatchFiles, root: Path, missing: list[PublishedFile]) -> DataError:
    wanted = ", ".join(f"{file.name} ({file.size} bytes, md5 {file.md5})" for file in missing)
    hint = ""
    if any((root / file.name).is_file() for file in missing):
        hint = f" {missing[0].name} lies in the root itself: give the folder above it as the root."
    return DataError(
        f"{name} is not in {shown(str(root.absolute()), 300)}.{hint} Put there the archive "
        f"{files.archive.name} ({files.archive.size} bytes, md5 {files.archive.md5}, from "
        f"{files.url}) or the folder {files.folder} with {wanted}; or allow the network with "
        "--data.download; or use what needs no files: --data.name digits"
    )


def _read(
    name: str, files: BatchFiles, root: Path, parts: tuple[PublishedFile, ...]
) -> ArrayImages:
    images, labels = [], []
    for part in parts:
        path = root / files.folder / part.name
        batch = read_batch(path, md5=part.md5, sha256=part.sha256)
        pixels, classes = _pixels_and_labels(path, batch, files)
        images.append(pixels)
        labels.append(classes)
    return ArrayImages(
        name,
        torch.cat(images),
        torch.cat(labels),
        num_classes=files.num_classes,
        mean=files.mean,
        std=files.std,
    )


def _pixels_and_labels(
    path: Path, batch: dict[str, object], files: BatchFiles
) -> tuple[Tensor, Tensor]:
    data, labels = batch.get("data"), batch.get(files.label_key)
    size = files.image_size
    width = _CHANNELS * size * size
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (width,):
        raise DataError(f"{path}: 'data' is no uint8 array of rows of {width} pixels")
    if (
        not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(type(label) is int for label in labels)
    ):
        raise DataError(f"{path}: {files.label_key!r} is no list of {len(data)} whole numbers")
    pixels = torch.from_numpy(np.array(data)).view(-1, _CHANNELS, size, size)
    return pixels, torch.tensor(labels, dtype=torch.int64)
