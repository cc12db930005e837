"""One batch from its keys: read, augment under the sample's own seed, put together."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.errors import DataError, shown
from spikeformer_lt.images.arrays import ArrayImages, ImageDataset
from spikeformer_lt.images.augment import normalize
from spikeformer_lt.rng import isolated_rng, seed_for

Batch = tuple[Tensor, Tensor, Tensor]
Transform = Callable[[Tensor], Tensor]
"""One training sample, as its data set gives it, to augmented and normalised float32."""
Key = tuple[int, int]  # (epoch, index)


@dataclass(frozen=True)
class Fault:
    """An error on its way out of a worker, as data, so that it is raised whole where it is read."""

    message: str


class Augmentation(Protocol):
    """What happens to training samples: `images.Augment`, or `events.EventAugment`."""

    def check(self) -> None:
        """Refuse values out of range."""

    def is_identity(self) -> bool:
        """Whether nothing random is on."""

    def build(self, mean: Sequence[float], std: Sequence[float], image_size: int) -> Transform:
        """Make the transform of one sample."""


class BatchReader:
    """Reads whole batches by their keys, in the main process or in a worker.

    Args:
        dataset: where samples come from.
        transform: augments and normalises one image, or None to normalise only.
        seed: of the run; with epoch and index it seeds the augmentation of a sample.
    """

    def __init__(self, dataset: ImageDataset, transform: Transform | None, seed: int = 0) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | Fault:
        """Return the batch of `keys`, or what went wrong with it."""
        places = torch.tensor([index for _, index in keys], dtype=torch.int64)
        try:
            if self.transform is None:
                images = normalize(self._gather(places), self.dataset.mean, self.dataset.std)
            else:
                images = self._augmented(keys, self.transform)
        except DataError as fault:
            return Fault(str(fault))
        return images, self.dataset.labels[places], places

    def _gather(self, places: Tensor) -> Tensor:
        if isinstance(self.dataset, ArrayImages):
            return self.dataset.images[places]
        return torch.stack([self._read(int(place)) for place in places])

    def _augmented(self, keys: Sequence[Key], transform: Transform) -> Tensor:
        images = []
        # Saving the three global states costs more than an augmentation: once a batch is enough.
        with isolated_rng(0):
            for epoch, index in keys:
                image = self._read(index)
                seed = seed_for(self.seed, "augment", epoch, index)
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002 (timm draws from it)
                torch.default_generator.manual_seed(seed)
                try:
                    images.append(transform(image))
                except Exception as fault:
                    raise self._fault("augment", index, fault) from fault
        return torch.stack(images)

    def _read(self, index: int) -> Tensor:
        try:
            return self.dataset[index][0]
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as fault:  # a panic of a compiled reader is not an Exception
            raise self._fault("read", index, fault) from fault

    def _fault(self, act: str, index: int, fault: BaseException) -> DataError:
        return DataError(
            f"{self.dataset.name}: cannot {act} sample {index}: {type(fault).__name__}: "
            f"{shown(str(fault), 300)}"
        )
