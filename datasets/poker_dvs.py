"""Poker-DVS: the pips of poker cards, flipped before an event camera.

Source: T. Serrano-Gotarredona and B. Linares-Barranco, "Poker-DVS and MNIST-DVS", Frontiers in
Neuroscience 9:481, 2015; the archives are tonic's (md5 from its code, sha256 from files with it).
"""

from __future__ import annotations

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

CLASSES = ("cl", "he", "di", "sp")  # clubs, hearts, diamonds, spades: tonic's order
COUNTS = {"train": 48, "test": 20}
_PAGE = "https://github.com/neuromorphs/tonic"
ARCHIVES = (
    Archive(
        name="pips_train.tar.gz",
        url="",
        md5="412bcfb96826e4fcb290558e8c150aae",
        sha256="1ea38cdea0a46da6a8bce0f51b7a22b22a0922c14f73c5813a674810691eead5",
        page=_PAGE,
        at_most=10_000_000,
        unpacked=100_000_000,
        members=1000,
    ),
    Archive(
        name="pips_test.tar.gz",
        url="",
        md5="eef2bf7d0d3defae89a6fa98b07c17af",
        sha256="97501f9ab11f0c71fe232a264788671e9c4052566e3fc48c662ef6a7692347f2",
        page=_PAGE,
        at_most=10_000_000,
        unpacked=100_000_000,
        members=1000,
    ),
)


@register_dataset
def poker_dvs(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
    events: EventOptions | None = None,
) -> Splits:
    """Poker-DVS: 48 recordings to train and validate, 20 to test, 4 classes, 35 x 35 pixels.

    Args:
        root: folder that holds ``pips_train`` and ``pips_test``, or their archives.
        download: refused where they are missing: no address serves them to programs any more.
        image_size: side of a frame in pixels; None is 35. Larger frames get a margin of zeros.
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

    def present() -> bool:
        return all(find_folder(root, (f"pips_{part}",)) for part in COUNTS)

    provide("poker_dvs", ARCHIVES, root, download, present)
    folder = find_folder(root, ("pips_train",))
    assert folder is not None
    home = folder.parent
    parts = {part: _samples(home, part, options) for part in COUNTS}
    train, val = hold_out("poker_dvs", parts["train"], val_fraction)
    return Splits(
        **split_fields(
            Split("poker_dvs", CLASSES, tuple(train), tuple(val), tuple(parts["test"])),
            Source(
                FileReader(home, "npy", columns=("t_us", "x", "y", "p")),
                Sensor(35, 35),
                root=home,
            ),
            options,
            image_size=image_size,
            limit_train=limit_train,
            limit_test=limit_test,
            duplicates=duplicates,
        )
    )


def _samples(home: Path, part: str, options: EventOptions) -> list[Sample]:
    classes = {name: label for label, name in enumerate(CLASSES)}
    top = f"pips_{part}"
    samples = []
    for path in scan(home / top, (".npy",)):
        label = label_of(path.split("/")[0], classes, path)
        samples.append(Sample(f"{top}/{path}", label=label))
    accept(check_counts(f"poker_dvs {part}", samples, CLASSES, COUNTS[part]), options.incomplete)
    return samples
