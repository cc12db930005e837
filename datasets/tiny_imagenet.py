"""Tiny-ImageNet, read from the folder or the zip that its authors publish.

Source: Stanford's course CS231n, 200 classes of ImageNet (Russakovsky et al., arXiv 1409.0575); the
md5 sum is the one that readers of the set agree on. Mean and deviation are the customary ones of
the training images.
"""

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

from spikeformer_lt.errors import DataError, name_of, shown
from spikeformer_lt.images.files import ImageFiles, Labelled
from spikeformer_lt.published import Archive, check_file
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}(\.JPEG)?")  # of classes and pictures: no path, no dots


@dataclass(frozen=True, kw_only=True)
class PictureFolders(ImageFiles):
    """A zip of one JPEG file an image, such as Tiny-ImageNet's.

    The folder's ``wnids.txt`` names the classes, ``train/CLASS/images/*.JPEG`` are the training
    pictures, and ``val/val_annotations.txt`` names those of ``val/images`` that are the test.
    Single pictures have no published hashes: each is compared with the checksum in the zip while
    that lies beside the folder, else a warning says that only names, numbers and sizes were.
    """

    per_class: int  # training pictures of each class
    test_count: int  # labelled test pictures

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder holds the list of classes."""
        return (folder / "wnids.txt").is_file()

    def read(self, folder: Path, size: int) -> tuple[Labelled, Labelled]:
        """Read the pictures, class by class in the order of names; see `ImageFiles.read`."""
        assert self.archive is not None
        sums = _checksums(self.folder, self.archive, folder)
        reader = _PictureReader(self, self.archive.name, folder, sums)
        classes = reader.classes()
        train = [path for wnid in classes for path in reader.train(wnid)]
        labels = torch.arange(self.num_classes).repeat_interleave(self.per_class)
        held, held_labels = reader.annotated(classes)
        return (reader.pixels(train, size), labels), (reader.pixels(held, size), held_labels)

    def names(self, folder: Path) -> tuple[str, ...]:
        """Return the folders' names: numbers of WordNet."""
        return tuple(_PictureReader(self, "", folder, None).classes())


def _checksums(start: str, archive: Archive, folder: Path) -> dict[str, int] | None:
    """Return {path below the folder: CRC-32}, or None where there is no zip."""
    path = folder.parent / archive.name
    if not path.is_file():
        log.warning(
            "%s: pictures are not compared with the published ones; with %s beside it they are",
            name_of(folder), archive.name,
        )  # fmt: skip
        return None
    check_file(path, md5=archive.md5, sha256=archive.sha256)
    try:
        with zipfile.ZipFile(path) as packed:
            members = packed.infolist()
    except zipfile.BadZipFile as fault:
        raise DataError(f"{path} is not a whole zip archive: {shown(str(fault))}") from fault
    start += "/"
    return {m.filename.removeprefix(start): m.CRC for m in members if m.filename.startswith(start)}


@dataclass(frozen=True)
class _PictureReader:
    """Reads the files of one set, each after its checksum."""

    files: PictureFolders
    archive: str
    folder: Path
    sums: Mapping[str, int] | None  # by path below the folder, CRC-32; None without the zip

    def read(self, place: str) -> bytes:
        """Bytes of the file at a path below the folder."""
        where = name_of(self.folder / place)
        try:
            data = (self.folder / place).read_bytes()
        except OSError as fault:
            raise DataError(f"cannot read {where}: {fault.strerror or fault}") from fault
        if self.sums is not None and self.sums.get(place) != zlib.crc32(data):
            state = "differs from" if place in self.sums else "is not in"
            raise DataError(f"{where} {state} the published {self.archive}: not used")
        return data

    def lines(self, place: str, count: int) -> list[str]:
        """The lines of a text file, which must be `count`."""
        text = self.read(place).decode("ascii", errors="replace")
        found = [line.strip("\r") for line in text.split("\n") if line.strip()]
        if len(found) != count:
            where = name_of(self.folder / place)
            raise DataError(f"{where} has {len(found)} lines; needed are {count}")
        return found

    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        count = self.files.num_classes
        names = sorted(set(self.lines("wnids.txt", count)))
        if len(names) != count or not all(map(_NAME.fullmatch, names)):
            raise DataError(f"{self.folder / 'wnids.txt'} does not name each class once")
        return names

    def train(self, wnid: str) -> list[str]:
        """Paths of a class's pictures; numbers in their names count up."""
        place, count = f"train/{wnid}/images", self.files.per_class
        found = (path.name for path in (self.folder / place).glob("*.JPEG"))
        names = sorted(found, key=lambda name: (len(name), name))
        if len(names) != count:
            raise DataError(
                f"{name_of(self.folder / place)} holds {len(names)} pictures (*.JPEG); needed are "
                f"{count}: unpack {self.archive} again"
            )
        return [f"{place}/{name}" for name in names]

    def annotated(self, classes: Sequence[str]) -> tuple[list[str], Tensor]:
        """Paths and labels of the pictures that the annotations name."""
        source = "val/val_annotations.txt"
        places: dict[str, int] = {}
        for count, line in enumerate(self.lines(source, self.files.test_count), start=1):
            picture, wnid = [*line.split("\t"), "", ""][:2]
            place = f"val/images/{picture}"
            if not _NAME.fullmatch(picture) or wnid not in classes or place in places:
                raise DataError(
                    f"{name_of(self.folder / source)}: line {count} is {shown(line, 80)}; "
                    "needed are a picture, once, and a class of wnids.txt"
                )
            places[place] = classes.index(wnid)
        return list(places), torch.tensor(list(places.values()), dtype=torch.int64)

    def pixels(self, places: Sequence[str], side: int) -> Tensor:
        """Pictures as uint8 ``[N, 3, side, side]``; grey ones have three equal channels."""
        from PIL import Image

        out = torch.empty(len(places), 3, side, side, dtype=torch.uint8)
        for number, place in enumerate(places):
            data, where = self.read(place), name_of(self.folder / place)
            try:
                with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
                    size = picture.size
                    if size == (side, side):  # only then is it decoded
                        rgb = np.array(picture.convert("RGB"))
                        out[number] = torch.from_numpy(rgb).permute(2, 0, 1)
            except Exception as fault:
                raise DataError(f"{where} is no whole JPEG picture: {shown(str(fault))}") from fault
            if size != (side, side):
                raise DataError(
                    f"{where} has {size[0]} x {size[1]} pixels; needed are {side} x {side}"
                )
        return out


TINY = PictureFolders(
    name="tiny_imagenet",
    folder="tiny-imagenet-200",
    archive=Archive(
        *("tiny-imagenet-200.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"),
        url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
        unpacked=1_000_000_000,
        members=330_000,
    ),
    num_classes=200,
    per_class=500,
    test_count=10_000,
    sizes=(64,),
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    augment="crop8_flip",
)


@register_dataset
@takes(DataOptions)
def tiny_imagenet(options: DataOptions) -> Splits:
    """Tiny-ImageNet: 100,000 training and 10,000 test images of 64 x 64 RGB pixels, 200 classes.

    The labels of its own test set were never published: the test set here is what its authors call
    validation, and the validation part is cut from the training images, as for every set. Images
    are held as bytes, 1.4 GB, twice that while they are split.

    `root` holds ``tiny-imagenet-200`` or its zip (248 MB).
    """
    return TINY.splits(options)
