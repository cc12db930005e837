"""Tiny-ImageNet, read from the folder or the zip that its authors publish.

Source: Stanford's course CS231n, 200 classes of ImageNet (Russakovsky et al., arXiv 1409.0575); the
md5 sum is the one that readers of the set agree on. Mean and deviation are the customary ones of
the training images.
"""

from __future__ import annotations

from spikeformer_lt.images.files import PictureFolders
from spikeformer_lt.published import Archive
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

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
