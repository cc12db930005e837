"""Event recordings: read, validated, made into frames, augmented, split and cached."""

from spikeformer_lt.events.augment import EventAugment
from spikeformer_lt.events.cache import FrameCache, MemoryCache
from spikeformer_lt.events.dataset import EventFrames, Source
from spikeformer_lt.events.frame import Framing, to_frames
from spikeformer_lt.events.options import EventOptions
from spikeformer_lt.events.parts import split_fields
from spikeformer_lt.events.recording import EVENTS, Sensor, fit, make_events
from spikeformer_lt.events.report import Report
from spikeformer_lt.events.samples import Sample
from spikeformer_lt.events.split import Split
from spikeformer_lt.events.validate import Policy, validate

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
