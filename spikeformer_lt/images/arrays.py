"""Images that are held in memory."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from spikeformer_lt.errors import DataError


@dataclass(eq=False, repr=False)
class ArrayImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Labelled images in one tensor, as a map-style data set; what does not fit is a DataError."""

    name: str  # what messages call it, e.g. "cifar10 train"
    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N], each in [0, num_classes)
    _: KW_ONLY
    num_classes: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]; loaders normalise with it
    std: tuple[float, ...]  # as `mean`, above 0
    indices: Tensor = None  # type: ignore[assignment]  # int64 [N], in its source; default 0..N-1
    classes: tuple[str, ...] = ()  # names by class number; default the numbers

    def __post_init__(self) -> None:
        name, images, labels = self.name, self.images, self.labels
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            given = str(images.dtype) if torch.is_tensor(images) else type(images).__name__
            raise DataError(f"{name}: images are {given}; allowed is uint8, 0 to 255: convert them")
        count, channels = (*images.shape, 0, 0)[:2]
        if images.ndim != 4 or not images.numel() or channels not in (1, 3):
            raise DataError(
                f"{name}: images have the shape {list(images.shape)}; needed is [N, C, H, W] with "
                f"nothing empty and 3 channels (RGB) or 1 (grey), not {channels} channels: images "
                "first, then channels; drop alpha, or move channels there"
            )
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
            tensor = torch.is_tensor(labels)
            given = f"{labels.dtype} {list(labels.shape)}" if tensor else type(labels).__name__
            raise DataError(f"{name}: labels are {given}; needed is int64 [{count}]")
        if len(labels) != count:
            raise DataError(f"{name}: {len(labels)} labels for {count} images; one each is needed")
        wrong = torch.nonzero((labels < 0) | (labels >= self.num_classes)).flatten().tolist()
        if wrong:
            raise DataError(
                f"{name}: label {int(labels[wrong[0]])} at index {wrong[0]} is outside "
                f"[0, {self.num_classes}); {len(wrong)} labels are"
            )
        self.mean, self.std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        if {len(self.mean), len(self.std)} != {channels} or min(self.std) <= 0:
            raise DataError(
                f"{name}: mean {self.mean} and std {self.std} do not fit images of {channels} "
                "channels; one number a channel is needed, each std above 0"
            )
        self.classes = tuple(self.classes) or tuple(map(str, range(self.num_classes)))
        if len(self.classes) != self.num_classes:
            raise DataError(
                f"{name}: {len(self.classes)} names of classes for {self.num_classes} classes"
            )
        if self.indices is None:
            self.indices = torch.arange(count)
        if self.indices.shape != self.labels.shape or self.indices.dtype != torch.int64:
            raise DataError(f"{name}: indices must be int64 [{count}], one for each image")
        self.images, self.labels = self.images.contiguous(), self.labels.contiguous()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image `index` as uint8 [C, H, W], and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, no number {index}")
        return self.images[index], int(self.labels[index])

    def take(self, positions: Tensor, name: str | None = None) -> ArrayImages:
        """Return the images at `positions` (int64 [n]) as a data set of their own."""
        parts = {part: getattr(self, part)[positions] for part in ("images", "labels", "indices")}
        return replace(self, name=name or self.name, **parts)

    @functools.cached_property
    def digests(self) -> list[bytes]:
        """A hash of the pixels of each image, in order."""
        rows = self.images.flatten(1).numpy()
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
