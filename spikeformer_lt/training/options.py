"""Options that every recipe shares: data, model, run directory."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError
from spikeformer_lt.events.options import EventOptions
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.registry import create_dataset, dataset_factory
from spikeformer_lt.tensorfile import read_tensors

SPLIT_OPTIONS = ("root", "image_size", "limit_train", "limit_test")
"""Options of a data set that a ticket must repeat to meet its own splits again."""
EVENT_OPTIONS = (
    *("by", "window_us", "values", "bad_events", "empty", "incomplete", "cache", "split_file"),
)
"""The same for event data."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what training does to them."""

    name: str = "auto"
    """A registered data set; auto takes cifar10 where it is on disk, else the embedded digits."""
    root: str = "data"
    """Folder that holds the data set's published files."""
    download: bool = False
    """Fetch missing files; nothing touches the network otherwise."""
    image_size: int | None = None
    """Side of the images, in pixels; None is the data set's own."""
    limit_train: int | None = None
    """Train on this many images, classes in proportion; None is all."""
    limit_test: int | None = None
    """Test on this many images, classes in proportion; None is all."""
    augment: str = "auto"
    """auto (the data set's usual), none, digits, spikformer_cifar, crop4_flip or crop8_flip."""
    mixup: float | None = None
    """Alpha of mixup; None is the papers' value for the data set."""
    cutmix: float = 0.0
    """Alpha of CutMix."""
    mix_until: float | None = None
    """Fraction of each phase after which mixup and CutMix are off; None is the papers' value."""
    smoothing: float | None = None
    """Label smoothing; None is the papers' value for the data set."""


@dataclass(frozen=True)
class EventDataConfig(DataConfig):
    """Which recordings, how they become frames, and what training does to them.

    Frames are as many as the model has time steps: ``model.T``.
    """

    augment: str = "auto"
    """auto (the data set's usual), none, spikformer_dvs, tet_dvs, event_drop or moving_digits."""
    by: str = EventOptions.by
    """n_event_bins (equal counts), n_time_bins (equal times) or time_window (window_us each)."""
    window_us: int | None = EventOptions.window_us
    """Length of a frame in microseconds, for by=time_window."""
    values: str = EventOptions.values
    """counts, or binary: 1 where at least one event fell."""
    bad_events: str = EventOptions.bad_events
    """error, drop, or count (keep what can be kept) for events off the sensor and the like."""
    empty: str = EventOptions.empty
    """error, zero or skip for recordings with no event, or with all events at one time."""
    incomplete: str = EventOptions.incomplete
    """error or report if recordings of the published set are missing."""
    cache: str = EventOptions.cache
    """Folder for frames that were made once; auto is .frames in the root, none keeps none."""
    split_file: str | None = EventOptions.split_file
    """JSON file of the split: read where it is, written where it is not."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network; a size left at None is the named model's own."""

    name: str = "spikformer_cifar"
    """A registered model."""
    init_from: str = ""
    """Start from the weights in this folder: a converted checkpoint, a ticket or a run with one."""
    T: int = 4
    """Time steps."""
    embed_dim: int | None = None
    """Embedding width D."""
    depth: int | None = None
    """Encoder blocks L."""
    num_heads: int | None = None
    """Attention heads h."""
    mlp_ratio: float | None = None
    """Hidden width of the MLP over D."""
    tau: float | None = None
    """Membrane time constant, in steps."""
    decay_input: bool | None = None
    """Whether a LIF divides its input by tau, too; False with tau = 1 / (1 - decay) is the neuron
    of papers that give a decay of the membrane."""
    v_threshold: float | None = None
    """Firing threshold, dimensionless."""
    neuron: str | None = None
    """lif, or relu or sign for the network without time, of models that have the choice (CNNs)."""

    def args(self) -> dict[str, Any]:
        """Keywords for `create_model`: what was set."""
        own = [f.name for f in fields(self) if f.name not in ("name", "init_from")]
        return {name: value for name in own if (value := getattr(self, name)) is not None}

    def start_weights(self) -> dict[str, Tensor] | None:
        """Tensors of the folder `init_from`, by their state_dict names; None without one.

        Raises:
            ConfigError: the folder holds no model, or an export, whose tensors are packed.
            CheckpointError: its file is damaged, or a pickle.
        """
        if not self.init_from:
            return None
        places = [Path(self.init_from) / sub for sub in ("ticket", "")]
        files = [place / "model.safetensors" for place in places]
        found = [file for file in files if file.is_file()]
        rule = "a folder with model.safetensors: a ticket, a finished run, or recipes/convert.py's"
        check(bool(found), "model.init_from", self.init_from, rule)
        tensors, about = read_tensors(found[0])
        plain = about.get("kind") != "spikeformer_lt.export"
        rule = "no export, whose tensors are packed: give the run or ticket that it was made of"
        check(plain, "model.init_from", self.init_from, rule)
        return tensors


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives."""

    out: str = ""
    """Run directory; empty makes a new one under runs/."""
    resume: str = "never"
    """never, auto (go on where --run.out stopped, start if it is new), or a run directory."""
    allow_config_change: tuple[str, ...] = ()
    """Fields that may differ from the run that is resumed."""


def split_options(data: DataConfig) -> dict[str, Any]:
    """Return what a ticket must remember of its data options."""
    names = SPLIT_OPTIONS + (EVENT_OPTIONS if isinstance(data, EventDataConfig) else ())
    return {name: getattr(data, name) for name in names}


def load_splits(data: DataConfig, T: int) -> Splits:
    """Create the data set that a configuration names.

    Args:
        data: the options; event options are refused for a set of still images.
        T: frames that an event recording is cut into; still images do not need it.

    Raises:
        ConfigError: an option that is out of range or that the set does not have.
        DataError: as the data set.
    """
    keywords: dict[str, Any] = {name: getattr(data, name) for name in (*SPLIT_OPTIONS, "download")}
    chosen = {name: getattr(data, name) for name in EVENT_OPTIONS if hasattr(data, name)}
    if "events" in inspect.signature(dataset_factory(data.name)).parameters:
        keywords["events"] = EventOptions(T=T, **chosen)
    else:
        for name, value in chosen.items():
            usual = getattr(EventOptions, name)
            check(value == usual, f"data.{name}", value, f"{usual}: {data.name} are still images")
    splits = create_dataset(data.name, **keywords)
    if not isinstance(splits, Splits):
        raise DataError(f"data set {data.name} gave {type(splits).__name__}, not Splits")
    return splits
