"""Which data a run meets: the set that is there, its usual augmentation and mixing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from spikeformer_lt.config import check, given_options
from spikeformer_lt.events.augment import EventAugment
from spikeformer_lt.images.augment import Augment
from spikeformer_lt.images.mixing import Mixing
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.training.options import DataConfig


@dataclass(frozen=True)
class Wanted:
    """The set that ``data.name auto`` stands for where it is on disk.

    Attributes:
        name: registered name.
        title: what messages call it.
        signs: files or folders that show it is there.
        depth: levels below the root at which its reader finds them.
    """

    name: str
    title: str
    signs: tuple[str, ...]
    depth: int = 2

    def is_under(self, root: Path) -> bool:
        """Whether a sign of the set is there."""
        return any(
            any(root.glob("*/" * level + sign))
            for sign in self.signs
            for level in range(self.depth + 1)
        )


CIFAR10 = Wanted("cifar10", "CIFAR-10", ("cifar-10-batches-py", "cifar-10-python.tar.gz"), 0)
DVS128_GESTURE = Wanted(
    "dvs128_gesture",
    "DVS128 Gesture",
    (
        *("ibmGestureTrain", "ibmGestureTrain.tar.gz"),
        *("DvsGesture", "DvsGesture.tar.gz"),
    ),
)
CIFAR10_DVS = Wanted("cifar10_dvs", "CIFAR10-DVS", ("CIFAR10DVS", "CIFAR10DVS.zip", "airplane.zip"))


def settle(cfg: Any, wanted: Wanted, fallback: str, small: dict[str, Any]) -> tuple[Any, str, str]:
    """Settle ``data.name auto`` and, on the fallback, the values for small machines.

    Args:
        cfg: a recipe's configuration, as it was read.
        wanted: what auto stands for.
        fallback: the embedded set that auto takes where `wanted` is missing.
        small: option values for the fallback, where the user named none; a group stands for each
            of its fields.

    Returns:
        The configuration; a notice for the user, or ""; and the small values taken, in words.
    """
    name, notice = cfg.data.name, ""
    if name == "auto":
        root = Path(cfg.data.root)
        name = wanted.name if cfg.data.download or wanted.is_under(root) else fallback
        if name == fallback:
            notice = (
                f"{wanted.title} is not under {root}/: running on the embedded {name} instead. "
                f"Its results are not {wanted.title} results; --data.download fetches it."
            )
    settled = replace(cfg, data=replace(cfg.data, name=name))
    if name != fallback:
        return settled, notice, ""
    plain, given, taken = type(cfg)(), given_options(cfg), []
    for path, value in _leaves(small):
        if path not in given and _get(settled, path) == _get(plain, path) != value:
            settled = _set(settled, path, value)
            taken.append(f"{path}={value}")
    return settled, notice, ", ".join(taken)


def augmentation(data: DataConfig, splits: Splits) -> tuple[Augment | EventAugment, Mixing]:
    """Return what training does to samples and batches: the set's usual, or what was asked for."""
    name = splits.augment if data.augment == "auto" else data.augment
    asked = {
        "mixup": data.mixup,
        "cutmix": data.cutmix,
        "smoothing": data.smoothing,
        "until": data.mix_until,
    }
    given = {field: value for field, value in asked.items() if value is not None}
    mixing = replace(Mixing.standard(name), **given)
    kind = EventAugment if splits.kind == "events" else Augment
    return kind.standard(name), mixing


def _get(cfg: Any, path: str) -> Any:
    for name in path.split("."):
        cfg = getattr(cfg, name)
    return cfg


def _leaves(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for path, value in values.items():
        if is_dataclass(value):
            yield from ((f"{path}.{f.name}", getattr(value, f.name)) for f in fields(value))
        else:
            yield path, value


def _set(cfg: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    check(is_dataclass(cfg) and hasattr(cfg, name), path, value, "a field of the configuration")
    return replace(cfg, **{name: _set(getattr(cfg, name), rest, value) if rest else value})
