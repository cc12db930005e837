"""Streaming: frames or events arrive piece by piece, and the stream holds the neurons' state."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError, ExportError
from spikeformer_lt.events.recording import EVENTS, Events
from spikeformer_lt.export.inference import CompactModel
from spikeformer_lt.export.prediction import (
    Prediction,
    event_frame,
    predictions_of,
    to_input,
    valid_events,
)
from spikeformer_lt.layers.halting import halts
from spikeformer_lt.layers.inputs import SelectsTokens, Stepwise
from spikeformer_lt.layers.neuron import NeuronState, carry
from spikeformer_lt.layers.patches import selections
from spikeformer_lt.preprocess import LARGEST_T, prepared_for


class Stream:
    """One clip that arrives frame by frame.

    Without patch selection every frame gives its logits at once, also beyond the T steps of the
    training. A selection scores its tokens over the whole clip: then the stem, most of the work on
    events, runs frame by frame, and the encoder after the T-th frame. A network of still images
    takes the image of each step as its frame. Streams may share a network, also between threads.

    Raises:
        ExportError: the network, plain or compact, is in training mode, or has no step interface:
            `layers.inputs.Stepwise`, with patch selection `layers.inputs.SelectsTokens`.
    """

    def __init__(self, model: nn.Module) -> None:
        net: Any = model.net if isinstance(model, CompactModel) else model
        self._selects = bool(selections(net))
        wanted = SelectsTokens if self._selects else Stepwise
        runs: bool = isinstance(net, wanted)
        if not runs:
            raise ExportError(
                f"{type(net).__name__} cannot run frame by frame: it has no step interface "
                f"({wanted.__module__}.{wanted.__name__})"
            )
        inner: list[Any] = getattr(getattr(net, "stem", None), "inner_blocks", list)()
        if any(block.stop is not None for block in inner):
            raise ExportError(
                "tokens stop inside of the stem by scores over the whole clip, so that this "
                "network cannot run frame by frame"
            )
        if net.training:
            raise ExportError("a network in training mode cannot stream; call .eval() first")
        self.net, self.frames, self._given = net, 0, model
        self._step: Any = copy.copy(net)  # the same modules, run for one step
        self._step.T = 1
        self.reset()

    def __repr__(self) -> str:
        return f"Stream({self.net._get_name()}: {self.frames} of {self.net.T} frames of a clip)"

    def reset(self) -> None:
        """Forget the clip."""
        self.frames = 0
        self._state = NeuronState()
        self._batch: int | None = None  # of the clip's first frame
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._total: Tensor | None = None  # of the logits so far; [B, K]
        self._sure: Tensor | None = None  # images that have their net's confidence

    @torch.no_grad()
    def push(self, frame: Any) -> Tensor:
        """Take the next frame, ``[B, C, H, W]``, of the same B throughout a clip.

        Normalised floats are taken as they are; uint8 pixels, or a slice of events (a list of B
        slices) that becomes one frame, go through the network's preprocess.

        Returns:
            The logits that became known, ``[B, n, K]``: n is 1, or with patch selection 0 until the
            T-th frame and then T; that frame ends the clip and the next one starts another.

        Raises:
            ConfigError: a frame of another shape or dtype than the model's.
            DataError: another batch size than the clip began with; a slice that is no recording.
            ExportError: pixels or events, and the network came without its preprocess.
        """
        given, state = self._prepared(frame), self._state.copy()
        images, stops = self._checked(given), getattr(self.net, "confidence", 0.0) > 0
        with carry(state):
            found = self._step.stem_tokens(images) if self._selects else self._step.classify(images)
        self._state, self.frames = state, self.frames + 1  # a frame that fails changes nothing
        self._batch = len(given)
        if self._selects:
            self._seen.append((*found, images))
            if self.frames < self.net.T:
                return given.new_zeros(len(given), 0, self.net.num_classes)
            clip = [torch.cat(parts) for parts in zip(*self._seen, strict=True)]
            self.reset()
            found = self.net.classify(clip[2]) if stops else self.net.classify_tokens(*clip)
        elif stops:
            found = self._held(found[0])[None]
        logits: Tensor = found.transpose(0, 1)
        return logits

    def _held(self, logits: Tensor) -> Tensor:
        """The logits of a step, or the mean of those before of images that were sure by then.

        That is `halting.until_sure`, frame by frame.
        """
        if self._total is None or self._sure is None:
            self._total = torch.zeros_like(logits)
            self._sure = logits.new_zeros(len(logits), dtype=torch.bool)
        before = self._total / max(1, self.frames - 1)
        logits = torch.where(self._sure[:, None], before, logits)
        self._total = self._total + logits
        mean = self._total / self.frames
        self._sure = self._sure | (mean.softmax(1).amax(1) >= self.net.confidence)
        return logits

    def _prepared(self, frame: Any) -> Tensor:
        if isinstance(frame, Tensor) and frame.is_floating_point():
            return frame
        how = prepared_for(self._given)
        plain: Tensor = to_input(frame, how) if how.recordings is None else event_frame(frame, how)
        like = next(self.net.parameters())
        return plain.to(like.device, like.dtype)

    def _checked(self, frame: Tensor) -> Tensor:
        if frame.ndim != 4:
            raise DataError(f"a frame is [B, C, H, W]; got {list(frame.shape)}")
        images: Tensor = self.net.time_first(frame)[:1]
        here = len(frame)
        if self._batch not in (None, here):
            raise DataError(
                f"the clip began with a batch of {self._batch}, this frame has {here}; "
                "call reset() for another clip"
            )
        return images.contiguous()


@dataclass(frozen=True)
class Decision:
    """What a network says after a window of time."""

    start_us: int
    """Begin of the window."""
    events: int
    """Events in it."""
    step: int
    """Number of the window in its clip, from 1 to T; of all windows where the stream is endless."""
    prediction: Prediction | None
    """Of the clip so far; None while a patch selection waits for the clip's last window."""
    latency_ms: float
    """Time from the window's last event, as it was given, to the decision."""


class EventStream:
    """Events that arrive in pieces, in windows of fixed time, each of which is a frame.

    Window i takes times t0 + i*w to t0 + (i+1)*w - 1, t0 being the first event's, as frames by
    time_window do; T windows are a clip, after which the neurons start from rest. So decision T of
    a clip is that of `predict` on the clip's recording.

    Args:
        model: an exported or plain network in eval mode that came with its preprocess.
        window_us: length of a window in microseconds; None is the one that it was trained with.
        endless: never start from rest; a decision is of the last T windows. Not with a patch
            selection, which needs whole clips, or halting, which lasts to the end of one.

    Raises:
        ConfigError: another window than the network was trained with, or none.
        ExportError: as `Stream`, or a network of pictures.
    """

    def __init__(
        self, model: nn.Module, window_us: int | None = None, endless: bool = False
    ) -> None:
        self._stream = Stream(model)
        self._how = prepared_for(model)
        recordings = self._how.recordings
        if recordings is None:
            raise ExportError("the network is of pictures; a stream of events needs one of events")
        own = recordings.window_us
        rule = f"{own}, which the network was trained with" if own else "1 microsecond or more"
        window_us = own if window_us is None else window_us
        sound = type(window_us) is int and window_us >= 1 and own in (None, window_us)
        check(sound, "window_us", window_us, rule)
        clips = self._stream._selects or halts(self._stream.net)
        check(not (endless and clips), "endless", endless, "no patch selection, and no halting")
        self.window_us: int = window_us or 0
        self.endless, self.T = endless, recordings.T
        self._recordings = recordings
        for _ in range(self.T if self._stream._selects else 1):  # kernels are compiled here
            self._stream.push([np.empty(0, EVENTS)])
        self.reset()

    def __repr__(self) -> str:
        clip = "endless" if self.endless else f"clips of {self.T}"
        return (
            f"EventStream({self._stream.net._get_name()}: windows of {self.window_us} us, {clip})"
        )

    def reset(self) -> None:
        """Forget the clip and the events of the unfinished window."""
        self._stream.reset()
        self._waiting, self._start = np.empty(0, EVENTS), -1
        self._logits: list[Tensor] = []

    def push(self, events: Any) -> list[Decision]:
        """Take the next events, in a form of `predict`, and decide on the windows that they end.

        Raises:
            DataError: events off the sensor, earlier than those before, or after a gap of more than
                4096 windows.
        """
        begun, given = time.perf_counter(), valid_events(events, self._recordings)
        if not len(given):
            return []
        last = int(self._waiting["t_us"][-1]) if len(self._waiting) else self._start
        if int(given["t_us"][0]) < last:
            raise DataError(
                f"an event of {given['t_us'][0]} us came after one of {last} us, or after its "
                "window was decided on; give pieces in order of time, or call reset()"
            )
        if self._start < 0:
            self._start = int(given["t_us"][0])
        self._waiting = np.concatenate([self._waiting, given])
        count = (int(given["t_us"][-1]) - self._start) // self.window_us
        if count > LARGEST_T:
            raise DataError(
                f"{count} windows of {self.window_us} us passed at once, more than {LARGEST_T}; "
                "call reset() after a long silence"
            )
        return [self._decide(begun) for _ in range(count)]

    def close(self) -> list[Decision]:
        """Decide on the unfinished window, if it has events, and forget the clip.

        With a patch selection, which decides at the end of a clip, the rest of it is silence.
        """
        begun = time.perf_counter()
        found = [self._decide(begun)] if len(self._waiting) else []
        while self._stream._selects and self._stream.frames:
            found.append(self._decide(begun))
        self.reset()
        return found

    def run(self, source: Any, pace: float = 0.0) -> Iterator[Decision]:
        """Decide on all windows of a recording, or of a camera.

        Args:
            source: a path or a recording in a form of `predict`; or what gives pieces of events
                when they come, such as a generator that reads a camera.
            pace: recorded seconds a second at which a recording is given, window by window, to
                measure latencies as a camera would meet them; 0 does not wait.
        """
        pieces = source if isinstance(source, Iterator) else self._paced(source, pace)
        for piece in pieces:
            yield from self.push(piece)
        yield from self.close()

    def _paced(self, source: Any, pace: float) -> Iterator[Events]:
        events, begun = valid_events(source, self._recordings), time.perf_counter()
        times = events["t_us"]
        first = last = int(times[0]) if len(times) else 0
        place = 0
        while place < len(times):
            last += self.window_us
            end = int(np.searchsorted(times, last))
            if pace:
                ahead = (last - first) / 1e6 / pace - (time.perf_counter() - begun)
                time.sleep(max(0.0, ahead))
            if end > place:
                yield events[place:end]
            place = end

    def _decide(self, begun: float) -> Decision:
        end = int(np.searchsorted(self._waiting["t_us"], self._start + self.window_us))
        window, self._waiting = self._waiting[:end], self._waiting[end:]
        self._logits = [*self._logits, *self._stream.push([window]).unbind(1)][-self.T :]
        step = self._stream.frames or self.T
        said = None
        if self._logits:
            mean = torch.stack(self._logits).mean(0)
            (said,) = predictions_of(mean.float(), self._how.classes)
        start, self._start = self._start, self._start + self.window_us
        if not self.endless and step >= self.T:
            self._stream.reset()
            self._logits = []
        return Decision(start, end, step, said, (time.perf_counter() - begun) * 1e3)
