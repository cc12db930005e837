"""Tiny-ImageNet, read from the folder or the zip that its authors publish.

Source: Stanford's course CS231n, 200 classes of ImageNet (Russakovsky et al., arXiv 1409.0575); the
md5 sum is the one that readers of the set agree on. Mean and deviation are the customary ones of
the training images.
"""

from __future__ import annotations

from spikeformer_lt.images.files import FolderFiles, PublishedFile, check_size, load_folders
from spikeformer_lt.images.splits import VAL_FRACTION, Splits, make_splits
from spikeformer_lt.registry import register_dataset

TINY = FolderFiles(
    folder="tiny-imagenet-200",
    archive=PublishedFile("tiny-imagenet-200.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"),
    url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    num_classes=200,
    per_class=500,
    test=10_000,
    image_size=64,
    max_bytes=1_000_000_000,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
)


@register_dataset
def tiny_imagenet(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
) -> Splits:
    """Tiny-ImageNet: 100,000 training and 10,000 test images of 64 x 64 RGB pixels, 200 classes.

    The labels of its own test set were never published: the test set here is what its authors call
    validation, and the validation part is cut from the training images, as for every set. Images
    are held as bytes, 1.4 GB, twice that while they are split.

    Args:
        root: folder that holds ``tiny-imagenet-200`` or its zip.
        download: fetch the zip (248 MB) if neither is there.
        image_size: 64, or None.
        val_fraction: part of each class of the training images that is validation.
        limit_train: images to train on, classes in proportion; None is all.
        limit_test: images to test on, classes in proportion; None is all.
        duplicates: "report" or "refuse" images that two parts share.

    Raises:
        ConfigError: an option out of range.
        DataError: files are missing, differ from the published ones, or are no such images.
    """
    check_size("tiny_imagenet", image_size, (TINY.image_size,))
    pool, test = load_folders("tiny_imagenet", TINY, root, download)
    return make_splits(
        "tiny_imagenet",
        pool,
        test,
        val_fraction=val_fraction,
        limit_train=limit_train,
        limit_test=limit_test,
        duplicates=duplicates,
        augment="crop8_flip",
    )
