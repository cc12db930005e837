"""Any data set of tonic: ``--data.name tonic:NAME``.

Source: G. Lenz et al., "Tonic: event-based datasets and transformations", 2021 (GPL-3.0-only).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from spikeformer_lt.config import check
from spikeformer_lt.datasets import cifar10_dvs, dvs128_gesture, nmnist
from spikeformer_lt.events import EventDataOptions
from spikeformer_lt.events.tonic import open_parts, tonic_splits
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import Splits, takes

# Sets of the same files that we read ourselves: name, classes, augmentation, whether a mirrored
# sample is of another class.
_OURS = {
    "CIFAR10DVS": ("cifar10_dvs", cifar10_dvs.CLASSES, "spikformer_dvs", False),
    "DVSGesture": ("dvs128_gesture", dvs128_gesture.CLASSES, "wide_dvs", True),
    "NMNIST": ("nmnist", nmnist.CLASSES, "none", True),
    "POKERDVS": ("poker_dvs", (), "none", False),
}


@dataclass(frozen=True)
class TonicOptions(EventDataOptions):
    """Options of a data set of tonic."""

    of: str = ""
    """Name of the class in tonic.datasets."""


@register_dataset
@takes(TonicOptions)
def tonic(options: TonicOptions) -> Splits:
    """A data set of tonic, tonic:NAME, in tonic's own parts and by tonic's own reader.

    `root` holds the folder NAME as tonic lays it out, or is that folder.
    """
    check(bool(options.of), "data.name", "tonic", "tonic:NAME, such as tonic:NMNIST")
    own, classes, augment, mirrored = _OURS.get(options.of, ("", (), "none", False))
    parts = open_parts(options.of, options.root, options.download, options.events.incomplete)
    splits = tonic_splits(f"tonic:{options.of}", parts, options, classes, own)
    return replace(splits, augment=augment, mirror_changes_label=mirrored)
