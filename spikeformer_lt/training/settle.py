"""What a configuration is for the data set that it names: small values, lengths, a quick try.

Nothing here imports torch, so that ``--help`` shows these values, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from spikeformer_lt.config import flat_values, given_options, to_dict
from spikeformer_lt.training.options import MOVING, Step, value_at, with_value

FOLLOWING = ("rewind", "round_epochs", "stem_epochs", "patches.selector_epochs")
"""Lengths inside a search that follow its epochs where the user names those alone."""
WARM = {"train.optim.warmup_epochs", "train.optim.cooldown_epochs"}
OF_EPOCHS = "train.optim.of_epochs"
QUICK = 2
"""Epochs that the longest length has under --quick."""


@dataclass(frozen=True)
class Wanted:
    """The set that ``data.name auto`` stands for where it is on disk.

    `signs` are files or folders that show it is there, up to `depth` levels below the root;
    messages call it `title`.
    """

    name: str
    title: str
    signs: tuple[str, ...]
    depth: int = 2

    def is_under(self, root: Path) -> bool:
        """Whether a sign of the set is there."""
        levels = range(self.depth + 1)
        return any(any(root.glob("*/" * n + sign)) for sign in self.signs for n in levels)


CIFAR10 = Wanted("cifar10", "CIFAR-10", ("cifar-10-batches-py", "cifar-10-python.tar.gz"), 0)
_GESTURE = ("ibmGestureTrain", "ibmGestureTrain.tar.gz", "DvsGesture", "DvsGesture.tar.gz")
DVS128_GESTURE = Wanted("dvs128_gesture", "DVS128 Gesture", _GESTURE)
CIFAR10_DVS = Wanted("cifar10_dvs", "CIFAR10-DVS", ("CIFAR10DVS", "CIFAR10DVS.zip", "airplane.zip"))
WANTED = {one.name: one for one in (CIFAR10, DVS128_GESTURE, CIFAR10_DVS)}


def with_published(
    cfg: Any, values: Mapping[str, Any], given: Collection[str]
) -> tuple[Any, list[str]]:
    """The configuration with a preset's options, and in words where the user's `given` ones differ.

    A value that is a mapping is by data set, and leaves other sets as they are.
    """
    differing = []
    for path, found in values.items():
        value = found.get(cfg.data.name) if isinstance(found, Mapping) else found
        now = attrgetter(path)(cfg)
        if path not in given and value is not None:
            cfg = with_value(cfg, path, value)
        elif value not in (None, now):
            differing.append(f"--{path.replace('_', '-')} {now} (published: {value})")
    return cfg, differing


def settle(cfg: Any, wanted: Wanted, fallback: str, small: dict[str, Any]) -> tuple[Any, str, str]:
    """Settle ``data.name auto`` and, on the fallback, the values for small machines.

    Args:
        cfg: a recipe's configuration, as it was read.
        wanted: what auto stands for.
        fallback: the embedded set that auto takes where `wanted` is missing.
        small: option values for the fallback, where the user named none; a group for its fields.

    Returns:
        The configuration; a notice for the user, or ""; and the values taken for what the user did
        not name, small ones and lengths that follow the epochs that were, in words.
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
    usual, given, taken = type(cfg)(), given_options(cfg), dict[str, Any]()
    like = tuple(MOVING) if fallback in MOVING else (fallback,)
    special = {p: v for p, v in MOVING.get(name, {}).items() if value_at(settled, p) is not None}
    leaves = [
        (path, own) if not field else (f"{path}.{field}", getattr(own, field))
        for path, own in ((small | special).items() if name in like else ())
        for field in ([f.name for f in fields(own)] if is_dataclass(own) else [""])
    ]
    for path, value in leaves:
        before, now = (attrgetter(path)(each) for each in (usual, settled))
        if path not in given and now == before != value:
            taken[path] = value
        usual = with_value(usual, path, value)
    for path, value in taken.items():
        settled = with_value(settled, path, value)
    for path, value in _following(settled, usual, given).items():
        settled, taken[path] = with_value(settled, path, value), value
    if cfg.run.quick:
        lengths = {p: v for p, v in _lengths(settled) if p not in given and v}
        longest = max([*lengths.values(), QUICK])
        settled = _shorter(settled, lengths, QUICK / longest)
        if settled.train.optim.of_epochs == 0 and not WARM & set(given):
            lengths[OF_EPOCHS] = longest
            settled = with_value(settled, OF_EPOCHS, int(longest))
        taken |= {path: value_at(settled, path) for path in lengths}
    return settled, notice, ", ".join(f"{path}={value}" for path, value in taken.items())


def _lengths(cfg: Any) -> Iterator[tuple[str, float]]:
    """Every length in epochs of a configuration, by its dotted path."""
    for path, value in flat_values(to_dict(cfg)):
        name = path.rpartition(".")[2]
        if name == "rewind":
            yield path, Step.parse(value).epochs
        elif name == "epochs" or (name.endswith("_epochs") and not path.startswith("train.")):
            yield path, value


def _shorter(cfg: Any, lengths: Mapping[str, float], share: float, where: str = "") -> Any:
    """The configuration with a share of these lengths, whole epochs and at least one."""
    changed: dict[str, Any] = {}
    for name in (field.name for field in fields(cfg)):
        value, path = getattr(cfg, name), f"{where}{name}"
        if is_dataclass(value):
            changed[name] = _shorter(value, lengths, share, f"{path}.")
        elif name == "rewind" and path in lengths:
            step = Step.parse(value)
            changed[name] = str(Step(int(share * step.epochs), max(1, step.extra)))
        elif path in lengths:
            changed[name] = type(value)(max(1, round(share * value)))
    return replace(cfg, **changed)


def _following(cfg: Any, usual: Any, given: Collection[str]) -> dict[str, Any]:
    """Lengths that the user left to the epochs of a search or a phase, where those were named."""
    found: dict[str, Any] = {}
    for group in (field.name for field in fields(cfg)):
        own, before = getattr(cfg, group), getattr(usual, group)
        if f"{group}.epochs" not in given or before.epochs < 1 or own.epochs == before.epochs:
            continue
        for name in FOLLOWING:
            value, scale = value_at(before, name), own.epochs / before.epochs
            if value is None or f"{group}.{name}" in given:
                continue
            step = Step.parse(value) if name == "rewind" else Step(value)
            epochs = max(1, round(scale * step.epochs)) if step.epochs else 0
            rewound = str(Step(max(0, min(epochs, own.epochs - 1)), step.extra))
            found[f"{group}.{name}"] = rewound if name == "rewind" else epochs
    if WARM & set(given) and OF_EPOCHS not in given and cfg.train.optim.of_epochs:
        found[OF_EPOCHS] = 0
    return {path: v for path, v in found.items() if v != attrgetter(path)(cfg)}
