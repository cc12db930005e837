"""Sets that are published as a zip of one picture file an image, such as Tiny-ImageNet."""

from __future__ import annotations

import io
import logging
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt import fetch
from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.images.arrays import ArrayImages
from spikeformer_lt.images.batch_files import PublishedFile
from spikeformer_lt.unzip import extract_zip

_log = logging.getLogger(__name__)
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
        _unpack(name, files, root, archive, download)
    sums = _checksums(files, archive)
    if sums is None:
        _log.warning(
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


def _unpack(name: str, files: FolderFiles, root: Path, archive: Path, download: bool) -> None:
    published = files.archive
    if archive.is_file():
        fetch.check_file(archive, md5=published.md5, sha256=published.sha256)
    elif download:
        fetch.download(
            files.url, archive, md5=published.md5, size=published.size, sha256=published.sha256
        )
    else:
        raise DataError(
            f"{name} is not in {shown(str(root.absolute()), 300)}. Put there the archive "
            f"{published.name} ({published.size} bytes, md5 {published.md5}, from {files.url}) or "
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
    fetch.check_file(archive, md5=files.archive.md5, sha256=files.archive.sha256)
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
