"""Fashion-MNIST, read from the files that its authors publish.

Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747; md5 sums and addresses are those of
https://github.com/zalandoresearch/fashion-mnist, sizes and sha256 sums of TensorFlow Datasets.
Mean and deviation are the customary ones of the training images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.errors import DataError
from spikeformer_lt.images.arrays import ArrayImages
from spikeformer_lt.images.files import LooseFiles, PublishedFile, check_size, provide, read_idx
from spikeformer_lt.images.splits import VAL_FRACTION, Splits, make_splits
from spikeformer_lt.registry import register_dataset

SIDE = 28  # pixels
SIZES = (SIDE, 32)  # enlarged to 32 as the ECCV 2022 paper's code does
FASHION = LooseFiles(
    folder="fashion-mnist",
    url="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    train=(
        PublishedFile(
            "train-images-idx3-ubyte.gz",
            26_421_880,
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        PublishedFile(
            "train-labels-idx1-ubyte.gz",
            29_515,
            "25c81989df183df01b3e8a0aad5dffbe",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
    ),
    test=(
        PublishedFile(
            "t10k-images-idx3-ubyte.gz",
            4_422_102,
            "bef4ecab320f06d8554ea6380940ec79",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        PublishedFile(
            "t10k-labels-idx1-ubyte.gz",
            5_148,
            "bb300cfdad3c16e7a12a480ee83cd310",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
)
MEAN, STD = (0.2860,), (0.3530,)
_CHUNK = 4096  # images that are enlarged at a time


@register_dataset
def fashion_mnist(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
) -> Splits:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grey pixels, 10 classes.

    Args:
        root: folder that holds ``fashion-mnist`` with the four files.
        download: fetch the files (31 MB) that are missing.
        image_size: 28 (or None), or 32, enlarged bilinearly.
        val_fraction: part of each class of the training images that is validation.
        limit_train: images to train on, classes in proportion; None is all.
        limit_test: images to test on, classes in proportion; None is all.
        duplicates: "report" or "refuse" images that two parts share.

    Raises:
        ConfigError: an option out of range.
        DataError: files are missing, differ from the published ones, or do not belong together.
    """
    size = check_size("fashion_mnist", image_size, SIZES)
    folder = provide("fashion_mnist", FASHION, root, download)
    pool = _read("fashion_mnist train", folder, FASHION.train, size)
    test = _read("fashion_mnist test", folder, FASHION.test, size)
    return make_splits(
        "fashion_mnist",
        pool,
        test,
        val_fraction=val_fraction,
        limit_train=limit_train,
        limit_test=limit_test,
        duplicates=duplicates,
        augment="crop4_flip",
    )


def _read(name: str, folder: Path, parts: tuple[PublishedFile, ...], size: int) -> ArrayImages:
    images, labels = (
        read_idx(folder / part.name, md5=part.md5, sha256=part.sha256, dims=dims)
        for part, dims in zip(parts, (3, 1), strict=True)
    )
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels):
        raise DataError(
            f"{folder / parts[0].name} holds images {list(images.shape)} and {parts[1].name} "
            f"{len(labels)} labels; needed are [N, {SIDE}, {SIDE}] and N"
        )
    return ArrayImages(
        name,
        enlarge(images[:, None], size),
        labels.to(torch.int64),
        num_classes=10,
        mean=MEAN,
        std=STD,
    )


def enlarge(images: Tensor, size: int) -> Tensor:
    """Return uint8 ``[N, 1, 28, 28]`` as uint8 ``[N, 1, size, size]``, bilinearly."""
    if size == images.shape[-1]:
        return images
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", align_corners=False)
        for part in images.split(_CHUNK)
    ]
    return torch.cat([part.round().to(torch.uint8) for part in parts])
