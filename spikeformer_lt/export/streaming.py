"""Event frames one by one: neurons carry their state, logits are those of the whole clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import DataError, ExportError
from spikeformer_lt.export.fold import CompactModel
from spikeformer_lt.layers.neuron import NeuronState, carry
from spikeformer_lt.layers.patches import gather_tokens

__all__ = ["Stream"]


class Stream:
    """One clip that is still arriving.

    Without patch selection every frame gives its logits at once, also beyond the T steps of the
    training. A selection scores its tokens over the whole clip: then the ConvPEP, most of the work
    on events, runs frame by frame, and the encoder when the T-th frame is there. A network of still
    images takes the image of each step as its frame.

    Several streams may share one network: the state lies in the stream.

    Args:
        model: a Spikformer or a spiking CNN, plain or compact, in eval mode.

    Raises:
        ExportError: the network is neither, so that nobody can run it step by step.
    """

    def __init__(self, model: nn.Module) -> None:
        net: Any = model.net if isinstance(model, CompactModel) else model
        self._whole = all(hasattr(net, part) for part in ("classify", "time_first"))
        parts = ("conv_pep", "blocks", "head", "time_first", "patch")
        if not self._whole and not all(hasattr(net, part) for part in parts):
            raise ExportError(
                f"{type(net).__name__} cannot run frame by frame: it has neither a ConvPEP nor "
                "classify()"
            )
        if net.training:
            raise ExportError("a network in training mode cannot stream; call .eval() first")
        self.net, self.frames = net, 0
        self._state = NeuronState()
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def reset(self) -> None:
        """Forget the clip."""
        self.frames = 0
        self._state = NeuronState()
        self._seen.clear()

    @torch.no_grad()
    def push(self, frame: Tensor) -> Tensor:
        """Take the next frame.

        Args:
            frame: ``[B, C, H, W]``, the same B throughout a clip.

        Returns:
            The logits that became known, ``[B, n, K]``: n is 1, or with patch selection 0 until the
            T-th frame and then T; that frame ends the clip and the next one starts another.

        Raises:
            ConfigError: a frame of another shape or dtype than the model's.
            DataError: another batch size than the clip began with.
        """
        images, state = self._checked(frame), self._state.copy()
        with carry(state):
            logits = self._push(images)
        self._state, self.frames = state, self.frames + 1  # a frame that fails leaves no trace
        if logits is not None:
            return logits
        if self.frames < self.net.T:
            return frame.new_zeros(frame.shape[0], 0, self.net.num_classes)
        try:
            return self._finish()
        finally:
            self.reset()

    def _push(self, images: Tensor) -> Tensor | None:
        if self._whole:
            return self._classify(images)
        need = self.net.patch is not None and self.net.patch.score.needs_current
        tokens, current = self.net.conv_pep(images, 1, need)
        if self.net.patch is None:
            return self._encode(tokens, 1)
        self._seen.append((images, tokens, current))
        return None

    def _classify(self, images: Tensor) -> Tensor:
        T, self.net.T = self.net.T, 1
        try:
            logits: Tensor = self.net.classify(images)
        finally:
            self.net.T = T
        return logits.transpose(0, 1)

    def _encode(self, tokens: Tensor, T: int) -> Tensor:
        for block in self.net.blocks:
            tokens = block(tokens, T)
        logits: Tensor = self.net.head(tokens.mean(2))
        return logits.transpose(0, 1)

    def _finish(self) -> Tensor:
        images, tokens, current = (torch.cat(part) for part in zip(*self._seen, strict=True))
        patch, T = self.net.patch, self.net.T
        index, _ = patch(tokens, current, images, T)
        if patch.space == "pixel":
            tokens, _ = self.net.conv_pep(patch.mask_pixels(images, index, tokens.shape[2]), T)
        return self._encode(gather_tokens(tokens, index), T)

    def _checked(self, frame: Tensor) -> Tensor:
        if frame.ndim != 4:
            raise DataError(f"a frame is [B, C, H, W]; got {list(frame.shape)}")
        images: Tensor = self.net.time_first(frame)[:1]
        for v in self._state.voltages.values():
            if v.shape[0] != frame.shape[0]:
                raise DataError(
                    f"the clip began with a batch of {v.shape[0]}, this frame has "
                    f"{frame.shape[0]}; call reset() for another clip"
                )
        return images.contiguous()
