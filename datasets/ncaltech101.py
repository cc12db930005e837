"""N-Caltech101: the pictures of Caltech101 on a screen, recorded by an ATIS camera in saccades.

Source: G. Orchard et al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using
Saccades", Frontiers in Neuroscience 9:437, 2015; address and md5 sum as in tonic.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spikeformer_lt.events.dataset import Source, split_fields
from spikeformer_lt.events.formats import FileReader
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.events.recording import Sensor
from spikeformer_lt.events.split import (
    Sample,
    Split,
    accept,
    check_counts,
    find_folder,
    first_of_each_class,
    hold_out,
    scan,
)
from spikeformer_lt.images.splits import VAL_FRACTION, Splits
from spikeformer_lt.published import Archive, provide, unpack
from spikeformer_lt.registry import register_dataset

NUM_CLASSES = 101
COUNT = 8709
_TRAIN_FRACTION = 0.9
_FOLDER = "Caltech101"
_INNER = "Caltech101.zip"
ARCHIVE = Archive(
    name="N-Caltech101-archive.zip",
    url="https://data.mendeley.com/public-files/datasets/cy6cvx3ryv/files/"
    "36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
    md5="66201824eabb0239c7ab992480b50ba3",
    page="https://www.garrickorchard.com/datasets/n-caltech101",
    at_most=8_000_000_000,
    unpacked=16_000_000_000,
    members=40_000,
    into="NCALTECH101",
)


@register_dataset
def ncaltech101(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
    events: EventOptions | None = None,
) -> Splits:
    """N-Caltech101: 8,709 recordings of 101 classes, up to 180 x 240 pixels.

    There is no published split: of each class, sorted by path, the first 90 % are to train and
    validate and the rest to test.

    Args:
        root: folder that holds ``Caltech101`` or the archive.
        download: fetch the archive (4 GB) if it is missing.
        image_size: side of a frame in pixels; None is 240. Recordings are scaled down to fit, all
            by one factor, and put into the middle.
        val_fraction: part of each class of the training recordings that is validation.
        limit_train: recordings to train on, classes in proportion; None is all.
        limit_test: recordings to test on, classes in proportion; None is all.
        duplicates: "report" or "refuse" recordings that two parts share.
        events: framing, faults and cache; see `EventOptions`.

    Raises:
        ConfigError: an option out of range.
        DataError: files are missing, damaged or not the published ones.
    """
    options = events or EventOptions()
    archive = ARCHIVE
    if (Path(root) / _INNER).is_file():  # spikingjelly knows the same file by this name
        archive = replace(ARCHIVE, name=_INNER)
    provide("ncaltech101", [archive], root, download, lambda: _home(root, archive) is not None)
    home = _home(root, archive)
    assert home is not None
    classes, samples = _samples(home, options)
    pool, test = first_of_each_class(samples, _TRAIN_FRACTION)
    train, val = hold_out("ncaltech101", pool, val_fraction)
    return Splits(
        **split_fields(
            Split("ncaltech101", classes, tuple(train), tuple(val), tuple(test)),
            Source(FileReader(home, "bin"), Sensor(180, 240), root=home),
            options,
            image_size=image_size,
            limit_train=limit_train,
            limit_test=limit_test,
            duplicates=duplicates,
        )
    )


def _home(root: str, archive: Archive) -> Path | None:
    """Return the folder of the classes; the zip inside the published zip is unpacked for it."""
    found = find_folder(root, (_FOLDER,))
    outer = find_folder(root, (archive.into,))
    if found is None and outer is not None:
        for inner in sorted(outer.rglob(_INNER)):
            unpack(inner, outer, archive.unpacked, archive.members)
        found = find_folder(root, (_FOLDER,))
    return found


def _samples(home: Path, options: EventOptions) -> tuple[tuple[str, ...], list[Sample]]:
    paths = scan(home, (".bin",))
    classes = tuple(sorted({path.split("/")[0] for path in paths}))
    labels = {name: label for label, name in enumerate(classes)}
    samples = [Sample(path, label=labels[path.split("/")[0]]) for path in paths]
    fault = check_counts("ncaltech101", samples, classes, COUNT)
    if len(classes) != NUM_CLASSES:
        fault = f"ncaltech101 has {len(classes)} classes of {NUM_CLASSES}"
    accept(fault, options.incomplete)
    return classes, samples
