"""CIFAR10-DVS: pictures of CIFAR-10 moved on a screen before a DVS128 camera.

Source: H. Li et al., "CIFAR10-DVS: An Event-Stream Dataset for Object Classification", Frontiers in
Neuroscience 11:309, 2017. Its own AEDAT 2 files (figshare 4724671; md5 sums as in spikingjelly) and
tonic's AEDAT 4 files (figshare 38023437) are both read. figshare's old download addresses answer
programs with an empty page; those of its interface, used here, serve the same files.
"""

from __future__ import annotations

import functools
from pathlib import Path

from spikeformer_lt.errors import DataError, name_of
from spikeformer_lt.events import EventDataOptions, FileReader, Sensor, Source, event_splits
from spikeformer_lt.events.split import (
    check_counts,
    class_samples,
    cut,
    find_folder,
    first_of_each_class,
)
from spikeformer_lt.published import Archive, provide, unpack
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import Splits, takes

_FIGSHARE = "https://api.figshare.com/v2/file/download/"
_FILES = {
    "airplane": (7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": (7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": (7712794, "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": (7712812, "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": (7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": (7712818, "f379ebdf6703d16e0a690782e62639c3"),
    "frog": (7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": (7712851, "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": (7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": (7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
}
CLASSES = tuple(_FILES)
PER_CLASS = 1000
ORIGINAL = tuple(
    Archive(
        *(f"{name}.zip", 0, md5),
        url=f"{_FIGSHARE}{number}",
        page="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
        at_most=3_000_000_000,
        unpacked=6_000_000_000,
        members=2000,
        into="CIFAR10DVS",
    )
    for name, (number, md5) in _FILES.items()
)
TONIC = Archive(
    *("CIFAR10DVS.zip", 0, "ce3a4a0682dc0943703bd8f749a7701c"),
    url=f"{_FIGSHARE}38023437",
    page="https://figshare.com/ndownloader/files/38023437",
    at_most=20_000_000_000,
    unpacked=20_000_000_000,
    members=100,
    into="CIFAR10DVS",
)


@register_dataset
@takes(EventDataOptions)
def cifar10_dvs(options: EventDataOptions) -> Splits:
    """CIFAR10-DVS: 9,000 recordings to train and validate, 1,000 to test, 128 x 128 pixels.

    The split is the field's: of each class, sorted by path, the first 90 % train. `root` holds the
    ten folders of the classes, or the archives: ``airplane.zip`` and so on, or tonic's
    ``CIFAR10DVS.zip`` (it needs the extra ``aedat``); `image_size` 64 joins four pixels in one.
    """
    root = Path(options.root)
    tonic = (root / TONIC.name).is_file()
    archives = [TONIC] if tonic else ORIGINAL
    find = functools.partial(_home, root, tonic)
    home = provide("cifar10_dvs", root, options.download, find, archives=archives)
    old, new = (class_samples(home, (suffix,), CLASSES) for suffix in (".aedat", ".aedat4"))
    if old and new:
        raise DataError(
            f"{name_of(home)} holds both AEDAT 2 files ({old[0].path}) and AEDAT 4 files "
            f"({new[0].path}) of the same recordings: move one kind away"
        )
    samples, expected = new or old, dict.fromkeys(CLASSES, PER_CLASS)
    check_counts("cifar10_dvs", samples, CLASSES, expected, options.events.incomplete)
    parts = first_of_each_class(samples, 0.9)
    split = cut("cifar10_dvs", CLASSES, *parts, options.val_fraction)
    reader = FileReader(home, "aedat4" if new else "cifar10_dvs")
    source = Source(reader, Sensor(128, 128), root=home)
    return event_splits(split, source, options, augment="spikformer_dvs")


def _home(root: Path, tonic: bool) -> Path | None:
    """Return the folder of the classes; the zips inside tonic's zip are unpacked for it."""
    outer = root / TONIC.into
    for archive, name in zip(ORIGINAL if tonic else (), CLASSES, strict=False):
        inner = outer / f"{name}.zip"
        if inner.is_file() and not (outer / name).is_dir():
            unpack(inner, outer, max_bytes=archive.unpacked, max_members=archive.members)
    found = [find_folder(root, (name,)) for name in CLASSES]
    homes = {folder.parent for folder in found if folder is not None}
    if len(homes) > 1:
        raise DataError(
            f"cifar10_dvs: the folders of the classes lie in "
            f"{', '.join(map(name_of, sorted(homes)))}; move them into one"
        )
    return homes.pop() if homes else None
