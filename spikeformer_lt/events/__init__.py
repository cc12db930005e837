"""Event recordings: read, validated, made into frames, augmented, split and cached."""

from spikeformer_lt.events.augment import EventAugment
from spikeformer_lt.events.cache import FrameCache, MemoryCache
from spikeformer_lt.events.dataset import EventFrames, Source, split_fields
from spikeformer_lt.events.frame import EventOptions, Framing, to_frames
from spikeformer_lt.events.recording import EVENTS, Sensor, fit, make_events
from spikeformer_lt.events.split import Sample, Split
from spikeformer_lt.events.validate import Policy, Report, validate

__all__ = [
    "EVENTS",
    "EventAugment",
    "EventFrames",
    "EventOptions",
    "FrameCache",
    "Framing",
    "MemoryCache",
    "Policy",
    "Report",
    "Sample",
    "Sensor",
    "Source",
    "Split",
    "fit",
    "make_events",
    "split_fields",
    "to_frames",
    "validate",
]
