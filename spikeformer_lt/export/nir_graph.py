"""The part of a compact network that NIR can say: chains of synapses and LIF neurons.

NIR's LIF is tau dv/dt = v_leak - v + r I; with steps of 1 it is ours, r being 1 where the input
decays and tau where it does not. It has no max-pool, no stateless threshold, no product of two
spike trains (attention) and no gather (patch selection), so these cut a network into chains. A
residual block of a CNN, whose currents add before a neuron, is a graph of its own.

Source: Pedersen et al. 2024, Nature Communications 15:8122 (NIR).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.compact import CompactModel
from spikeformer_lt.export.compact_units import (
    CompactAttention,
    CompactConvLayer,
    CompactConvUnit,
    CompactHiddenLayer,
    CompactLinearUnit,
)
from spikeformer_lt.export.folding import FoldedConv
from spikeformer_lt.export.verify import fixed_batch
from spikeformer_lt.layers.mlp import SpikingMLP
from spikeformer_lt.layers.neuron import LIF

__all__ = ["chains", "to_nir"]

UNITS = (CompactConvUnit, CompactLinearUnit, CompactConvLayer, CompactHiddenLayer)
POOLS = nn.MaxPool2d | nn.AvgPool2d


def to_nir(model: CompactModel, path: str | Path) -> dict[str, str]:
    """Write one NIR graph with a subgraph for each chain, named after its first unit.

    Args:
        model: a compact Spikformer or spiking CNN, on the CPU.
        path: the file, HDF5; `nir.read` reads it.

    Returns:
        What is left out, and why.

    Raises:
        ExportError: nir is missing, or no neuron maps.
    """
    from spikeformer_lt.export.graphs import _need

    _need("nir")
    import nir

    made, left = chains(model)
    if not any(name != "head" for name in made):
        reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise ExportError(f"no part of this network maps to NIR: {reasons}")
    nir.write(str(path), nir.NIRGraph(nodes=made, edges=[], type_check=False))
    return left


def chains(model: CompactModel) -> tuple[dict[str, Any], dict[str, str]]:
    """NIR graphs of the parts that map, by name, and the reason for each part that does not."""
    import nir

    net: Any = model.net
    sizes = _map_sizes(net)
    made: dict[str, Any] = {}
    left: dict[str, str] = {}
    for sequence in _sequences(net):
        nodes: list[Any] = []
        first = ""
        for name, unit in [*sequence, ("", None)]:
            why = "" if unit is None else _refusal(unit)
            if nodes and (why is not None):
                made[first.replace(".", "_")] = nir.NIRGraph.from_list(*nodes)
                nodes = []
            if why:
                left[name] = why
            if why is not None:
                continue
            first = first if nodes else name
            nodes += _nodes(unit, sizes)
            if getattr(unit, "pool", None) is not None:
                made[first.replace(".", "_")] = nir.NIRGraph.from_list(*nodes)
                left[f"{name}.pool"] = "max-pool is no operation of NIR"
                nodes = []
    for name, block in _residual_blocks(net).items():
        why = _refusal(block.conv1) or _neuron_refusal(block.act)
        if why:
            left[name] = why
        else:
            made[name.replace(".", "_")] = _residual(block, sizes)
    if isinstance(getattr(net, "head", None), nn.Linear):
        made["head"] = nir.NIRGraph.from_list(_affine(net.head))
        mean = "the mean over tokens or places, channels innermost, is no operation of NIR"
        left["mean"] = mean
    if any(isinstance(part, CompactAttention) for part in net.modules()):
        left["attention"] = (
            "the product of two spike trains is no operation of NIR; the sums around it go with it"
        )
    if getattr(net, "patch", None) is not None:
        left["patch"] = "a gather by scores is no operation of NIR"
    return made, left


def _sequences(net: Any) -> list[list[tuple[str, Any]]]:
    """Units of which each reads the one before, in the order of the data."""
    found: list[list[tuple[str, Any]]] = []
    for place in ("conv_pep.stages", "layers"):
        if hasattr(net, place.split(".")[0]):
            layers = net.get_submodule(place)
            found.append([(f"{place}.{i}", unit) for i, unit in layers.named_children()])
    for place in ("conv_pep.rpe", "stem", "hidden"):
        owner = getattr(net, place.split(".")[0], None)
        if owner is not None:
            found.append([(place, net.get_submodule(place))])
    for name, part in net.named_modules():
        if isinstance(part, CompactAttention):
            found += [[(f"{name}.qkv", part.qkv)], [(f"{name}.out", part.out)]]
        elif isinstance(part, SpikingMLP):
            found.append([(f"{name}.fc1", part.fc1), (f"{name}.fc2", part.fc2)])
    return found


def _residual_blocks(net: Any) -> dict[str, Any]:
    return {name: part for name, part in net.named_modules()
            if isinstance(getattr(part, "conv2", None), CompactConvLayer)}  # fmt: skip


@torch.no_grad()
def _map_sizes(net: Any) -> dict[int, tuple[tuple[int, int], tuple[int, int]]]:
    """Height and width of the maps that each convolution takes and gives, by its id."""
    sizes: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}

    def note(conv: nn.Module, args: Any, out: torch.Tensor) -> None:
        sizes[id(conv)] = tuple(args[0].shape[-2:]), tuple(out.shape[-2:])  # type: ignore[assignment]

    convs = [module for module in net.modules() if isinstance(module, FoldedConv)]
    handles = [conv.register_forward_hook(note) for conv in convs]
    try:
        net(fixed_batch(net, 1).to(next(net.buffers()).dtype))
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _refusal(unit: Any) -> str | None:
    """Why a unit cannot be said in NIR, or None."""
    if isinstance(unit, POOLS):
        kind = "max-pool" if isinstance(unit, nn.MaxPool2d) else "an average pool that rounds up"
        return f"{kind} is no operation of NIR"
    if not isinstance(unit, UNITS):
        return f"{type(unit).__name__} is no folded unit"
    if getattr(unit, "pool", None) is not None and unit.pool_before_act:
        return "max-pool before the neuron is no operation of NIR"
    return _neuron_refusal(unit.act)


def _neuron_refusal(act: Any) -> str | None:
    if not isinstance(act, LIF):
        return f"{type(act).__name__} has no neuron of NIR"
    if act.v_reset is None:
        return "the soft reset (v_reset None) is not that of NIR's LIF"
    return None


def _nodes(unit: Any, sizes: dict[int, Any]) -> list[Any]:
    if isinstance(unit, CompactConvUnit | CompactConvLayer):
        shape = (len(unit.conv.bias), *sizes[id(unit.conv)][1])
        return [_conv(unit.conv, sizes), _neuron(unit.act, shape)]
    return [_affine(unit.product), _neuron(unit.act, (len(unit.product.bias),))]


def _conv(conv: FoldedConv, sizes: dict[int, Any]) -> Any:
    import nir

    return nir.Conv2d(
        input_shape=sizes[id(conv)][0], weight=_array(conv.weight), stride=conv.stride,
        padding=conv.padding, dilation=conv.dilation, groups=conv.groups, bias=_array(conv.bias),
    )  # fmt: skip


def _affine(layer: Any) -> Any:
    import nir

    return nir.Affine(weight=_array(layer.weight), bias=_array(layer.bias))


def _residual(block: Any, sizes: dict[int, Any]) -> Any:
    """Both branches of a residual block, whose currents meet in its neuron."""
    import nir

    first, neuron = _nodes(block.conv1, sizes)
    shape = (len(block.conv2.conv.bias), *sizes[id(block.conv2.conv)][1])
    inner = {"conv1": first, "lif1": neuron, "conv2": _conv(block.conv2.conv, sizes)}
    nodes = {"input": nir.Input(first.input_type), **inner, "lif": _neuron(block.act, shape)}
    edges = [("input", "conv1"), ("conv1", "lif1"), ("lif1", "conv2"), ("conv2", "lif")]
    straight = "input"
    if block.shortcut is not None:
        straight = "shortcut"
        nodes["shortcut"] = _conv(block.shortcut.conv, sizes)
        edges.append(("input", "shortcut"))
    nodes["output"] = nir.Output(nodes["lif"].output_type)
    return nir.NIRGraph(nodes=nodes, edges=[*edges, (straight, "lif"), ("lif", "output")])


def _neuron(act: Any, shape: tuple[int, ...]) -> Any:
    import nir

    ones = np.ones(shape, np.float32)
    return nir.LIF(
        tau=ones * act.tau,
        r=ones * (1.0 if act.decay_input else act.tau),
        v_leak=ones * act.v_reset,
        v_threshold=ones * act.v_threshold,
        v_reset=ones * act.v_reset,
    )


def _array(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().float().contiguous().numpy().copy()
