"""N-MNIST: the digits of MNIST on a screen, recorded by an ATIS camera that makes three saccades.

Source: G. Orchard et al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using
Saccades", Frontiers in Neuroscience 9:437, 2015; addresses and md5 sums as in tonic.
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
    hold_out,
    label_of,
    scan,
)
from spikeformer_lt.images.splits import VAL_FRACTION, Splits
from spikeformer_lt.published import Archive, provide
from spikeformer_lt.registry import register_dataset

CLASSES = tuple("0123456789")
# The counts of MNIST itself.
COUNTS = {
    "Train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "Test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
_FILES = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"
ARCHIVES = tuple(
    Archive(
        name=name,
        url=f"{_FILES}{number}/file_downloaded",
        md5=md5,
        page="https://www.garrickorchard.com/datasets/n-mnist",
        at_most=3_000_000_000,
        unpacked=6_000_000_000,
        members=70_000,
        into="NMNIST",
    )
    for name, number, md5 in (
        ("Train.zip", "39c25547-014b-4137-a934-9d29fa53c7a0", "20959b8e626244a1b502305a9e6e2031"),
        ("Test.zip", "05a4d654-7e03-4c15-bdfa-9bb2bcbea494", "69ca8762b2fe404d9b9bad1103e97832"),
    )
)


@register_dataset
def nmnist(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
    events: EventOptions | None = None,
) -> Splits:
    """N-MNIST: 60,000 recordings to train and validate, 10,000 to test, 34 x 34 pixels.

    Args:
        root: folder that holds ``NMNIST/Train`` and ``NMNIST/Test`` (or the two alone), or the
            archives Train.zip and Test.zip.
        download: fetch the archives (1.2 GB) if they are missing.
        image_size: side of a frame in pixels; None is 34. Larger frames get a margin of zeros.
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
    # tonic saves the same archives in small letters.
    archives = [
        replace(a, name=a.name.lower()) if (Path(root) / a.name.lower()).is_file() else a
        for a in ARCHIVES
    ]
    provide("nmnist", archives, root, download, lambda: _home(root) is not None)
    home = _home(root)
    assert home is not None
    parts = {part: _samples(home, part, options) for part in COUNTS}
    train, val = hold_out("nmnist", parts["Train"], val_fraction)
    return Splits(
        **split_fields(
            Split("nmnist", CLASSES, tuple(train), tuple(val), tuple(parts["Test"])),
            Source(FileReader(home, "bin"), Sensor(34, 34), root=home),
            options,
            image_size=image_size,
            limit_train=limit_train,
            limit_test=limit_test,
            duplicates=duplicates,
        )
    )


def _home(root: str) -> Path | None:
    """Return the folder that holds Train and Test, if both are there."""
    for folder in (find_folder(root, ("NMNIST", "N-MNIST")), Path(root)):
        if folder is not None and all((folder / part).is_dir() for part in COUNTS):
            return folder
    return None


def _samples(home: Path, part: str, options: EventOptions) -> list[Sample]:
    classes = {name: label for label, name in enumerate(CLASSES)}
    samples = []
    for path in scan(home / part, (".bin",)):
        label = label_of(path.split("/")[0], classes, path)
        samples.append(Sample(f"{part}/{path}", label=label))
    expected = dict(zip(CLASSES, COUNTS[part], strict=True))
    accept(check_counts(f"nmnist {part}", samples, CLASSES, expected), options.incomplete)
    return samples
