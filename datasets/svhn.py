"""SVHN, cropped digits, read from the MATLAB files that its authors publish.

Source: Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning",
NIPS workshop 2011; md5 sums are those of torchvision's reader, sizes and sha256 sums those of
TensorFlow Datasets. Mean and deviation are the customary ones of the training images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from spikeformer_lt.errors import DataError, name_of, shown
from spikeformer_lt.images.files import ImageFiles, Labelled
from spikeformer_lt.published import PublishedFile
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class _MatlabFiles(ImageFiles):
    """A MATLAB file of pixels X and labels y for each part."""

    def read_part(self, folder: Path, files: Sequence[PublishedFile], size: int) -> Labelled:
        """Read the one file of a part."""
        from scipy.io import loadmat

        (file,) = files
        where = name_of(folder / file.name)
        data = io.BytesIO(file.read(folder))
        try:  # a reader of numbers: nothing in the file can name code
            found = loadmat(data, variable_names=("X", "y"))
        except Exception as fault:
            raise DataError(f"{where} is not a MATLAB file: {shown(str(fault))}") from fault
        pixels, labels = np.asarray(found.get("X")), np.asarray(found.get("y"))
        *sides, count = pixels.shape or (0,)
        if pixels.dtype != np.uint8 or sides != [size, size, 3]:
            raise DataError(f"{where}: 'X' is no uint8 array [{size}, {size}, 3, N]")
        if labels.dtype.kind not in "ui" or labels.shape != (count, 1):
            raise DataError(f"{where}: 'y' is no array of {count} whole numbers, one a row")
        classes = labels[:, 0].astype(np.int64)
        strange = np.flatnonzero((classes < 1) | (classes > _CLASSES))
        if strange.size:
            first = f"label {classes[strange[0]]} at index {strange[0]}"
            raise DataError(f"{where}: {first} is outside 1 to {_CLASSES}")
        images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
        return torch.from_numpy(images), torch.from_numpy(classes % _CLASSES)


_URL = "https://ufldl.stanford.edu/housenumbers/"
# fmt: off
SVHN = _MatlabFiles(
    name="svhn",
    folder="svhn",
    train=(
        PublishedFile("train_32x32.mat", 182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373",
                      "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                      f"{_URL}train_32x32.mat"),
    ),
    test=(
        PublishedFile("test_32x32.mat", 64_275_384, "eb5a983be6a315427106f1b164d9cef3",
                      "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                      f"{_URL}test_32x32.mat"),
    ),
    sizes=(32,),
    num_classes=_CLASSES,
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    augment="crop4",
)
# fmt: on


@register_dataset
@takes(DataOptions)
def svhn(options: DataOptions) -> Splits:
    """SVHN: 73,257 training and 26,032 test images of 32 x 32 RGB pixels, 10 classes.

    The class of a digit is the digit: the files' own label of a zero, 10, is read as 0. The
    published augmentation of the ECCV 2022 paper, ``--data.augment crop4_flip``, mirrors digits.

    `root` holds ``svhn`` with the two files (246 MB).
    """
    return replace(SVHN.splits(options), mirror_changes_label=True)
