"""Classes of pictures and recordings as users have them: the preprocessing of a ticket, applied."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikeformer_lt.errors import DataError, ExportError, counted, name_of, shown
from spikeformer_lt.events.augment import Transforms
from spikeformer_lt.events.formats import FileReader, form_of
from spikeformer_lt.events.frame import Framing, to_frames
from spikeformer_lt.events.recording import EVENTS, FIELDS, Events, Raw, Sensor, fit
from spikeformer_lt.events.split import Sample
from spikeformer_lt.events.validate import Policy, validate
from spikeformer_lt.images.augment import normalize
from spikeformer_lt.images.folders import open_picture, square
from spikeformer_lt.preprocess import Preprocess, Recordings, prepared_for

log = logging.getLogger(__name__)
BATCH = 64  # samples of a forward


@dataclass(frozen=True)
class Prediction:
    """What a network says of one sample."""

    label: int
    name: str
    """Of the class."""
    probability: float
    """Of the class, in [0, 1]."""
    probabilities: Tensor = field(repr=False, compare=False)
    """float32 ``[K]``, of all classes: softmax of the mean logits over T."""


@torch.no_grad()
def predict(model: nn.Module, x: Any, preprocess: Preprocess | None = None) -> list[Prediction]:
    """Classify pictures or recordings.

    Args:
        model: a network, plain or compact, in eval mode.
        x: samples in a form of `to_input`; also a list of them, or an array of several.
        preprocess: how they become its input; None is what came with the network.

    Raises:
        ExportError: nothing came with the network, it says other classes than the network has, or
            the network is in training mode.
        DataError: a sample that `to_input` refuses.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(
            f"model={shown(model)} is not allowed: a network, such as load_exported(FOLDER) or "
            "Run(FOLDER).net"
        )
    if model.training:
        raise ExportError("a network in training mode cannot predict; call .eval() first")
    prepare = prepared_for(model, preprocess)
    like = next(model.parameters())
    found: list[Prediction] = []
    for part in _parts(x, 4 if prepare.recordings is None else 5):
        batch = to_input(part, prepare).to(like.device, like.dtype)
        logits: Tensor = model(batch).float().mean(1)
        found += predictions_of(logits, prepare.classes)
    return found


def predictions_of(logits: Tensor, classes: Sequence[str]) -> list[Prediction]:
    """The predictions of mean logits ``[B, K]``."""
    chances = logits.softmax(1).cpu()
    labels = chances.argmax(1).tolist()
    return [
        Prediction(label, classes[label], float(own[label]), own)
        for label, own in zip(labels, chances, strict=True)
    ]


def described(model: Any) -> str:
    """The `repr` of a compact network."""
    net, removed = model.net, sum((model.removed or {}).values())
    sizes = {"T": getattr(net, "T", None), "classes": getattr(net, "num_classes", None)}
    told = "".join(f", {name} {value}" for name, value in sizes.items() if value)
    values = f"{sum(p.numel() for p in net.parameters()):,} parameters"
    gone = f", {counted(removed, 'dead channel')} removed" * bool(removed)
    return f"{type(model).__name__}({net._get_name()}{told}, {values}{gone})"


def _parts(x: Any, ndim: int) -> list[Any]:
    """Lists, and arrays of `ndim` dimensions, in slices of `BATCH` samples."""
    if not isinstance(x, list | tuple) and getattr(x, "ndim", 0) != ndim:
        return [x]
    return [x[start : start + BATCH] for start in range(0, max(1, len(x)), BATCH)]


def to_input(x: Any, preprocess: Preprocess) -> Tensor:
    """Make the input of a network.

    Args:
        x: of pictures: uint8 ``[B, H, W, C]`` or ``[B, C, H, W]`` or one of them, a PIL image or a
            path, which are scaled and cut to the network's square. Of events: a structured array
            with x, y, p and t_us, a mapping of such columns, ``[N, 4]`` in that order, a path, or
            counts ``[B, T, 2, H, W]``; times in microseconds. Or a list of such samples.
        preprocess: of the network.

    Returns:
        float32 ``[B, C, H, W]``, normalised, or frames ``[B, T, 2, H, W]``.

    Raises:
        DataError: another form, size or type; an unreadable file; events off the sensor.
    """
    if isinstance(x, list | tuple):
        if not x:
            raise DataError("no sample was given: the list is empty")
        return torch.cat([to_input(one, preprocess) for one in x])
    if preprocess.recordings is not None:
        return _frames(x, preprocess, preprocess.recordings)
    if preprocess.in_channels == 2:
        raise DataError("this preprocess does not say how recordings become frames")
    return normalize(_pixels(x, preprocess), preprocess.mean, preprocess.std)


def _pixels(x: Any, preprocess: Preprocess) -> Tensor:
    """uint8 ``[B, C, H, W]``."""
    from PIL import Image

    size, channels = preprocess.image_size, preprocess.in_channels
    if isinstance(x, str | Path):
        x = open_picture(x)
    if isinstance(x, Image.Image):
        x = square(x, size, channels, preprocess.crop)
    if not isinstance(x, np.ndarray | Tensor):
        raise DataError(
            f"{type(x).__name__} is no picture; give uint8 pixels, a PIL image or a path"
        )
    if x.dtype not in (np.uint8, torch.uint8):
        raise DataError(
            f"pixels are {str(x.dtype).removeprefix('torch.')}; predict takes uint8, 0 to 255, and "
            "normalises them itself; normalised values go to the network: net(x)"
        )
    pixels = torch.from_numpy(np.array(x, order="C")) if isinstance(x, np.ndarray) else x
    shape = list(pixels.shape)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if list(pixels.shape[1:]) == [size, size, channels] != [channels, size, size]:
        pixels = pixels.permute(0, 3, 1, 2)
    if list(pixels.shape[1:]) != [channels, size, size] or not len(pixels):
        raise DataError(
            f"pixels are {shape}; needed are [B, {size}, {size}, {channels}] or [B, {channels}, "
            f"{size}, {size}] ({preprocess.channels}); PIL images and paths are scaled"
        )
    return pixels.cpu()


_EACH = ("CenterCrop", "Downsample", "MergePolarities")
"""Transforms that change an event whatever the others are."""


def event_frame(x: Any, preprocess: Preprocess) -> Tensor:
    """One frame ``[B, 2, H, W]`` of all events in `x`, in a form of `to_input`, or of none.

    Raises:
        ExportError: the network's transforms need a whole recording.
    """
    how = preprocess.recordings
    assert how is not None
    if whole := [n for n in re.findall(r"\b[A-Z]\w*", how.transform) if n not in _EACH]:
        raise ExportError(
            f"the network's transform {whole[0]} is of whole recordings, and a stream has slices: "
            f"train without it, or with {', '.join(_EACH)}"
        )
    one = replace(how, T=1, by="n_event_bins", window_us=None)
    parts = x if isinstance(x, list | tuple) else [x]
    return torch.cat([_frames(part, preprocess, one, empty=True)[:, 0] for part in parts])


def _frames(x: Any, preprocess: Preprocess, how: Recordings, empty: bool = False) -> Tensor:
    """float32 ``[B, T, 2, H, W]``; `empty` allows recordings without an event."""
    size = preprocess.image_size
    array = x.numpy(force=True) if isinstance(x, Tensor) else x
    if isinstance(array, np.ndarray) and array.ndim in (4, 5):
        counted = _counts(array, [how.T, 2, size, size])
        return counted.clamp(max=1.0) if how.values == "binary" else counted
    source = name_of(array) if isinstance(array, str | Path) else "recording"
    kept = valid_events(array, how)
    transforms = Transforms.parse(how.transform, Sensor(*how.sensor))
    if transforms.steps:
        kept, _ = transforms(kept, source, source)
    if not len(kept) and not empty:
        raise DataError(f"{source} has no event")
    framing = Framing(how.T, how.by, how.window_us, how.values)
    moved = fit(kept, transforms.sensor, size)
    frames, left_out = to_frames(moved, framing, Sensor(size, size), source)
    if 2 * left_out > len(kept):
        told = f"{left_out} of {len(kept)} events come after its {how.T} windows and are not seen"
        log.warning("%s: %s; an EventStream decides on all of them", source, told)
    return torch.from_numpy(frames.astype(np.float32))[None]


def valid_events(x: Any, how: Recordings) -> Events:
    """The events of a recording in a form of `to_input`, checked against the camera's size."""
    source, columns = "recording", tuple(FIELDS)
    if isinstance(x, str | Path):
        path, source, columns = Path(x), name_of(x), how.columns
        if not path.is_file():
            raise DataError(f"{source} is no file of a recording")
        form = form_of(path)
        form = how.form if how.form and form == "aedat2" else form  # turned upright
        ticks = how.microseconds_per_tick
        given = ticks if ticks > 1 or how.unit_given else None
        x = FileReader(path.parent, form, columns, given)(Sample(path.name))
    events = x.events if isinstance(x, Raw) else x
    signed = how.signed and getattr(events, "dtype", None) != EVENTS  # those were valid before
    policy = Policy(signed_polarity=signed)
    kept, report = validate(events, Sensor(*how.sensor), policy, source, columns)
    if report.doubt:
        log.warning("%s: %s", source, report.doubt)
    return kept


def _counts(array: NDArray[Any], shape: list[int]) -> Tensor:
    """Frames that were counted already, as float32 ``[B, *shape]``."""
    sound = array.dtype.kind in "biuf" and list(array.shape[-4:]) == shape and array.size > 0
    if not sound or not bool((np.isfinite(array) & (array >= 0)).all()):
        raise DataError(
            f"frames are {array.dtype} {list(array.shape)}; needed are counts, finite and 0 or "
            f"more, [B, {', '.join(map(str, shape))}]"
        )
    return torch.from_numpy(array.astype(np.float32)).view(-1, *shape)
