"""The part of a compact network that NIR can say: chains of synapses and LIF neurons.

NIR's LIF is tau dv/dt = v_leak - v + r I; with steps of 1 it is ours, r being 1 where the input
decays and tau where it does not. It has no max-pool, no stateless threshold, no product of two
spike trains (attention) and no gather (patch selection), so these cut a network into chains.

Source: Pedersen et al. 2024, Nature Communications 15:8122 (NIR).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.compact import CompactModel
from spikeformer_lt.export.compact_units import CompactConvUnit, CompactLinearUnit
from spikeformer_lt.layers.mlp import SpikingMLP
from spikeformer_lt.layers.neuron import LIF

__all__ = ["chains", "to_nir"]


def to_nir(model: CompactModel, path: str | Path) -> dict[str, str]:
    """Write one NIR graph with a subgraph for each chain: the start of the ConvPEP, every MLP.

    Args:
        model: a compact Spikformer.
        path: the file, HDF5; `nir.read` reads it.

    Returns:
        What is left out, and why.

    Raises:
        ExportError: nir is missing, or no part maps.
    """
    from spikeformer_lt.export.graphs import _need

    _need("nir")
    import nir

    made, left = chains(model)
    if not made:
        reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise ExportError(f"no part of this network maps to NIR: {reasons}")
    nir.write(str(path), nir.NIRGraph(nodes=made, edges=[], type_check=False))
    return left


def chains(model: CompactModel) -> tuple[dict[str, Any], dict[str, str]]:
    """NIR graphs of the parts that map, by name, and the reason for each part that does not."""
    net: Any = model.net
    made: dict[str, Any] = {}
    left: dict[str, str] = {}
    stages = list(getattr(getattr(net, "conv_pep", None), "stages", []))
    size = getattr(net, "image_size", (0, 0))
    taken: list[Any] = []
    for i, stage in enumerate(stages):
        why = _refusal(stage)
        if why is None:
            taken.append(stage)
        if why is not None or stage.pool is not None:
            rest = "max-pool is no operation of NIR" if why is None else why
            left[f"conv_pep.stages.{i}"] = f"{rest}; what follows it is cut off"
            break
    if taken:
        made["conv_pep"] = _chain([node for unit in taken for node in _conv_nodes(unit, size)])
    for name, part in net.named_modules():
        if isinstance(part, SpikingMLP):
            units: list[Any] = [part.fc1, part.fc2]
            reasons = [why for unit in units if (why := _refusal(unit)) is not None]
            if reasons:
                left[name] = reasons[0]
            else:
                nodes = [node for unit in units for node in _linear_nodes(unit)]
                made[name.replace(".", "_")] = _chain(nodes)
    if hasattr(net, "blocks"):
        left["attention"] = "the product of two spike trains is no operation of NIR"
    if getattr(net, "patch", None) is not None:
        left["patch"] = "a gather by scores is no operation of NIR"
    return made, left


def _refusal(unit: Any) -> str | None:
    """Why a unit cannot be said in NIR, or None."""
    if not isinstance(unit, (CompactConvUnit, CompactLinearUnit)):
        return f"{type(unit).__name__} is no folded unit"
    if not isinstance(unit.act, LIF):
        return f"{type(unit.act).__name__} has no neuron of NIR"
    if unit.act.v_reset is None:
        return "the soft reset (v_reset None) is not that of NIR's LIF"
    if getattr(unit, "pool", None) is not None and unit.pool_before_act:
        return "max-pool before the neuron is no operation of NIR"
    return None


def _conv_nodes(unit: CompactConvUnit, size: tuple[int, int]) -> list[Any]:
    import nir

    conv = unit.conv
    weight = _array(conv.weight)
    synapse = nir.Conv2d(
        input_shape=size, weight=weight, stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, groups=conv.groups, bias=_array(conv.bias),
    )  # fmt: skip
    return [synapse, _neuron(unit.act, (len(weight), *size))]


def _linear_nodes(unit: CompactLinearUnit) -> list[Any]:
    import nir

    synapse = nir.Affine(weight=_array(unit.product.weight), bias=_array(unit.product.bias))
    return [synapse, _neuron(unit.act, (len(unit.product.bias),))]


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


def _chain(nodes: list[Any]) -> Any:
    import nir

    return nir.NIRGraph.from_list(*nodes)


def _array(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().float().contiguous().numpy().copy()
