"""N-Caltech101: the pictures of Caltech101 on a screen, recorded by an ATIS camera in saccades.

Source: G. Orchard et al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using
Saccades", Frontiers in Neuroscience 9:437, 2015; address and md5 sum as in tonic.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spikeformer_lt.events import EventDataOptions, FileReader, Sensor, Source, event_splits
from spikeformer_lt.events.split import (
    accept,
    check_counts,
    class_samples,
    cut,
    find_folder,
    first_of_each_class,
    scan,
)
from spikeformer_lt.published import Archive, provide, unpack
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import Splits, takes

NUM_CLASSES = 101
COUNT = 8709
_INNER = "Caltech101.zip"
ARCHIVE = Archive(
    *("N-Caltech101-archive.zip", 0, "66201824eabb0239c7ab992480b50ba3"),
    url="https://data.mendeley.com/public-files/datasets/cy6cvx3ryv/files/"
    "36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
    page="https://www.garrickorchard.com/datasets/n-caltech101",
    at_most=8_000_000_000,
    unpacked=16_000_000_000,
    members=40_000,
    into="NCALTECH101",
)


@register_dataset
@takes(EventDataOptions)
def ncaltech101(options: EventDataOptions) -> Splits:
    """N-Caltech101: 8,709 recordings of 101 classes, up to 180 x 240 pixels.

    There is no published split: of each class, sorted by path, the first 90 % are to train and
    validate and the rest to test. `root` holds ``Caltech101`` or the archive (4 GB). Recordings are
    scaled down to fit, all by one factor, and put into the middle.
    """
    archive = ARCHIVE
    if (Path(options.root) / _INNER).is_file():  # spikingjelly knows the same file by this name
        archive = replace(ARCHIVE, name=_INNER)

    def find() -> Path | None:
        outer = find_folder(options.root, (archive.into,))
        if outer is not None and find_folder(options.root, ("Caltech101",)) is None:
            for inner in sorted(outer.rglob(_INNER)):  # the published zip holds a zip
                unpack(inner, outer, max_bytes=archive.unpacked, max_members=archive.members)
        return find_folder(options.root, ("Caltech101",))

    home = provide("ncaltech101", options.root, options.download, find, archives=[archive])
    classes = sorted({path.split("/")[0] for path in scan(home, (".bin",))})
    samples = class_samples(home, (".bin",), classes)
    incomplete = options.events.incomplete
    if len(classes) != NUM_CLASSES:
        accept(f"ncaltech101 has {len(classes)} classes of {NUM_CLASSES}", incomplete)
    check_counts("ncaltech101", samples, classes, COUNT, incomplete)
    parts = first_of_each_class(samples, 0.9)
    split = cut("ncaltech101", classes, *parts, options.val_fraction)
    source = Source(FileReader(home, "bin"), Sensor(180, 240), root=home)
    return event_splits(split, source, options)
