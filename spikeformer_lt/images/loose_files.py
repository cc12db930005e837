"""Sets that are published as a few single files, such as SVHN: find them, or fetch them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt import fetch
from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.images.batch_files import PublishedFile


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
        fetch.download(
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
