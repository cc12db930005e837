"""Event recordings: read, validated, made into frames, augmented, split and cached."""

from typing import TYPE_CHECKING

from spikeformer_lt.runtime import lazy

__all__ = [
    "EVENTS", "Camera", "EventAugment", "EventDataOptions", "EventFrames", "EventOptions",
    "FileReader", "FrameCache", "Framing", "MemoryCache", "Policy", "Report", "Sample", "Sensor",
    "Source", "Split", "check_dataset", "check_folder", "event_splits", "fit", "make_events",
    "read_aedat2", "read_aedat4", "read_aedat31", "read_bin", "read_npy", "to_frames",
    "tonic_dataset", "validate",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.events.aedat import read_aedat2, read_aedat4, read_aedat31
    from spikeformer_lt.events.augment import EventAugment
    from spikeformer_lt.events.cache import FrameCache, MemoryCache
    from spikeformer_lt.events.check import check_dataset, check_folder
    from spikeformer_lt.events.dataset import EventFrames, Source, event_splits
    from spikeformer_lt.events.formats import FileReader, read_bin, read_npy
    from spikeformer_lt.events.frame import EventDataOptions, EventOptions, Framing, to_frames
    from spikeformer_lt.events.recording import EVENTS, Sensor, fit, make_events
    from spikeformer_lt.events.simulate import Camera
    from spikeformer_lt.events.split import Sample, Split
    from spikeformer_lt.events.tonic import tonic_dataset
    from spikeformer_lt.events.validate import Policy, Report, validate
else:
    __getattr__, __dir__ = lazy(__name__)
