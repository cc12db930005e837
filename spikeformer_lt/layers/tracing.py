"""Chains of units found by watching one forward, for models that do not declare them."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spikeformer_lt.layers.inputs import kept_modes
from spikeformer_lt.layers.units import Chain, Unit

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@torch.no_grad()
def trace_chains(model: nn.Module, x: Tensor) -> list[Chain]:
    """Chains of a model: units whose output the next unit, or a linear map, alone reads.

    Pools between two units are passed. An output that any other operation reads, except a view, and
    a module that is called twice, are in no chain; nor is a map that is averaged or flattened. The
    model runs once, in eval mode and plain torch operations; values of `x` do not matter.
    """
    inside = {id(p) for m in model.modules() if isinstance(m, Unit) for p in list(m.modules())[1:]}
    parts: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Unit | nn.Linear | nn.MaxPool2d | nn.AvgPool2d)
        and id(module) not in inside
    }
    reads = _Reads()
    with ExitStack() as stack, kept_modes(model):
        for name, module in parts.items():
            enter, leave = partial(reads.enter, name), partial(reads.leave, name)
            stack.enter_context(module.register_forward_pre_hook(enter))
            stack.enter_context(module.register_forward_hook(leave))
        model.eval()
        with reads:
            model(x)
    return _chains(parts, reads)


def _chains(parts: dict[str, Any], reads: _Reads) -> list[Chain]:
    after = {
        name: next(iter(readers))
        for name, readers in reads.readers.items()
        if len(readers) == 1 and readers <= reads.fits[name]
    }
    chains, following = [], set(after.values())
    for name, part in parts.items():
        if not isinstance(part, Unit) or name in following:
            continue
        names, channels = [name], part.synapse.weight.shape[0]
        while name in after:
            name = after[name]
            reader = parts[name]
            if isinstance(reader, _POOLS):
                continue
            weight = reader.synapse.weight if isinstance(reader, Unit) else reader.weight
            if weight.shape[1] != channels:
                break
            names.append(name)
            channels = weight.shape[0]
            if not isinstance(reader, Unit):
                break
        if len(names) > 1:
            chains.append(Chain(tuple(names)))
    return chains


class _Reads(TorchDispatchMode):
    """Who reads the outputs of which module: names of modules, or "" for any other operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.readers: defaultdict[str, set[str]] = defaultdict(set)
        self.fits: defaultdict[str, set[str]] = defaultdict(set)  # readers of the same channels
        self._made: dict[int, tuple[str, Tensor, int]] = {}  # by storage; kept, so none is reused
        self._open: list[str] = []
        self._called: set[str] = set()

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        known = self._made.get(x.untyped_storage().data_ptr())
        axis = 1 if isinstance(module, _POOLS) else -1
        if known is not None:
            source, made, channel = known
            same = x.shape[axis] == made.shape[channel] and x.stride(axis) == made.stride(channel)
            if same and x.storage_offset() == made.storage_offset():
                self.fits[source].add(name)
        if name in self._called:
            self.readers[name].add("")
            self.fits[name].clear()
        self._called.add(name)
        self._open.append(name)

    def leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._open.pop()
        for out in output if isinstance(output, tuple) else (output,):
            place = out.untyped_storage().data_ptr()
            if place in self._made:  # it hands on what it read
                self.readers[name].add("")
                self.readers[self._made[place][0]].add("")
            else:
                self._made[place] = name, out, 1 if isinstance(module, _POOLS) else -1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        places = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        view = isinstance(out, Tensor) and out.untyped_storage().data_ptr() in places
        if view and not func._schema.is_mutable:
            return out
        reader = self._open[-1] if self._open else ""
        for place in places & self._made.keys():
            name = self._made[place][0]
            if name != reader:
                self.readers[name].add(reader)
        return out
