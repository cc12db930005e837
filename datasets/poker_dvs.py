"""Poker-DVS: the pips of poker cards, flipped before an event camera.

Source: T. Serrano-Gotarredona and B. Linares-Barranco, "Poker-DVS and MNIST-DVS", Frontiers in
Neuroscience 9:481, 2015; the archives are tonic's (md5 from its code, sha256 from files with it).
"""

from __future__ import annotations

from pathlib import Path

from spikeformer_lt.events import EventDataOptions, FileReader, Sensor, Source, event_splits
from spikeformer_lt.events.split import check_counts, class_samples, cut, find_folder
from spikeformer_lt.published import Archive, provide
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import Splits, takes

CLASSES = ("cl", "he", "di", "sp")  # clubs, hearts, diamonds, spades: tonic's order
COUNTS = {"pips_train": 48, "pips_test": 20}
ARCHIVES = tuple(
    Archive(
        *(f"{name}.tar.gz", 0, md5, sha256),
        page="https://github.com/neuromorphs/tonic",  # no address serves them to programs any more
        unpacked=100_000_000,
        members=1000,
    )
    for name, md5, sha256 in (
        ("pips_train", "412bcfb96826e4fcb290558e8c150aae",
         "1ea38cdea0a46da6a8bce0f51b7a22b22a0922c14f73c5813a674810691eead5"),
        ("pips_test", "eef2bf7d0d3defae89a6fa98b07c17af",
         "97501f9ab11f0c71fe232a264788671e9c4052566e3fc48c662ef6a7692347f2"),
    )
)  # fmt: skip


@register_dataset
@takes(EventDataOptions)
def poker_dvs(options: EventDataOptions) -> Splits:
    """Poker-DVS: 48 recordings to train and validate, 20 to test, 4 classes, 35 x 35 pixels.

    `root` holds ``pips_train`` and ``pips_test``, or their archives.
    """

    def find() -> Path | None:
        folders = [find_folder(options.root, (folder,)) for folder in COUNTS]
        return folders[0].parent if folders[0] and all(folders) else None

    home = provide("poker_dvs", options.root, options.download, find, archives=ARCHIVES)
    parts = {folder: class_samples(home, (".npy",), CLASSES, folder) for folder in COUNTS}
    for folder, count in COUNTS.items():
        name = f"poker_dvs {folder.removeprefix('pips_')}"
        check_counts(name, parts[folder], CLASSES, count, options.events.incomplete)
    pool, test = parts.values()
    split = cut("poker_dvs", CLASSES, pool, test, options.val_fraction)
    reader = FileReader(home, "npy", columns=("t_us", "x", "y", "p"))
    return event_splits(split, Source(reader, Sensor(35, 35), root=home), options)
