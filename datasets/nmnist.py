"""N-MNIST: the digits of MNIST on a screen, recorded by an ATIS camera that makes three saccades.

Source: G. Orchard et al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using
Saccades", Frontiers in Neuroscience 9:437, 2015; addresses and md5 sums as in tonic.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spikeformer_lt.events import EventDataOptions, FileReader, Sensor, Source, event_splits
from spikeformer_lt.events.split import check_counts, class_samples, cut, find_folder
from spikeformer_lt.published import Archive, provide
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import Splits, takes

CLASSES = tuple("0123456789")
COUNTS = {  # those of MNIST itself
    "Train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "Test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
ARCHIVES = tuple(
    Archive(
        *(name, 0, md5),
        url="https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"
        f"{number}/file_downloaded",
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
@takes(EventDataOptions)
def nmnist(options: EventDataOptions) -> Splits:
    """N-MNIST: 60,000 recordings to train and validate, 10,000 to test, 34 x 34 pixels.

    `root` holds ``NMNIST/Train`` and ``NMNIST/Test`` (or the two alone), or Train.zip and Test.zip.
    """
    root = Path(options.root)

    def find() -> Path | None:
        for folder in (find_folder(root, ("NMNIST", "N-MNIST")), root):
            if folder is not None and all((folder / part).is_dir() for part in COUNTS):
                return folder
        return None

    # tonic saves the same archives in small letters.
    archives = [
        replace(a, name=a.name.lower()) if (root / a.name.lower()).is_file() else a
        for a in ARCHIVES
    ]
    home = provide("nmnist", root, options.download, find, archives=archives)
    parts = {part: class_samples(home, (".bin",), CLASSES, part) for part in COUNTS}
    for part, counts in COUNTS.items():
        expected, incomplete = dict(zip(CLASSES, counts, strict=True)), options.events.incomplete
        check_counts(f"nmnist {part}", parts[part], CLASSES, expected, incomplete)
    split = cut("nmnist", CLASSES, parts["Train"], parts["Test"], options.val_fraction)
    source = Source(FileReader(home, "bin"), Sensor(34, 34), root=home)
    return replace(event_splits(split, source, options), mirror_changes_label=True)
