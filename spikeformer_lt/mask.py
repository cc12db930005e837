"""Which weights are kept: the one currency of every search, report and export.

A mask is made of scores by removing an exact number of the lowest ones, ties included.
"""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeformer_lt.disk import read_tensors, write_tensors
from spikeformer_lt.errors import MaskError, counted, name_of, near, shown
from spikeformer_lt.rng import generator_for

SCOPES = ("global", "layer")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


def _tensor_at(model: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of this name, without a walk through the network, if it is found."""
    *path, last = name.split(".")
    owner: Any = model
    try:
        for part in path:
            owner = owner._modules[part]
        found: Tensor | None = owner._parameters.get(last)
        return owner._buffers.get(last) if found is None else found
    except (KeyError, AttributeError, RuntimeError):  # no such module, or a scripted one
        return None


class Mask(Mapping[str, Tensor]):
    """Bool tensors by plain `state_dict` name, on the CPU; True means kept. It never changes.

    Args:
        kept: one tensor per masked weight, shaped as that weight, bool or exact zeros and ones.

    Raises:
        MaskError: no layer, an empty layer, or a value other than 0 and 1.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        _check_mapping(kept, "kept")
        if not kept:
            raise MaskError("a mask needs at least one layer; none was given")
        self._kept = {name: _as_bool(name, tensor) for name, tensor in kept.items()}
        self._bits: dict[tuple[str, torch.device, int], Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        layers, total = counted(len(self), "layer"), f"{self.total:,} entries removed"
        return f"Mask({layers}, {self.removed:,} of {total})"

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[str, Tensor],
        sparsity: float,
        scope: str = "global",
        within: Mask | None = None,
        floor: float = 0.0,
    ) -> Mask:
        """Remove the lowest-scoring entries, to the exact count.

        Args:
            scores: one real tensor per prunable weight, shaped as that weight; larger is kept.
            sparsity: fraction of all entries to remove, in [0, 1), those that `within` already
                removed included.
            scope: "global" ranks all layers together and removes ``round(sparsity * n)`` entries;
                "layer" removes that many of each layer's own n.
            within: previous mask; the result keeps nothing that it dropped.
            floor: least fraction of each layer that stays, in [0, 1]; of what `within` left, if
                that is less.

        Of equal scores those with the lower flat index are kept, layers counted in the order of
        `scores`, on every device alike.

        Raises:
            MaskError: a NaN score; a name or shape that differs from `within`; a fraction outside
                its range; a count that `within` or `floor` makes impossible.
        """
        if within is not None:
            within._check_names(scores, "scores")
        return cls(select(scores, sparsity, scope, within, floor))

    @classmethod
    def random_like(cls, mask: Mask, seed: int) -> Mask:
        """Draw a mask that removes as many entries of each layer of `mask`, at random places."""
        drawn = {}
        for name, kept in mask.items():
            generator = generator_for(seed, "random mask", name)
            order = torch.randperm(kept.numel(), generator=generator)
            drawn[name] = torch.zeros_like(kept)
            drawn[name].view(-1)[order[: int(kept.sum())]] = True
        return cls(drawn)

    @classmethod
    def from_module(cls, module: nn.Module) -> Mask:
        """Take over the masks of ``torch.nn.utils.prune`` that are in force in a network.

        Names are those of the network without them, so that the mask fits it once
        ``prune.remove`` has made its weights plain. A MaskError if nothing is pruned.
        """
        own = dict(module.named_parameters())
        kept = {
            name.removesuffix("_mask"): mask
            for name, mask in module.named_buffers()
            if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in own
        }
        if not kept:
            raise MaskError(f"{type(module).__name__} has no mask of torch.nn.utils.prune")
        return cls(kept)

    def to_prune(self, module: nn.Module) -> None:
        """Put the mask in force by ``torch.nn.utils.prune``, in place, for loops that use it.

        Removed weights are 0 in each forward; ``prune.remove`` makes them plain again. A MaskError
        for a network that it does not fit.
        """
        from torch.nn.utils import prune

        self._check_names(dict(module.named_parameters()), "the model", more_allowed=True)
        for name, kept in self._kept.items():
            path, _, own = name.rpartition(".")
            layer: Any = module.get_submodule(path)
            prune.custom_from_mask(layer, own, kept.to(getattr(layer, own).device))

    @cached_property
    def total(self) -> int:
        """Number of entries."""
        return sum(kept.numel() for kept in self._kept.values())

    @cached_property
    def removed(self) -> int:
        """Number of entries removed."""
        return self.total - sum(int(kept.sum()) for kept in self._kept.values())

    @property
    def sparsity(self) -> float:
        """Fraction of all entries removed, in [0, 1]."""
        return self.removed / self.total

    def layer_sparsity(self) -> dict[str, float]:
        """Return the fraction of entries removed, for each layer."""
        return {name: int((~kept).sum()) / kept.numel() for name, kept in self._kept.items()}

    def hamming(self, other: Mask) -> float:
        """Return the fraction of entries in which two masks of one model differ, in [0, 1]."""
        self._check_names(other, "the other mask")
        differing = sum(int((kept != other[name]).sum()) for name, kept in self._kept.items())
        return differing / self.total

    @cached_property
    def sha256(self) -> str:
        """Hash of names, shapes and entries; the order of the layers does not count."""
        digest = hashlib.sha256()
        for name in sorted(self._kept):
            kept = self._kept[name]
            digest.update(f"{name!r} {list(kept.shape)}\n".encode("utf-8", "surrogatepass"))
            digest.update(np.packbits(kept.numpy().reshape(-1)).tobytes())
        return digest.hexdigest()

    def apply_(self, model: nn.Module) -> None:
        """Set removed weights to +0.0, in place, even NaN; a MaskError if one is missing."""
        weights = self.weights(model)
        with torch.no_grad():
            for name in self._kept:
                weight = weights[name].detach()
                bits = self._bits_for(name, weight)
                weight.view(bits.dtype).bitwise_and_(bits)

    def check(self, model: nn.Module, allow_layer_collapse: bool = False) -> None:
        """Refuse a mask that does not fit `model`, before anything is computed with it.

        Raises:
            MaskError: a name or shape differs, a weight of a masked layer is NaN or infinite, or
                all entries of a layer are removed and `allow_layer_collapse` is not set.
        """
        weights = self.weights(model)
        for name, kept in self._kept.items():
            bad = int((~torch.isfinite(weights[name].detach())).sum())
            if bad:
                raise MaskError(
                    f"layer {shown(name)}: {bad} of {kept.numel()} weights are NaN or infinite; "
                    "go back to a checkpoint with finite weights"
                )
            if not allow_layer_collapse and not bool(kept.any()):
                raise MaskError(
                    f"layer {shown(name)}: all {kept.numel()} weights are removed, so nothing "
                    "passes it; lower the sparsity, set a floor, or pass allow_layer_collapse"
                )

    def save(self, path: str | Path) -> None:
        """Write the mask to one safetensors file, atomically."""
        write_tensors(path, self._kept, self.facts())

    def facts(self) -> dict[str, Any]:
        """Return what is stored with the tensors of the mask."""
        return {"kind": "mask", "mask_sha256": self.sha256, "sparsity": self.sparsity}

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """Read a mask that `save` wrote; CheckpointError for damage, MaskError for another file."""
        return cls.stored(*read_tensors(path), name_of(path))

    @classmethod
    def stored(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], where: str) -> Mask:
        """Make a mask of the tensors and `facts` of a file; MaskError if it is of another kind."""
        if facts.get("kind") != "mask":
            kind = shown(facts.get("kind"))
            raise MaskError(f"{where}: not a mask (its kind is {kind}); give a file of Mask.save")
        mask = cls(tensors)
        if mask.sha256 != facts.get("mask_sha256"):
            raise MaskError(f"{where}: the mask's own checksum differs; restore it from a copy")
        return mask

    def _check_names(
        self, tensors: Mapping[str, Tensor], whose: str, more_allowed: bool = False
    ) -> None:
        for name, kept in self._kept.items():
            if name not in tensors:
                hint = near(name, tensors) or "; use plain state_dict names of the unwrapped model"
                raise MaskError(f"layer {shown(name)} of the mask is not in {whose}{hint}")
            if kept.shape != tensors[name].shape:
                raise MaskError(
                    f"layer {shown(name)}: the mask has shape {list(kept.shape)}, {whose} has "
                    f"{list(tensors[name].shape)}; make the mask for this model"
                )
        if not more_allowed and len(tensors) > len(self):
            extra = next(name for name in tensors if name not in self._kept)
            raise MaskError(f"layer {shown(extra)} of {whose} is not in the mask")

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The masked weights of a network, by name; a MaskError if the mask does not fit it."""
        found = {name: own for name in self._kept if (own := _tensor_at(model, name)) is not None}
        if len(found) < len(self):  # look at all: scripted modules, and errors that name others
            found = dict(model.named_parameters(remove_duplicate=False))
            found |= dict(model.named_buffers())
        self._check_names(found, "the model", more_allowed=True)
        return found

    def _bits_for(self, name: str, weight: Tensor) -> Tensor:
        """Return all-ones or all-zeros words of the weight's size: `and` is exact and fast."""
        if not weight.dtype.is_floating_point:
            raise MaskError(f"layer {shown(name)}: {weight.dtype} weights cannot be masked")
        key = (name, weight.device, weight.dtype.itemsize)
        if key not in self._bits:
            words = self._kept[name].to(_BITS[weight.dtype.itemsize]).neg_()
            self._bits[key] = words.to(weight.device)
        return self._bits[key]

    def __getstate__(self) -> dict[str, object]:
        return {"_kept": self._kept, "_bits": {}}


def _as_bool(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.numel() == 0:
        raise MaskError(f"layer {shown(name)}: a mask needs a tensor with at least one entry")
    if tensor.dtype is not torch.bool:
        odd = int(((tensor != 0) & (tensor != 1)).sum())
        if odd:
            raise MaskError(
                f"layer {shown(name)}: {odd} of {tensor.numel()} mask values are neither 0 nor 1; "
                "give bool tensors, True for kept"
            )
    return tensor.detach().to("cpu", torch.bool).clone(memory_format=torch.contiguous_format)


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: str = "global",
    within: Mapping[str, Tensor] | None = None,
    floor: float = 0.0,
) -> dict[str, Tensor]:
    """Compute `Mask.from_scores`, as bool tensors by layer where the scores are."""
    _check_fraction("sparsity", sparsity, "[0, 1); to keep everything use 0.0")
    _check_fraction("floor", floor, "[0, 1]", closed=True)
    if scope not in SCOPES:
        hint = near(str(scope), SCOPES) or ";"
        raise MaskError(f"scope={shown(scope)} is not allowed{hint} use 'global' or 'layer'")
    _check_mapping(scores, "scores")
    if not scores:
        raise MaskError("scores are empty; a mask needs at least one layer")
    flat = {name: _flat_scores(name, score) for name, score in scores.items()}
    _refuse_nan(flat)
    kept: dict[str, Tensor] = {}
    for group in [list(flat)] if scope == "global" else [[name] for name in flat]:
        whose = "all layers" if scope == "global" else f"layer {shown(group[0])}"
        layers = [flat[name] for name in group]
        alive = [within[name].to(flat[name].device).flatten() for name in group] if within else None
        stays = _survivors(layers, alive, sparsity, floor, whose)
        for name, part in zip(group, stays.split([len(layer) for layer in layers]), strict=True):
            kept[name] = part.view(scores[name].shape)
    return kept


def _survivors(
    layers: Sequence[Tensor],
    alive: Sequence[Tensor] | None,
    sparsity: float,
    floor: float,
    whose: str,
) -> Tensor:
    """Say which entries of flat layers, one after the other, stay of `alive`; all if None."""
    scores = torch.cat([layer.to(layers[0].device) for layer in layers])
    total, target = len(scores), round(sparsity * len(scores))
    if alive is None and floor == 0:
        return keep_largest(scores, total - target)
    left = [torch.ones_like(x, dtype=torch.bool) for x in layers] if alive is None else alive
    stays = torch.cat([flags.to(scores.device) for flags in left])
    gone = total - int(stays.count_nonzero())
    if gone > target:
        raise MaskError(
            f"sparsity={sparsity} would remove {target} of {total} entries of {whose}, but the "
            f"mask in `within` already removed {gone}; ask for at least {gone / total:.6g}"
        )
    free = stays
    if floor:
        safe = [_best(layer, flags, floor) for layer, flags in zip(layers, left, strict=True)]
        free = stays & ~torch.cat([flags.to(scores.device) for flags in safe])
    places = _places(free)
    if target - gone > len(places):
        raise _impossible(sparsity, floor, whose, (gone + len(places)) / total)
    stays[places] = keep_largest(scores[places], len(places) - (target - gone))
    return stays


def check_floor(
    sizes: Mapping[str, int], sparsity: float, scope: str, floor: float, least: int = 0
) -> None:
    """Refuse, from the layers' sizes alone, a floor that leaves too little to remove.

    Each layer keeps `least` entries, whatever the floor.
    """
    for group in [list(sizes)] if scope == "global" else [[name] for name in sizes]:
        total = sum(sizes[name] for name in group)
        free = total - sum(max(least, math.ceil(floor * sizes[name] - 1e-9)) for name in group)
        if round(sparsity * total) > free:
            whose = "all layers" if scope == "global" else f"layer {shown(group[0])}"
            raise _impossible(sparsity, floor, whose, free / total)


def _impossible(sparsity: float, floor: float, whose: str, most: float) -> MaskError:
    given = f"sparsity={sparsity} with floor={floor}" if floor else f"sparsity={sparsity}"
    fault = MaskError(
        f"{given} is impossible for {whose}: at most {most:.6g} can be removed; lower "
        f"{'one of the two' if floor else 'it'}"
    )
    fault.most = most
    return fault


def _best(layer: Tensor, alive: Tensor, floor: float) -> Tensor:
    """Mark the best entries of a layer that are alive, as many as its floor asks for."""
    safe, places = torch.zeros_like(alive), _places(alive)
    # The tolerance keeps 0.1 * 10 at 1 entry where floating point makes it a little more.
    least = min(math.ceil(floor * len(layer) - 1e-9), len(places))
    safe[places] = keep_largest(layer[places], least)
    return safe


def _places(flags: Tensor) -> Tensor:
    # numpy's is five times faster on the CPU.
    fast = flags.is_cpu
    return torch.from_numpy(np.flatnonzero(flags)) if fast else flags.nonzero().flatten()


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest of flat scores; of equal ones those with the lower index."""
    removed = len(scores) - count
    if removed == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # A partition finds the threshold in linear time; a full sort costs ten times as much.
    if scores.is_cpu:
        values = scores.numpy()
        lowest = np.partition(values, removed - 1)[removed - 1]
        flags = values >= lowest
        if surplus := int(np.count_nonzero(flags)) - count:
            flags[np.flatnonzero(values == lowest)[-surplus:]] = False
        return torch.from_numpy(flags)
    return _over_threshold(scores, count)


def _over_threshold(scores: Tensor, count: int) -> Tensor:
    """The same for less than all of them, without a look from the host."""
    threshold = scores.kthvalue(len(scores) - count).values
    above, ties = scores > threshold, scores == threshold
    return above | (ties & (ties.cumsum(0) <= count - above.sum()))


def _flat_scores(name: str, score: Tensor) -> Tensor:
    if not isinstance(score, Tensor) or score.numel() == 0 or score.is_complex():
        raise MaskError(f"layer {shown(name)}: scores must be a real tensor with entries")
    # Exact for every narrower dtype, so that order and ties are those of the given numbers.
    narrow = score.dtype.is_floating_point and score.dtype is not torch.float64
    return score.detach().to(torch.float32 if narrow else torch.float64).flatten()


def _refuse_nan(flat: Mapping[str, Tensor]) -> None:
    # One NaN makes the minimum NaN, and one look at a device is enough for all layers.
    where = next(iter(flat.values())).device
    lowest = torch.stack([layer.min().to(where, torch.float64) for layer in flat.values()])
    if not bool(lowest.isnan().any()):
        return
    name, layer = next((name, layer) for name, layer in flat.items() if bool(layer.isnan().any()))
    bad = f"{int(layer.isnan().sum())} of {len(layer)} scores are NaN"
    raise MaskError(f"layer {shown(name)}: {bad}; nothing to rank")


def _check_mapping(given: object, field: str) -> None:
    if not hasattr(given, "items"):
        raise MaskError(
            f"{field}={shown(given)} is not allowed: tensors by the name of their layer"
        )


def _check_fraction(field: str, value: float, allowed: str, closed: bool = False) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and (0 <= value < 1 or (closed and value == 1))):
        raise MaskError(f"{field}={shown(value)} is outside {allowed}")
