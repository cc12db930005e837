"""A reader for gzipped IDX files, the form of MNIST and Fashion-MNIST.

Source of the form: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats":
two zero bytes, a byte for the type, one for the number of dimensions, each size as a big-endian
32-bit number, then the values, the last dimension running fastest.

A reader for the pickled batches of CIFAR that cannot run code.

Source: pickle's own documentation, "Restricting Globals"; the file form is that of A. Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009, and its page's "python version".

Sets that are published as a few single files, such as SVHN: find them, or fetch them.

Sets that are published as pickled batches in a tar archive, such as CIFAR: find, check, read.

Sets that are published as a zip of one picture file an image, such as Tiny-ImageNet.
"""

from __future__ import annotations

import codecs
import io
import logging
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt import published
from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.images.arrays import ArrayImages
from spikeformer_lt.published import extract_tar, extract_zip, read_checked

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


@dataclass(frozen=True)
class LooseFiles:
    """Where the files of a set lie and where they come from.

    Attributes:
        folder: folder of the files, below the root.
        url: https address of the folder they are published in, with a slash at its end.
        train: files of the training set.
        test: files of the test set.
    """

    folder: str
    url: str
    train: tuple[PublishedFile, ...]
    test: tuple[PublishedFile, ...]


def provide(name: str, files: LooseFiles, root: str | Path, download: bool) -> Path:
    """See to it that all files are there; their hashes are compared where they are read.

    Args:
        name: of the data set.
        files: what it consists of.
        root: folder that holds the set's own folder.
        download: fetch the files that are missing.

    Returns:
        The set's folder.

    Raises:
        DataError: files are missing (all are named, with size, md5 and address), or the network
            does not give them as published.
    """
    folder = Path(root) / files.folder
    missing = [file for file in files.train + files.test if not (folder / file.name).is_file()]
    if missing and not download:
        raise _not_there(name, files, Path(root), missing)
    for file in missing:
        published.download(
            files.url + file.name,
            folder / file.name,
            md5=file.md5,
            size=file.size,
            sha256=file.sha256,
        )
    return folder


def check_size(name: str, image_size: int | None, allowed: tuple[int, ...]) -> int:
    """Return the size of the images in pixels: the one asked for, else the first allowed.

    Raises:
        ConfigError: a size that the set does not come in.
    """
    if image_size is None:
        return allowed[0]
    if image_size not in allowed:
        sizes = " or ".join(str(size) for size in allowed)
        raise ConfigError(
            f"image_size={image_size} is not allowed: {name} has images of {sizes} pixels a side; "
            "use that or leave it out"
        )
    return image_size


def _not_there(name: str, files: LooseFiles, root: Path, missing: list[PublishedFile]) -> DataError:
    wanted = ", ".join(f"{file.name} ({file.size} bytes, md5 {file.md5})" for file in missing)
    hint = ""
    if any((root / file.name).is_file() for file in missing):
        hint = f" {missing[0].name} lies in the root itself: put it into {files.folder} there."
    return DataError(
        f"{name} is not in {shown(str(root.absolute()), 300)}.{hint} Put there the folder "
        f"{files.folder} with {wanted}, each from {files.url}; or allow the network with "
        "--data.download; or use what needs no files: --data.name digits"
    )


log = logging.getLogger(__name__)
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
        published.check_file(archive, md5=files.archive.md5, sha256=files.archive.sha256)
    elif download:
        published.download(
            files.url,
            archive,
            md5=files.archive.md5,
            size=files.archive.size,
            sha256=files.archive.sha256,
        )
    else:
        raise _batch_files_not_there(name, files, root, missing)
    log.info("unpacking %s", archive)
    limit = sum(file.size for file in batches) + _SLACK
    extract_tar(archive, root, max_bytes=limit, max_members=_MAX_MEMBERS)
    missing = [file for file in batches if not (root / files.folder / file.name).is_file()]
    if missing:
        raise DataError(f"{archive} does not hold {files.folder}/{missing[0].name}")


def _batch_files_not_there(
    name: str, files: BatchFiles, root: Path, missing: list[PublishedFile]
) -> DataError:
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


_NAME = re.compile(r"[A-Za-z0-9_]{1,64}(\.JPEG)?")  # of classes and pictures: no path, no dots


@dataclass(frozen=True)
class FolderFiles:
    """Where the pictures of a set lie and how many there are.

    Attributes:
        folder: folder of the set, below the root; ``wnids.txt`` in it names the classes.
        archive: the zip that holds the folder.
        url: https address of the zip.
        num_classes: number of classes.
        per_class: training pictures of each class, ``train/CLASS/images/*.JPEG``.
        test: labelled pictures of ``val/images``, by ``val/val_annotations.txt``.
        image_size: height and width of a picture, in pixels.
        max_bytes: most bytes that the zip may unpack to.
        mean: of the training pixels in [0, 1], per channel.
        std: of the training pixels in [0, 1], per channel.
    """

    folder: str
    archive: PublishedFile
    url: str
    num_classes: int
    per_class: int
    test: int
    image_size: int
    max_bytes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_folders(
    name: str, files: FolderFiles, root: str | Path = "data", download: bool = False
) -> tuple[ArrayImages, ArrayImages]:
    """Read the training and the labelled test pictures of a set, as bytes (uint8).

    Single pictures have no published hashes. While the zip lies beside the folder, its hash is
    compared, and each picture with the checksum that the zip holds of it; without the zip a warning
    says that only names, numbers and sizes were checked.

    Args:
        name: of the data set.
        files: what it consists of.
        root: folder that holds the set's folder, or its zip, which is unpacked then.
        download: fetch the zip if neither is there.

    Returns:
        All training pictures, class by class in the order of their names, and all test pictures,
        in the order of the annotations; classes are numbered in the order of their names.

    Raises:
        DataError: files are missing, differ from the published ones, or are no pictures of that
            size; the file is named.
    """
    root = Path(root)
    folder, archive = root / files.folder, root / files.archive.name
    if not (folder / "wnids.txt").is_file():
        _folder_files_unpack(name, files, root, archive, download)
    sums = _checksums(files, archive)
    if sums is None:
        log.warning(
            "%s: pictures are not compared with the published ones; with %s beside %s they are",
            name, files.archive.name, shown(str(folder), 300),
        )  # fmt: skip
    reader = _Reader(files, folder, sums)
    classes = reader.classes()
    train = [path for wnid in classes for path in reader.train(wnid)]
    labels = torch.arange(files.num_classes).repeat_interleave(files.per_class)
    held, held_labels = reader.annotated(classes)
    options = {"num_classes": files.num_classes, "mean": files.mean, "std": files.std}
    return (
        ArrayImages(f"{name} train", reader.pixels(train), labels, **options),  # type: ignore[arg-type]
        ArrayImages(f"{name} test", reader.pixels(held), held_labels, **options),  # type: ignore[arg-type]
    )


def _folder_files_unpack(
    name: str, files: FolderFiles, root: Path, archive: Path, download: bool
) -> None:
    pin = files.archive
    if archive.is_file():
        published.check_file(archive, md5=pin.md5, sha256=pin.sha256)
    elif download:
        published.download(files.url, archive, md5=pin.md5, size=pin.size, sha256=pin.sha256)
    else:
        raise DataError(
            f"{name} is not in {shown(str(root.absolute()), 300)}. Put there the archive "
            f"{pin.name} ({pin.size} bytes, md5 {pin.md5}, from {files.url}) or "
            f"the folder {files.folder} that it holds; or allow the network with --data.download; "
            "or use what needs no files: --data.name digits"
        )
    most = 3 * (files.num_classes * files.per_class + files.test)
    extract_zip(archive, root, max_bytes=files.max_bytes, max_members=most + 100)
    if not (root / files.folder / "wnids.txt").is_file():
        raise DataError(f"{archive} does not hold {files.folder}/wnids.txt")


def _checksums(files: FolderFiles, archive: Path) -> dict[str, int] | None:
    """Return {path below the folder: CRC-32}, or None where there is no zip."""
    if not archive.is_file():
        return None
    published.check_file(archive, md5=files.archive.md5, sha256=files.archive.sha256)
    start = f"{files.folder}/"
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
    except zipfile.BadZipFile as fault:
        raise DataError(f"{archive} is not a whole zip archive: {shown(str(fault))}") from fault
    return {m.filename.removeprefix(start): m.CRC for m in members if m.filename.startswith(start)}


class _Reader:
    """Reads the files of one set, each after its checksum."""

    def __init__(self, files: FolderFiles, folder: Path, sums: Mapping[str, int] | None) -> None:
        self.files, self.folder, self.sums = files, folder, sums

    def read(self, place: str) -> bytes:
        """Bytes of the file at a path below the folder."""
        where = shown(str(self.folder / place), 300)
        try:
            data = (self.folder / place).read_bytes()
        except OSError as fault:
            raise DataError(f"cannot read {where}: {fault.strerror or fault}") from fault
        if self.sums is not None and self.sums.get(place) != zlib.crc32(data):
            state = "differs from" if place in self.sums else "is not in"
            raise DataError(f"{where} {state} the published {self.files.archive.name}: not used")
        return data

    def lines(self, place: str, count: int) -> list[str]:
        """The lines of a text file, which must be `count`."""
        found = self.read(place).decode("ascii", errors="replace").split("\n")
        found = [line.strip("\r") for line in found if line.strip()]
        if len(found) != count:
            where = shown(str(self.folder / place), 300)
            raise DataError(f"{where} has {len(found)} lines; needed are {count}")
        return found

    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        names = sorted(set(self.lines("wnids.txt", self.files.num_classes)))
        if len(names) != self.files.num_classes or not all(map(_NAME.fullmatch, names)):
            raise DataError(f"{self.folder / 'wnids.txt'} does not name each class once")
        return names

    def train(self, wnid: str) -> list[str]:
        """Paths of a class's pictures; numbers in their names count up."""
        place = self.folder / "train" / wnid / "images"
        names = sorted((path.name for path in place.glob("*.JPEG")), key=lambda n: (len(n), n))
        if len(names) != self.files.per_class:
            raise DataError(
                f"{shown(str(place), 300)} holds {len(names)} pictures (*.JPEG); needed are "
                f"{self.files.per_class}: unpack {self.files.archive.name} again"
            )
        return [f"train/{wnid}/images/{name}" for name in names]

    def annotated(self, classes: Sequence[str]) -> tuple[list[str], Tensor]:
        """Paths and labels of the pictures that the annotations name."""
        numbers = {wnid: number for number, wnid in enumerate(classes)}
        source = "val/val_annotations.txt"
        places: dict[str, int] = {}
        for count, line in enumerate(self.lines(source, self.files.test), start=1):
            picture, wnid = [*line.split("\t"), "", ""][:2]
            place = f"val/images/{picture}"
            if not _NAME.fullmatch(picture) or wnid not in numbers or place in places:
                raise DataError(
                    f"{shown(str(self.folder / source), 300)}: line {count} is {shown(line, 80)}; "
                    "needed are a picture, once, and a class of wnids.txt"
                )
            places[place] = numbers[wnid]
        return list(places), torch.tensor(list(places.values()), dtype=torch.int64)

    def pixels(self, places: Sequence[str]) -> Tensor:
        """Pictures as uint8 ``[N, 3, H, W]``; grey ones have three equal channels."""
        size = self.files.image_size
        out = torch.empty(len(places), 3, size, size, dtype=torch.uint8)
        for number, place in enumerate(places):
            out[number] = torch.from_numpy(self._picture(place)).permute(2, 0, 1)
        return out

    def _picture(self, place: str) -> np.ndarray:
        from PIL import Image

        data, side = self.read(place), self.files.image_size
        where = shown(str(self.folder / place), 300)
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
                size = picture.size
                pixels = np.array(picture.convert("RGB")) if size == (side, side) else None
        except Exception as fault:
            raise DataError(f"{where} is no whole JPEG picture: {shown(str(fault))}") from fault
        if pixels is None:
            raise DataError(f"{where} has {size[0]} x {size[1]} pixels; needed are {side} x {side}")
        return pixels
