"""SVHN, cropped digits, read from the MATLAB files that its authors publish.

Source: Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning",
NIPS workshop 2011; md5 sums are those of torchvision's reader, sizes and sha256 sums those of
TensorFlow Datasets. Mean and deviation are the customary ones of the training images.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.images.arrays import ArrayImages
from spikeformer_lt.images.files import LooseFiles, PublishedFile, check_size, provide
from spikeformer_lt.images.splits import VAL_FRACTION, Splits, make_splits
from spikeformer_lt.published import read_checked
from spikeformer_lt.registry import register_dataset

SIDE = 32  # pixels
SVHN = LooseFiles(
    folder="svhn",
    url="https://ufldl.stanford.edu/housenumbers/",
    train=(
        PublishedFile(
            "train_32x32.mat",
            182_040_794,
            "e26dedcc434d2e4c54c9b2d4a06d8373",
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
    ),
    test=(
        PublishedFile(
            "test_32x32.mat",
            64_275_384,
            "eb5a983be6a315427106f1b164d9cef3",
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    ),
)
MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)


@register_dataset
def svhn(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
) -> Splits:
    """SVHN: 73,257 training and 26,032 test images of 32 x 32 RGB pixels, 10 classes.

    The class of a digit is the digit: the files' own label of a zero, 10, is read as 0. The
    published augmentation of the ECCV 2022 paper flips digits, too; ``--data.augment digits`` only
    shifts them.

    Args:
        root: folder that holds ``svhn`` with ``train_32x32.mat`` and ``test_32x32.mat``.
        download: fetch the files (246 MB) that are missing.
        image_size: 32, or None.
        val_fraction: part of each class of the training images that is validation.
        limit_train: images to train on, classes in proportion; None is all.
        limit_test: images to test on, classes in proportion; None is all.
        duplicates: "report" or "refuse" images that two parts share.

    Raises:
        ConfigError: an option out of range.
        DataError: files are missing, differ from the published ones, or hold something else than
            images and labels.
    """
    check_size("svhn", image_size, (SIDE,))
    folder = provide("svhn", SVHN, root, download)
    return make_splits(
        "svhn",
        _read("svhn train", folder, SVHN.train[0]),
        _read("svhn test", folder, SVHN.test[0]),
        val_fraction=val_fraction,
        limit_train=limit_train,
        limit_test=limit_test,
        duplicates=duplicates,
        augment="crop4_flip",
    )


def _read(name: str, folder: Path, part: PublishedFile) -> ArrayImages:
    from scipy.io import loadmat

    where = shown(str(folder / part.name), 300)
    data = read_checked(folder / part.name, md5=part.md5, sha256=part.sha256)
    try:  # a reader of numbers: nothing in the file can name code
        found = loadmat(io.BytesIO(data), variable_names=("X", "y"))
    except Exception as fault:
        raise DataError(f"{where} is not a MATLAB file: {shown(str(fault))}") from fault
    pixels, labels = found.get("X"), found.get("y")
    shape: tuple[int, ...] = getattr(pixels, "shape", ())
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or len(shape) != 4
        or shape[:3] != (SIDE, SIDE, 3)
    ):
        raise DataError(f"{where}: 'X' is no uint8 array [{SIDE}, {SIDE}, 3, N]")
    if (
        not isinstance(labels, np.ndarray)
        or labels.dtype.kind not in "ui"
        or labels.shape != (shape[3], 1)
    ):
        raise DataError(f"{where}: 'y' is no array of {shape[3]} whole numbers, one a row")
    classes = labels[:, 0].astype(np.int64)
    strange = np.flatnonzero((classes < 1) | (classes > 10))
    if strange.size:
        raise DataError(
            f"{where}: label {classes[strange[0]]} at index {strange[0]} is outside 1 to 10"
        )
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return ArrayImages(
        name,
        torch.from_numpy(images),
        torch.from_numpy(classes % 10),
        num_classes=10,
        mean=MEAN,
        std=STD,
    )
