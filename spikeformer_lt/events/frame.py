"""Events to frames, and the options of event data sets: every event is counted, or told of."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeformer_lt.config import check, check_fields
from spikeformer_lt.errors import ConfigError, DataError, shown
from spikeformer_lt.events.recording import EVENTS, UNITS, Events, Sensor, parse_columns
from spikeformer_lt.events.validate import ACTIONS, Policy
from spikeformer_lt.preprocess import LARGEST_T, VALUES, WAYS
from spikeformer_lt.splits import DataOptions

log = logging.getLogger(__name__)
Frames = NDArray[np.int32]
Counter = Callable[[Any, Any, Any, NDArray[np.int64], Frames], int]

LARGEST_FRAMES = 2**28  # values in the frames of one recording: 1 GiB
_VARIABLE = "SPIKEFORMER_KERNELS"
_FEW = 2000  # events; below, NumPy is as fast and numba need not be loaded


@dataclass(frozen=True)
class Framing:
    """How a recording is cut into frames.

    With n events over a span of s microseconds, frame i < T - 1 takes

    - "n_event_bins": events i*w to (i+1)*w - 1, w = max(1, n // T);
    - "n_time_bins": times t0 + i*w to t0 + (i+1)*w - 1, w = max(1, s // T);
    - "time_window": times as above with w = `window_us`;

    and in the first two ways frame T - 1 takes all the rest. The borders are tonic's; tonic (1.7.0)
    loses what follows the last of them, and everything where w is 0.
    """

    T: int | None = 16
    """Frames a recording is cut into; None, for time_window only: as many as it needs."""
    by: str = "n_event_bins"
    """n_event_bins (equal counts), n_time_bins (equal times) or time_window (window_us each)."""
    window_us: int | None = None
    """Length of a frame in microseconds, for by=time_window."""
    values: str = "counts"
    """counts, or binary: 1 where at least one event fell."""

    def __post_init__(self) -> None:
        check_fields(self, by=WAYS, values=VALUES)
        T, window_us, by_window = self.T, self.window_us, self.by == "time_window"
        if T is None and not by_window:
            raise ConfigError(f"T=None is not allowed with by={self.by}; only time_window has it")
        sound = T is None or (type(T) is int and 1 <= T <= LARGEST_T)
        check(sound, "T", T, f"a whole number, 1 to {LARGEST_T}")
        if by_window != (window_us is not None):
            raise ConfigError(
                f"window_us={shown(window_us)} is not allowed with by={self.by}: it belongs to "
                "time_window, which needs it"
            )
        sound = window_us is None or (type(window_us) is int and window_us >= 1)
        check(sound, "window_us", window_us, "1 microsecond or more")


@dataclass(frozen=True)
class EventChoices:
    """What a user may choose about recordings and their frames, but for the number of these."""

    by: str = Framing.by
    """n_event_bins (equal counts), n_time_bins (equal times) or time_window (window_us each)."""
    window_us: int | None = Framing.window_us
    """Length of a frame in microseconds, for by=time_window."""
    values: str = Framing.values
    """counts, or binary: 1 where at least one event fell."""
    bad_events: str = "error"
    """error, drop, or count (keep what can be kept) for events off the sensor and the like."""
    empty: str = "error"
    """error, zero or skip for recordings with no event, or with all events at one time."""
    incomplete: str = "error"
    """error or report if recordings of the published set are missing."""
    cache: str = "auto"
    """Folder for frames that were made once; auto is .frames in the root, none keeps none."""
    shuffle_time: bool = False
    """Put the frames of each recording in an order of their own: a control, in which only what does
    not need the order of time can be learned."""
    split_file: str | None = None
    """JSON file of the split: read where it is, written where it is not."""
    unit: str | None = None
    """Unit of times in npy, npz, txt and HDF5 files, us, ms or s (a field t_us is in us); None is
    the set's own."""
    columns: str | None = None
    """Order of the columns of plain arrays and texts, such as x,y,p,t; None is the set's own."""
    sensor: str | None = None
    """Rows and columns of the camera, such as 128x128; None is the set's own."""
    polarity: str = "auto"
    """signed if polarities are -1 and 1, binary if they are 0 and 1; auto is the set's own."""
    transform: str = ""
    """Transforms of tonic that every recording passes, such as "Denoise(filter_time=10000)"."""

    def __post_init__(self) -> None:
        check_fields(
            self, by=WAYS, values=VALUES, unit=tuple(UNITS), polarity=("auto", "binary", "signed"),
            bad_events=("error", "drop", "count"), empty=("error", "zero", "skip"),
            incomplete=("error", "report"),
        )  # fmt: skip
        if self.columns is not None:
            parse_columns(self.columns)
        if self.sensor is not None:
            Sensor.parse(self.sensor)
        check(bool(self.cache), "cache", self.cache, "a folder, auto or none")


@dataclass(frozen=True)
class EventOptions(EventChoices, Framing):
    """Framing, faults and files of an event data set."""

    T: int = 16
    """Frames a recording is cut into: the model's time steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.T is not None, "T", self.T, "a model needs a fixed number of frames")
        Framing.__post_init__(self)

    @property
    def framing(self) -> Framing:
        """How a recording is cut."""
        return Framing(self.T, self.by, self.window_us, self.values)

    def policy(self, base: Policy | None = None) -> Policy:
        """Return what happens to each fault; the other fields of `base`, the set's own, stay."""
        base = base or Policy()
        if self.polarity != "auto":
            base = replace(base, signed_polarity=self.polarity == "signed")
        if self.bad_events == "error":
            return base
        actions = {
            fault: self.bad_events if self.bad_events in allowed else allowed[-1]
            for fault, allowed in ACTIONS.items()
        }
        return replace(base, **actions)  # type: ignore[arg-type]


@dataclass(frozen=True)
class EventDataOptions(DataOptions):
    """What a user may choose about any event data set."""

    events: EventOptions = field(default_factory=EventOptions)
    """Framing, faults and files."""


def to_frames(
    events: Events, framing: Framing, sensor: Sensor, source: str = "recording"
) -> tuple[Frames, int]:
    """Count events, `EVENTS` [N] as `validate` gives them, per frame, polarity and pixel.

    Returns:
        int32 [T, 2, H, W], polarity 0 first, and the number of events after the last "time_window".

    Raises:
        DataError: what `validate` does not give, or more than 4096 windows.
        ConfigError: the frames would take more than 1 GiB.
    """
    if events.dtype != EVENTS or events.ndim != 1:
        raise DataError(
            f"{source}: events are {events.dtype} {list(events.shape)}; give what validate() gives"
        )
    times = events["t_us"]
    if (times[1:] < times[:-1]).any():
        raise DataError(f"{source}: times out of order; pass the recording through validate()")
    edges = _edges(times, framing, source)
    shape = (len(edges) - 1, 2, sensor.height, sensor.width)
    if np.prod(shape, dtype=np.int64) > LARGEST_FRAMES:
        raise ConfigError(
            f"T={shape[0]} on a sensor of {sensor} is not allowed: frames of {list(shape)} have "
            f"more than {LARGEST_FRAMES} values; take fewer frames"
        )
    frames = np.zeros(shape, np.int32)
    bad = _counter(len(events))(events["x"], events["y"], events["p"], edges, frames)
    if bad >= 0:
        told = ", ".join(f"{name}={events[name][bad]}" for name in ("x", "y", "p"))
        raise DataError(
            f"{source}: event {bad} has {told}: not on a sensor of {sensor} with polarities 0 and "
            "1; pass the recording through validate()"
        )
    if framing.values == "binary":
        np.minimum(frames, 1, out=frames)
    return frames, len(events) - int(edges[-1])


def _edges(times: NDArray[np.int64], framing: Framing, source: str) -> NDArray[np.int64]:
    """Return T + 1 positions: frame i takes the events from edges[i] up to edges[i + 1]."""
    count = len(times)
    span = int(times[-1]) - int(times[0]) if count else 0
    T = framing.T
    if T is None:
        T = span // (framing.window_us or 1) + 1
        if T > LARGEST_T:
            raise DataError(
                f"{source}: {span} us in windows of {framing.window_us} us are {T} frames, more "
                f"than {LARGEST_T}; use longer windows or give T"
            )
    if framing.by == "n_event_bins" or not count:
        edges = np.minimum(np.arange(T + 1, dtype=np.int64) * max(1, count // T), count)
    else:
        width = framing.window_us or max(1, span // T)
        # Times are below 2**53, yet T windows of any length may reach beyond int64.
        borders = [min(int(times[0]) + i * width, 2**62) for i in range(T + 1)]
        edges = np.searchsorted(times, np.array(borders, np.int64)).astype(np.int64)
    if framing.by != "time_window":
        edges[-1] = count
    return edges


def narrow(frames: Frames) -> NDArray[Any]:
    """Return frames in the smallest of uint8, uint16 and int32 that holds every count."""
    most = frames.max(initial=0)
    fitting = (kind for kind in (np.uint8, np.uint16) if most <= np.iinfo(kind).max)
    return frames.astype(next(fitting, np.int32), copy=False)


def _counter(events: int) -> Counter:
    """Choose the kernel: numba from a few thousand events on, or what the variable says."""
    mode = os.environ.get(_VARIABLE, "auto")
    check(mode in ("auto", "torch", "numba"), _VARIABLE, mode, "auto, torch or numba")
    if mode == "torch" or (mode == "auto" and events < _FEW):
        return count_numpy
    fault = _compiled()[1]
    if fault and mode == "numba":
        raise ConfigError(f"{_VARIABLE}=numba, but numba failed ({fault}); use auto or torch")
    return count_numpy if fault else count_numba


def count_numpy(x: Any, y: Any, p: Any, edges: NDArray[np.int64], frames: Frames) -> int:
    """Add the events to `frames` as `count_numba` does, half as fast."""
    _, polarities, height, width = frames.shape
    taken = int(edges[-1])
    x, y, p = (column[:taken] for column in (x, y, p))
    bad = (x >= width) | (y >= height) | (p >= polarities)
    if bad.any():
        return int(np.argmax(bad))
    places = (p.astype(np.int64) * height + y) * width + x
    for i, frame in enumerate(frames.reshape(len(frames), -1)):
        found = np.bincount(places[edges[i] : edges[i + 1]], minlength=frame.size)
        np.copyto(frame, found, casting="same_kind")
    return -1


def count_numba(x: Any, y: Any, p: Any, edges: NDArray[np.int64], frames: Frames) -> int:
    """Add events to `frames`, contiguous int32 [T, 2, H, W], in place.

    Args:
        x: columns, uint16 [N], as the rows `y`; polarities `p` are uint8 [N].
        edges: int64 [T + 1], ascending positions in [0, N]: the borders of the frames.

    Returns:
        Position of the first event that does not fit into a frame, or -1.
    """
    T, polarities, height, width = frames.shape
    assert polarities == 2 and frames.flags.c_contiguous
    assert edges[0] >= 0 and edges[-1] <= len(x) == len(y) == len(p)
    return int(_compiled()[0](x, y, p, edges, frames.reshape(T, -1), height, width))


@functools.cache
def _compiled() -> tuple[Any, str]:
    """Return `_count` compiled, or None and why there is none."""
    none = np.empty(0, EVENTS)
    try:
        import numba  # takes half a second to load

        try:
            kernel = numba.njit(cache=True, nogil=True)(_count)
        except RuntimeError as fault:  # no folder can be written
            log.info("the frame kernel is compiled again in this process: %s", fault)
            kernel = numba.njit(nogil=True)(_count)
        kernel(none["x"], none["y"], none["p"], np.zeros(2, int), np.zeros((1, 2), "i4"), 1, 1)
    except Exception as fault:  # numba raises its own kinds where its cache or LLVM fails
        log.warning("frames are counted by NumPy, half as fast: numba failed (%s)", fault)
        return None, str(fault) or type(fault).__name__
    return kernel, ""


def _count(x: Any, y: Any, p: Any, edges: Any, frames: Any, height: int, width: int) -> int:
    # One flat frame at a time: a frame stays in cache while its events are added.
    area = height * width
    for i in range(len(edges) - 1):
        frame = frames[i]
        for k in range(edges[i], edges[i + 1]):
            row, column, sign = np.int64(y[k]), np.int64(x[k]), np.int64(p[k])
            if column >= width or row >= height or sign > 1:
                return k
            frame[sign * area + row * width + column] += 1
    return -1
