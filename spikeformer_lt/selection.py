"""Choosing an exact number of lowest scores, ties included: the arithmetic under `Mask`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.errors import MaskError, near, shown

Flags: TypeAlias = NDArray[np.bool_]
Scores: TypeAlias = NDArray[np.floating[Any]]
SCOPES = ("global", "layer")


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: str,
    within: Mapping[str, Tensor] | None,
    floor: float,
) -> dict[str, Tensor]:
    """Do the work of `Mask.from_scores`, which explains the arguments.

    Returns:
        One bool tensor per layer on the CPU, True for kept.

    Raises:
        MaskError: as `Mask.from_scores`.
    """
    _check_fraction("sparsity", sparsity, "[0, 1); to keep everything use 0.0")
    _check_fraction("floor", floor, "[0, 1]", closed=True)
    if scope not in SCOPES:
        hint = near(str(scope), SCOPES) or ";"
        raise MaskError(f"scope={shown(scope)} is not allowed{hint} use 'global' or 'layer'")
    if not scores:
        raise MaskError("scores are empty; a mask needs at least one layer")
    flat = {name: _flat_scores(name, score) for name, score in scores.items()}
    alive = {
        name: np.ones(len(layer), dtype=bool)
        if within is None
        else within[name].numpy().reshape(-1)
        for name, layer in flat.items()
    }
    kept: dict[str, Tensor] = {}
    for group in [list(flat)] if scope == "global" else [[name] for name in flat]:
        layers, flags = [flat[name] for name in group], [alive[name] for name in group]
        whose = "all layers" if scope == "global" else f"layer {shown(group[0])}"
        for name, part in zip(
            group, _survivors(layers, flags, sparsity, floor, whose), strict=True
        ):
            kept[name] = torch.from_numpy(part).view(scores[name].shape)
    return kept


def _survivors(
    scores: Sequence[Scores], alive: Sequence[Flags], sparsity: float, floor: float, whose: str
) -> list[Flags]:
    """Say which entries of some flat layers stay when ``round(sparsity * n)`` of all n go."""
    total = sum(len(layer) for layer in scores)
    target = round(sparsity * total)
    gone = total - sum(int(np.count_nonzero(flags)) for flags in alive)
    if gone > target:
        raise MaskError(
            f"sparsity={sparsity} would remove {target} of {total} entries of {whose}, but the "
            f"mask in `within` already removed {gone}; ask for at least {gone / total:.6g}"
        )
    if gone == 0 and floor == 0:
        stays = _keep(np.concatenate(scores), target)
    else:
        free = np.concatenate(
            [
                flags & ~_protected(layer, flags, floor)
                for layer, flags in zip(scores, alive, strict=True)
            ]
        )
        places = np.flatnonzero(free)
        if target - gone > len(places):
            possible = (gone + len(places)) / total
            raise MaskError(
                f"sparsity={sparsity} with floor={floor} is impossible for {whose}: at most "
                f"{possible:.6g} can be removed; lower one of the two"
            )
        stays = np.concatenate(alive)
        stays[places] = _keep(np.concatenate(scores)[places], target - gone)
    ends = np.cumsum([len(layer) for layer in scores])[:-1]
    return [np.asarray(part) for part in np.split(stays, ends)]


def _protected(layer: Scores, alive: Flags, floor: float) -> Flags:
    """Mark the best entries of a layer, as many as its floor asks for."""
    safe = np.zeros(len(layer), dtype=bool)
    places = np.flatnonzero(alive)
    # The tolerance keeps 0.1 * 10 at 1 entry where floating point makes it a little more.
    count = min(math.ceil(floor * len(layer) - 1e-9), len(places))
    safe[places] = _keep(layer[places], len(places) - count)
    return safe


def _keep(scores: Scores, removed: int) -> Flags:
    """Mark all but the `removed` lowest scores; of equal ones the last go first."""
    if removed == 0:
        return np.ones(len(scores), dtype=bool)
    # A partition finds the threshold in linear time; a full sort costs ten times as much.
    threshold = np.partition(scores, removed - 1)[removed - 1]
    stays = scores >= threshold
    surplus = int(np.count_nonzero(stays)) - (len(scores) - removed)
    if surplus:
        ties = np.flatnonzero(scores == threshold)
        stays[ties[len(ties) - surplus :]] = False
    return np.asarray(stays, dtype=bool)


def _flat_scores(name: str, score: Tensor) -> Scores:
    if not isinstance(score, Tensor) or score.numel() == 0 or score.is_complex():
        raise MaskError(f"layer {shown(name)}: scores must be a real tensor with entries")
    # Exact for every narrower dtype, so that order and ties are those of the given numbers.
    narrow = score.dtype.is_floating_point and score.dtype is not torch.float64
    flat: Scores = (
        score.detach().to("cpu", torch.float32 if narrow else torch.float64).reshape(-1).numpy()
    )
    # One NaN makes the minimum NaN: cheaper than a flag for every entry.
    if math.isnan(float(flat.min())):
        bad = int(np.isnan(flat).sum())
        raise MaskError(
            f"layer {shown(name)}: {bad} of {len(flat)} scores are NaN; nothing to rank"
        )
    return flat


def _check_fraction(field: str, value: float, allowed: str, closed: bool = False) -> None:
    fits = (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and (0 <= value < 1 or (closed and value == 1))
    )
    if not fits:
        raise MaskError(f"{field}={shown(value)} is outside {allowed}")
