"""Images: in memory, split, augmented, mixed and loaded."""

from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy

if TYPE_CHECKING:
    from spikeformer_lt.images.arrays import ArrayImages as ArrayImages
    from spikeformer_lt.images.augment import Augment as Augment
    from spikeformer_lt.images.augment import Mixing as Mixing
    from spikeformer_lt.images.augment import normalize as normalize
    from spikeformer_lt.images.files import read_batch as read_batch
    from spikeformer_lt.images.loader import Loader as Loader
    from spikeformer_lt.images.loader import eval_loader as eval_loader
    from spikeformer_lt.images.loader import steps_per_epoch as steps_per_epoch
    from spikeformer_lt.images.loader import train_loader as train_loader
    from spikeformer_lt.images.splits import hashed_subset as hashed_subset
    from spikeformer_lt.images.splits import hashed_validation as hashed_validation
    from spikeformer_lt.images.splits import make_splits as make_splits
    from spikeformer_lt.images.splits import shared_images as shared_images
    from spikeformer_lt.images.splits import split_sha256 as split_sha256
    from spikeformer_lt.splits import DataOptions as DataOptions
    from spikeformer_lt.splits import ImageDataset as ImageDataset
    from spikeformer_lt.splits import Splits as Splits
    from spikeformer_lt.splits import takes as takes
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
