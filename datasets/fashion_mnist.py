"""Fashion-MNIST, read from the files that its authors publish.

Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747; md5 sums and addresses are those of
https://github.com/zalandoresearch/fashion-mnist, sizes and sha256 sums of TensorFlow Datasets.
Mean and deviation are the customary ones of the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.errors import DataError
from spikeformer_lt.images.files import ImageFiles, Labelled, read_idx
from spikeformer_lt.published import PublishedFile
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

_CHUNK = 4096  # images that are enlarged at a time


@dataclass(frozen=True, kw_only=True)
class _IdxFiles(ImageFiles):
    """A file of images and one of labels for each part."""

    def read_part(self, folder: Path, files: Sequence[PublishedFile], size: int) -> Labelled:
        """Read images and labels; the images are enlarged to `size`."""
        images, labels = (
            read_idx(folder / file.name, md5=file.md5, sha256=file.sha256, dims=dims)
            for file, dims in zip(files, (3, 1), strict=True)
        )
        side = self.sizes[0]
        if images.shape[1:] != (side, side) or len(images) != len(labels):
            raise DataError(
                f"{folder / files[0].name} holds images {list(images.shape)} and {files[1].name} "
                f"{len(labels)} labels; needed are [N, {side}, {side}] and N"
            )
        return enlarge(images[:, None], size), labels.to(torch.int64)


def enlarge(images: Tensor, size: int) -> Tensor:
    """Return uint8 ``[N, 1, 28, 28]`` as uint8 ``[N, 1, size, size]``, bilinearly."""
    if size == images.shape[-1]:
        return images
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear").round().to(torch.uint8)
        for part in images.split(_CHUNK)
    ]
    return torch.cat(parts)


_CLASSES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
# fmt: off
_FILES = tuple(
    PublishedFile(name, size, md5, sha256, f"{_URL}{name}")
    for name, size, md5, sha256 in (
        ("train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
         "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe",
         "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79",
         "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310",
         "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    )
)
# fmt: on
FASHION = _IdxFiles(
    name="fashion_mnist",
    folder="fashion-mnist",
    train=_FILES[:2],
    test=_FILES[2:],
    sizes=(28, 32),  # enlarged to 32 as the code of the ECCV 2022 paper does
    num_classes=10,
    mean=(0.2860,),
    std=(0.3530,),
    augment="crop4_flip",
    classes=tuple(_CLASSES.split(", ")),
)


@register_dataset
@takes(DataOptions)
def fashion_mnist(options: DataOptions) -> Splits:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grey pixels, 10 classes.

    `root` holds ``fashion-mnist`` with the four files (31 MB); `image_size` 32 enlarges the images
    bilinearly.
    """
    return FASHION.splits(options)
