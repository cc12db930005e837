"""The 1,797 handwritten digits that scikit-learn ships: real images that need no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998
(its test set, 8 x 8 pixels of 0 to 16), as `sklearn.datasets.load_digits` gives it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.images import ArrayImages, hashed_validation, make_splits
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

_INK = 16  # the brightest value in the source
_TEST_FRACTION = 0.2
_LARGEST = 256  # pixels a side; beyond it the set takes gigabytes and shows nothing new


@register_dataset
@takes(DataOptions)
def digits(options: DataOptions) -> Splits:
    """scikit-learn's digits as RGB images: 1,438 to train and validate, 359 to test, 10 classes.

    One fifth of each class, chosen by hashes, is the test set; it is the same for every size,
    seed and option.
    `image_size` is a multiple of 8 up to 256, by default 32; nothing is fetched.
    """
    size = 32 if options.image_size is None else options.image_size
    allowed = "digits come in multiples of 8 from 8 to 256 pixels, such as 16 or 32"
    check(size in range(8, _LARGEST + 1, 8), "image_size", size, allowed)
    from sklearn.datasets import load_digits

    source = load_digits()
    labels = torch.from_numpy(source.target).to(torch.int64)
    pixels = enlarge(torch.from_numpy(source.images), size)
    pool, held = hashed_validation("digits/test", labels, _TEST_FRACTION)
    seen = pixels[pool, 0].to(torch.float64) / 255
    mean, std = round(float(seen.mean()), 4), round(float(seen.std(correction=0)), 4)
    everything = ArrayImages(
        "digits", pixels, labels, num_classes=10, mean=(mean,) * 3, std=(std,) * 3
    )
    train, test = everything.take(pool, "digits train"), everything.take(held, "digits test")
    splits = make_splits("digits", train, test, augment="digits", **options.parts())
    return replace(splits, mirror_changes_label=True)


def enlarge(ink: Tensor, size: int) -> Tensor:
    """Return grey 8 x 8 images as RGB, bilinearly enlarged.

    Shape: real [N, 8, 8] of 0 to 16 -> uint8 [N, 3, size, size] of 0 to 255.
    """
    grey = torch.nn.functional.interpolate(
        ink.to(torch.float64)[:, None], size=(size, size), mode="bilinear", align_corners=False
    )
    return (grey * 255 / _INK).round().to(torch.uint8).repeat(1, 3, 1, 1)
