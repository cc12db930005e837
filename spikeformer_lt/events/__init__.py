"""Event recordings: read, validated, made into frames, augmented, split and cached."""

from spikeformer_lt.events.augment import EventAugment
from spikeformer_lt.events.cache import FrameCache, MemoryCache
from spikeformer_lt.events.dataset import EventFrames, Source, event_splits
from spikeformer_lt.events.frame import EventDataOptions, EventOptions, Framing, to_frames
from spikeformer_lt.events.recording import EVENTS, Sensor, fit, make_events
from spikeformer_lt.events.split import Sample, Split
from spikeformer_lt.events.validate import Policy, Report, validate

__all__ = [
    "EVENTS",
    "EventAugment",
    "EventDataOptions",
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
    "event_splits",
    "fit",
    "make_events",
    "to_frames",
    "validate",
]
