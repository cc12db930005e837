"""Streaming: frames arrive one by one, and the stream holds the neurons' state."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import DataError, ExportError
from spikeformer_lt.export.inference import CompactModel
from spikeformer_lt.export.prediction import event_frame, to_input
from spikeformer_lt.layers.inputs import SelectsTokens, Stepwise
from spikeformer_lt.layers.neuron import NeuronState, carry
from spikeformer_lt.layers.patches import selections
from spikeformer_lt.preprocess import prepared_for


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

    def reset(self) -> None:
        """Forget the clip."""
        self.frames = 0
        self._state = NeuronState()
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

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
        images = self._checked(given)
        with carry(state):
            found = self._step.stem_tokens(images) if self._selects else self._step.classify(images)
        self._state, self.frames = state, self.frames + 1  # a frame that fails changes nothing
        if self._selects:
            self._seen.append((*found, images))
            if self.frames < self.net.T:
                return given.new_zeros(len(given), 0, self.net.num_classes)
            clip = [torch.cat(parts) for parts in zip(*self._seen, strict=True)]
            self.reset()
            found = self.net.classify_tokens(*clip)
        logits: Tensor = found.transpose(0, 1)
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
        begun, here = {len(v) for v in self._state.voltages.values()}, len(frame)
        if begun - {here}:
            raise DataError(
                f"the clip began with a batch of {min(begun - {here})}, this frame has {here}; "
                "call reset() for another clip"
            )
        return images.contiguous()
