"""Sets that users made: folders of recordings and folders of pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spikeformer_lt.config import check, check_fields
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.events.frame import EventDataOptions
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

if TYPE_CHECKING:
    from spikeformer_lt.events.split import Sample

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training pictures


@dataclass(frozen=True)
class FolderConfig:
    """A folder for each class, or a table."""

    table: str = ""
    """CSV file in the root with the columns path, label and, if you like, person and part; empty
    takes labels.csv where it is there, else folders are classes."""
    test_fraction: float = 0.2
    """Part of the files that is the test where the set has none, class by class or whole persons,
    in (0, 1)."""

    def __post_init__(self) -> None:
        check_fields(self, test_fraction="(0, 1)")


@dataclass(frozen=True)
class PictureConfig(FolderConfig):
    """Pictures in folders."""

    keep_mb: int = 2048
    """MB that the pictures may take decoded, in a file under the root that all processes map;
    larger sets, or all with 0, are decoded each time they are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, keep_mb=0)


@register_dataset("event_folder", FolderConfig)
@takes(EventDataOptions, FolderConfig)
def event_folder(options: EventDataOptions, config: FolderConfig) -> Splits:
    """Recordings in a folder for each class, of any form that is read and any camera.

    `root` holds ``CLASS/*``, or ``train/CLASS/*`` and ``test/CLASS/*``, or a table. The camera's
    rows and columns are ``--data.sensor``; frames are its longer side, or `image_size`.
    """
    from spikeformer_lt.events.dataset import Source, event_splits
    from spikeformer_lt.events.formats import SUFFIXES, TABLE_ENDS, FileReader
    from spikeformer_lt.events.recording import Sensor
    from spikeformer_lt.events.split import find_copies, labelled_files, parted

    root = Path(options.root)
    if options.events.sensor is None:
        raise ConfigError(
            "data.sensor is missing: rows and columns of the camera, as 128x128; the largest "
            f"coordinates are told by: python -m spikeformer_lt.events check {root}"
        )
    classes, parts = labelled_files(root, SUFFIXES, config.table)
    paths = sorted({file.path for part in parts.values() for file in part})
    takes_it = any(Path(path).suffix.lower() in TABLE_ENDS for path in paths)
    for name in ("unit", "columns"):
        given, rule = getattr(options.events, name), "these files say that themselves; leave it out"
        check(takes_it or given is None, name, given, rule)
    copies = find_copies(root, paths)
    how = (options.val_fraction, config.test_fraction, copies)
    split = parted("event_folder", classes, parts, *how)
    sensor = Sensor.parse(options.events.sensor)
    source = Source(FileReader(root, "auto"), sensor, root=root)
    return event_splits(split, source, options, copies=copies)


@register_dataset("image_folder", PictureConfig)
@takes(DataOptions, PictureConfig)
def image_folder(options: DataOptions, config: PictureConfig) -> Splits:
    """Pictures in a folder for each class, of any form that Pillow reads, scaled to a square.

    `root` holds ``CLASS/*``, or ``train/CLASS/*`` and ``test/CLASS/*``, or a table. Without
    `image_size` it is the shorter side of the first picture, 224 pixels at most.
    """
    return picture_splits("image_folder", Path(options.root), options, config)


Found = tuple[tuple[str, ...], dict[str, list["Sample"]]]  # classes, and by part the pictures


def picture_splits(
    name: str,
    root: Path,
    options: DataOptions,
    config: PictureConfig,
    *,
    found: Found | None = None,
    shards: Any = None,
    crop: float = 1.0,
    **facts: Any,
) -> Splits:
    """Make the three parts of pictures, those that lie below `root` or those `found` in shards.

    `shards` have a ``reader`` and ``marks``, as `imagenet.Shards`; `facts` go to `Splits`.
    """
    import torch

    from spikeformer_lt.events.split import (
        PARTS,
        find_copies,
        labelled_files,
        limited,
        pairs_apart,
        parted,
        report_apart,
    )
    from spikeformer_lt.images.folders import SUFFIXES, FileImages, map_pixels, open_picture
    from spikeformer_lt.preprocess import Preprocess

    classes, parts = found or labelled_files(root, SUFFIXES, config.table)
    look, marks = name != "imagenet" or options.duplicates == "refuse", shards and shards.marks()
    every = sorted({sample.path for part in parts.values() for sample in part} if look else ())
    copies = find_copies(root, every, *(marks or ()))
    split = parted(name, classes, parts, options.val_fraction, config.test_fraction, copies)
    split = limited(split, options.limit_train, options.limit_test)
    samples = {part: getattr(split, part) for part in PARTS}
    size = options.image_size
    if size is None:
        first = min(sample.path for part in parts.values() for sample in part)
        size = min(224, *open_picture(root / first).size)
    check(1 <= size <= 4096, "image_size", size, "1 to 4096 pixels")
    report_apart(name, "pictures", pairs_apart(copies, samples), samples, options.duplicates)
    made = {}
    everything = 0 if config.keep_mb == 0 else sum(map(len, samples.values())) * size * size * 3
    for part, own in samples.items():
        labels = torch.tensor([sample.label for sample in own], dtype=torch.int64)
        told: Any = {"classes": classes, "mean": _MEAN, "std": _STD, "crop": crop}
        paths = np.array([os.fsencode(sample.path) for sample in own], np.bytes_)
        told["read"] = shards.reader(paths) if shards else None
        data = FileImages(f"{name} {part}", root, paths, labels, size, **told)
        if 0 < everything <= config.keep_mb << 20 and own:
            data = replace(data, pixels=map_pixels(data, root / ".images"))
        made[part] = data
    return Splits(
        name, made["train"], made["val"], made["test"],
        num_classes=len(classes), in_channels=3, image_size=size, mean=_MEAN, std=_STD,
        kind="static", split_sha256=split.sha256,
        preprocess=Preprocess("RGB", size, _MEAN, _STD, classes, crop=crop), **facts,
    )  # fmt: skip
