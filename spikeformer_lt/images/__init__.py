"""Images: in memory, split, augmented, mixed and loaded."""

from typing import TYPE_CHECKING

from spikeformer_lt.runtime import lazy

__all__ = [
    "ArrayImages", "Augment", "DataOptions", "ImageDataset", "Loader", "Mixing", "Splits",
    "eval_loader", "hashed_subset", "hashed_validation", "make_splits", "normalize", "read_batch",
    "shared_images", "split_sha256", "steps_per_epoch", "takes", "train_loader",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.images.augment import Augment, Mixing, normalize
    from spikeformer_lt.images.files import read_batch
    from spikeformer_lt.images.loader import (
        ArrayImages,
        Loader,
        eval_loader,
        steps_per_epoch,
        train_loader,
    )
    from spikeformer_lt.images.splits import (
        hashed_subset,
        hashed_validation,
        make_splits,
        shared_images,
        split_sha256,
    )
    from spikeformer_lt.splits import DataOptions, ImageDataset, Splits, takes
else:
    __getattr__, __dir__ = lazy(__name__)
