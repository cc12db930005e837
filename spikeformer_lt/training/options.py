"""Options that every recipe shares: data, model, run directory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from spikeformer_lt.errors import DataError
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.registry import create_dataset

SPLIT_OPTIONS = ("root", "image_size", "limit_train", "limit_test")
"""Options of a data set that a ticket must repeat to meet its own splits again."""


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
    smoothing: float | None = None
    """Label smoothing; None is the papers' value for the data set."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network; a size left at None is the named model's own."""

    name: str = "spikformer_cifar"
    """A registered model."""
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
    v_threshold: float | None = None
    """Firing threshold, dimensionless."""
    neuron: str | None = None
    """lif, or relu for the network without time, of models that have the choice (CNNs)."""

    def args(self) -> dict[str, Any]:
        """Keywords for `create_model`: what was set."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives."""

    out: str = ""
    """Run directory; empty makes a new one under runs/."""
    resume: str = "never"
    """never, auto (go on where --run.out stopped, start if it is new), or a run directory."""
    allow_config_change: tuple[str, ...] = ()
    """Fields that may differ from the run that is resumed."""


def load_splits(data: DataConfig) -> Splits:
    """Create the data set that a configuration names."""
    splits = create_dataset(
        data.name,
        root=data.root,
        download=data.download,
        image_size=data.image_size,
        limit_train=data.limit_train,
        limit_test=data.limit_test,
    )
    if not isinstance(splits, Splits):
        raise DataError(f"data set {data.name} gave {type(splits).__name__}, not Splits")
    return splits
