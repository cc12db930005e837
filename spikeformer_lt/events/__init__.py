"""Event recordings: read, validated, made into frames, augmented, split and cached."""

from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy

if TYPE_CHECKING:
    from spikeformer_lt.events.augment import EventAugment as EventAugment
    from spikeformer_lt.events.cache import FrameCache as FrameCache
    from spikeformer_lt.events.cache import MemoryCache as MemoryCache
    from spikeformer_lt.events.dataset import EventFrames as EventFrames
    from spikeformer_lt.events.dataset import Source as Source
    from spikeformer_lt.events.dataset import event_splits as event_splits
    from spikeformer_lt.events.formats import FileReader as FileReader
    from spikeformer_lt.events.frame import EventDataOptions as EventDataOptions
    from spikeformer_lt.events.frame import EventOptions as EventOptions
    from spikeformer_lt.events.frame import Framing as Framing
    from spikeformer_lt.events.frame import to_frames as to_frames
    from spikeformer_lt.events.recording import EVENTS as EVENTS
    from spikeformer_lt.events.recording import Sensor as Sensor
    from spikeformer_lt.events.recording import fit as fit
    from spikeformer_lt.events.recording import make_events as make_events
    from spikeformer_lt.events.split import Sample as Sample
    from spikeformer_lt.events.split import Split as Split
    from spikeformer_lt.events.validate import Policy as Policy
    from spikeformer_lt.events.validate import Report as Report
    from spikeformer_lt.events.validate import validate as validate
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
