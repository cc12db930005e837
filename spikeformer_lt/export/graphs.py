"""A compact network as a graph for other runtimes: torch.export (.pt2), ONNX and NIR.

NIR's LIF is tau dv/dt = v_leak - v + r I; with steps of 1 it is ours if r is 1 where the input
decays and tau where it does not. A NIR file holds the chains of units between the operations that
NIR lacks; a residual block, whose currents add before a neuron, is a graph of its own.
Source of NIR: Pedersen et al. 2024, Nature Communications 15:8122.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spikeformer_lt.config import to_dict
from spikeformer_lt.disk import write_atomic
from spikeformer_lt.errors import ExportError, shown
from spikeformer_lt.export.api import fixed_batch
from spikeformer_lt.export.inference import CompactModel, FoldedUnit
from spikeformer_lt.export.synapses import FoldedConv2d
from spikeformer_lt.layers.attention import SpikingAttention
from spikeformer_lt.layers.halting import halts
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.patches import PatchSelect, Random, selections
from spikeformer_lt.layers.units import Residual, Unit, chains_of
from spikeformer_lt.preprocess import prepared_for

INTEGERS = ".int8.onnx"
LARGEST_BATCH = 65_536
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
GAP = 1e-4  # of the logits' scale in float32: rounding alone; a flipped spike shows as more


def to_pt2(model: CompactModel, path: str | Path) -> float:
    """Write a ``torch.export`` program (.pt2) with a dynamic batch, on the CPU, and run it back.

    The result and the exceptions are those of `to_onnx`.
    """
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_program(model), file, extra_files=_facts(model))
        file.seek(0)
        gap = _compare(model, torch.export.load(file).module())
    write_atomic(path, file.getvalue(), ExportError)
    return gap


def to_onnx(model: CompactModel, path: str | Path, integers: bool = False) -> float:
    """Write an ONNX graph with a dynamic batch, input "input" and output "logits"; run it back.

    The network is in float32, on the CPU. If it knows the preprocess of its images, the graph takes
    uint8 pixels ``[B, C, H, W]``; otherwise, and of frames, what the network takes. With
    `integers`, binary convolutions of spikes are ConvInteger: int8 weights summed in int32.

    Returns:
        Largest difference of the graph's logits on two batch sizes.

    Raises:
        ExportError: onnx, onnxscript or onnxruntime is missing; what cannot be traced; a graph that
            gives other logits.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    program = _program(model)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    try:
        with _quiet():
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as fault:
        raise ExportError(f"no ONNX graph: {shown(str(fault), 300)}") from fault
    proto = made.model_proto
    for key, value in _facts(model).items():
        proto.metadata_props.add(key=key, value=value)
    if integers:
        use_integers(proto, model)
    data = proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    gap = _compare(model, lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0]))
    write_atomic(path, data, ExportError)
    return gap


def write_graph(model: CompactModel, path: str | Path) -> str:
    """Write the graph that the file's ending names, and describe it.

    Endings are .pt2, .onnx, .int8.onnx (binary convolutions in integers) and .nir.
    """
    kind, integers = Path(path).suffix, Path(path).name.endswith(INTEGERS)
    if kind == ".pt2":
        return f"torch.export program, logits within {to_pt2(model, path):.3g}"
    if kind == ".onnx":
        gap, words = to_onnx(model, path, integers), " in integers" if integers else ""
        return f"ONNX graph{words}, dynamic batch, logits within {gap:.3g}"
    if kind == ".nir":
        left = to_nir(model, path)
        return "NIR; left out: " + "; ".join(f"{name}: {why}" for name, why in left.items())
    raise ExportError(f"{shown(str(path))}: a graph ends in .pt2, .onnx, {INTEGERS} or .nir")


class _OfPixels(nn.Module):
    """A network of images with its normalisation before it: uint8 pixels ``[B, C, H, W]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net, like = net, next(net.parameters())
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1).to(like))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.net((pixels.to(self.mean.dtype) / 255 - self.mean) / self.std)
        return logits


def _graph_of(model: CompactModel, batch: int) -> tuple[nn.Module, Tensor]:
    """The module that becomes a graph, and a batch of its input."""
    how, x = model.preprocess, fixed_batch(model.net, batch)
    if how is None or how.recordings is not None:
        return model.net, x.to(next(model.net.parameters()).dtype)
    return _OfPixels(model.net, how.mean, how.std), (255 * x).round().to(torch.uint8)


def _facts(model: CompactModel) -> dict[str, str]:
    """What a file says of its input beside the graph."""
    known = model.preprocess
    return {} if known is None else {"preprocess": json.dumps(to_dict(prepared_for(model)))}


def _program(model: CompactModel) -> Any:
    # 0 and 1 would be taken for constants.
    net, x = _graph_of(copy.deepcopy(model), 3)
    if any(isinstance(patches.score, Random) for patches in selections(model.net)):
        raise ExportError(
            "the random patch score hashes the bits of an image, for which graphs have no "
            "operation; it is a control, not for deployment"
        )
    if halts(model.net):
        raise ExportError(
            "tokens or images of this network halt, so that its values choose what is computed, "
            "for which graphs have no operation: load_exported() runs it"
        )
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    except Exception as fault:
        name = type(model.net).__name__
        raise ExportError(f"{name} is no graph: {shown(str(fault), 300)}") from fault


def _compare(model: CompactModel, run: Any) -> float:
    gap = 0.0
    net, x = _graph_of(model, 4)
    with torch.no_grad():
        for part in (x, x[:1].contiguous()):
            found: Tensor = run(part)
            wanted: Tensor = net(part)
            if found.shape != wanted.shape:
                raise ExportError(f"the graph gives {list(found.shape)}, not {list(wanted.shape)}")
            gap = max(gap, float((found - wanted).abs().max()))
            scale = max(1.0, float(wanted.abs().max()))
    exact = wanted.dtype == torch.float64
    if not gap <= (1e-9 if exact else GAP) * scale:
        same = bool((found.mean(1).argmax(1) == wanted.mean(1).argmax(1)).all())
        if exact or not same:
            raise ExportError(f"the graph's logits differ by {gap:g}; nothing is written")
        words = "the graph's logits differ by %g: rounding flipped spikes; the classes are the same"
        logging.getLogger(__name__).warning(words, gap)
    return gap


def _need(*names: str) -> None:
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ExportError(
            f"{', '.join(missing)} is not installed; install it with: "
            "pip install 'spikeformer_lt[onnx,nir]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warnings about itself and the exporters' progress."""
    with warnings.catch_warnings(), ExitStack() as levels:
        warnings.simplefilter("ignore")
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logger = logging.getLogger(name)
            levels.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


def use_integers(proto: Any, model: CompactModel) -> int:
    """Rewrite every Conv of spikes with binary weights, in place, and count them.

    The `FoldedConv2d` layers say which weights of the ``onnx.ModelProto`` are binary. Sums in int32
    are exact.

    Raises:
        ExportError: the graph has none of the network's binary convolutions.
    """
    import onnx
    from onnx import helper, numpy_helper

    layers: dict[str, Any] = {
        f"{start}{name}.weight": layer
        for start in ("", "net.")  # alone, or behind its normalisation
        for name, layer in model.net.named_modules()
        if isinstance(layer, FoldedConv2d) and layer.has_bytes()
    }
    graph, nodes, done = proto.graph, [], 0
    for node in graph.node:
        layer = layers.get(node.input[1]) if node.op_type == "Conv" else None
        if layer is None:
            nodes.append(node)
            continue
        name, done = node.input[1], done + 1
        gain, shift = layer.gain.view(-1, 1, 1), layer.bias.view(-1, 1, 1)
        for part, value in (("signs", layer.signs), ("gain", gain), ("shift", shift)):
            graph.initializer.append(numpy_helper.from_array(_array(value), f"{name}.{part}"))
        steps = [f"{name}.{step}" for step in ("bytes", "sum", "real", "scaled")]
        same = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        nodes += [
            helper.make_node("Cast", [node.input[0]], steps[:1], to=onnx.TensorProto.UINT8),
            helper.make_node("ConvInteger", [steps[0], f"{name}.signs"], [steps[1]], **same),
            helper.make_node("Cast", [steps[1]], [steps[2]], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [steps[2], f"{name}.gain"], [steps[3]]),
            helper.make_node("Add", [steps[3], f"{name}.shift"], list(node.output)),
        ]
    if not done:
        raise ExportError(
            f"no binary convolution of spikes in this graph ({len(layers) // 2} in the network); "
            "export it without integers"
        )
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        del field[:]
        field.extend(values)
    onnx.checker.check_model(proto)
    return done


def to_nir(model: CompactModel, path: str | Path) -> dict[str, str]:
    """Write one NIR graph (HDF5) with a subgraph a chain of units; what is left out, and why.

    Raises:
        ExportError: nir is missing, or no neuron maps.
    """
    _need("nir")
    import nir

    made, left = chains(model)
    if not made.keys() - {"head"}:
        reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise ExportError(f"no part of this network maps to NIR: {reasons}")
    file = io.BytesIO()
    nir.write(file, nir.NIRGraph(made, [], _facts(model), type_check=False))
    write_atomic(path, file.getvalue(), ExportError)
    return left


def chains(model: CompactModel) -> tuple[dict[str, Any], dict[str, str]]:
    """NIR graphs of the parts that map, by name, and the reason for each part that does not."""
    import nir

    net: Any = model.net
    order, sizes = _trace(net)
    links = {link for chain in chains_of(net) for link in pairwise(chain.names)}
    made: dict[str, Any] = {}
    left: dict[str, str] = {}
    nodes: list[Any] = []
    first = before = ""
    for name in [*order, ""]:
        part = net.get_submodule(name) if name else None
        why = None if part is None else _refusal(part)
        linear = isinstance(getattr(part, "synapse", None), nn.Linear)
        flattened = linear != isinstance(nodes[-2] if nodes else None, nir.Affine)
        if nodes and (why or flattened or (before, name) not in links):
            made[first.replace(".", "_")] = nir.NIRGraph.from_list(*nodes)
            nodes = []
        if why and not (before in left and name.startswith(f"{before}.")):
            left[name] = why
        if part is not None and not why:
            first = first if nodes else name
            nodes += _nodes(part, sizes)
        before = name
    blocks = {name: part for name, part in net.named_modules() if isinstance(part, Residual)}
    for name, block in blocks.items():
        refusals = [_refusal(unit) for unit in block.branch()[:-1]]
        why = next(filter(None, [*refusals, _neuron_refusal(block.neuron)]), None)
        if why:
            left[name] = why
        else:
            made[name.replace(".", "_")] = _residual(block, sizes)
    lacking = "is no operation of NIR"
    if isinstance(getattr(net, "head", None), nn.Linear):
        made["head"] = nir.NIRGraph.from_list(_synapse(net.head, sizes))
        left["mean"] = f"the mean over tokens or places, channels innermost, {lacking}"
    if any(isinstance(part, SpikingAttention) for part in net.modules()):
        left["attention"] = (
            f"the product of two spike trains {lacking}; the sums around it go with it"
        )
    if selections(net):
        left["patch"] = f"a gather by scores {lacking}"
    if halts(net):
        left["halting"] = f"a threshold of sums of scores {lacking}: the graph runs all steps"
    return made, left


@torch.no_grad()
def _trace(net: nn.Module) -> tuple[list[str], dict[int, Any]]:
    """Names of units and pools in the order of their calls, and sizes of maps.

    Units of residual blocks and of the patch selection are left out. Sizes are heights and widths
    of a convolution's input and output, by the id of the convolution.
    """
    order: dict[str, None] = {}
    sizes: dict[int, Any] = {}
    names, kinds = {part: name for name, part in net.named_modules()}, cast(Any, (Unit, *POOLS))
    apart = [part for part in names if isinstance(part, PatchSelect | cast(Any, Residual))]
    inside = {part for whole in apart for part in whole.modules()}

    def measure(conv: nn.Module, args: Any, out: Tensor) -> None:
        sizes[id(conv)] = tuple(args[0].shape[-2:]), tuple(out.shape[-2:])

    def note(part: nn.Module, args: Any) -> None:
        order.setdefault(names[part])

    with ExitStack() as hooks:
        for part in names:
            if isinstance(part, FoldedConv2d):
                hooks.callback(part.register_forward_hook(measure).remove)
            if isinstance(part, kinds) and part not in inside:
                hooks.callback(part.register_forward_pre_hook(note).remove)
        net(fixed_batch(net, 1).to(next(net.parameters()).dtype))
    return list(order), sizes


def _refusal(unit: Any) -> str | None:
    """Reason why a unit or a pool cannot be written in NIR, or None."""
    if isinstance(unit, POOLS):
        kind = "max-pool" if isinstance(unit, nn.MaxPool2d) else "an average pool that rounds up"
        return f"{kind} is no operation of NIR"
    if not isinstance(unit, FoldedUnit):
        return f"{type(unit).__name__} is no folded unit"
    if getattr(unit, "pool_before_act", False) and unit.pool is not None:
        return "max-pool before the neuron is no operation of NIR"
    return _neuron_refusal(unit.neuron)


def _neuron_refusal(act: Any) -> str | None:
    if act is None:
        return "it ends with a current that a sum reads, and no neuron follows"
    if not isinstance(act, LIF):
        return f"{type(act).__name__} has no neuron of NIR"
    if act.v_reset is None:
        return "the soft reset (v_reset None) is not that of NIR's LIF"
    return None


def _nodes(unit: Any, sizes: dict[int, Any], neuron: Any = None) -> list[Any]:
    """Synapses and neurons of a unit; its own neurons by default."""
    import nir

    act, places = neuron or unit.neuron, sizes.get(id(unit.synapse), ((), ()))[1]
    ones = np.ones((len(unit.synapse.bias), *places), np.float32)
    lif = nir.LIF(
        tau=ones * act.tau, r=ones * (1.0 if act.decay_input else act.tau),
        v_leak=ones * act.v_reset, v_threshold=ones * act.v_threshold, v_reset=ones * act.v_reset,
    )  # fmt: skip
    return [_synapse(unit.synapse, sizes), lif]


def _synapse(layer: Any, sizes: dict[int, Any]) -> Any:
    import nir

    weight, bias = _array(layer.weight), _array(layer.bias)
    if isinstance(layer, nn.Linear):
        return nir.Affine(weight=weight, bias=bias)
    return nir.Conv2d(
        input_shape=sizes[id(layer)][0], weight=weight, stride=layer.stride,
        padding=layer.padding, dilation=layer.dilation, groups=layer.groups, bias=bias,
    )  # fmt: skip


def _residual(block: Residual, sizes: dict[int, Any]) -> Any:
    """Graph of both branches of a residual block, whose currents add before its neuron."""
    import nir

    *units, last = block.branch()
    nodes: dict[str, Any] = {}
    for i, unit in enumerate(units, 1):
        nodes[f"conv{i}"], nodes[f"lif{i}"] = _nodes(unit, sizes)
    nodes[f"conv{len(units) + 1}"], nodes["lif"] = _nodes(last, sizes, block.neuron)
    edges = list(pairwise(["input", *nodes]))
    nodes["input"] = nir.Input(nodes["conv1"].input_type)
    straight = "input"
    if block.shortcut is not None:
        straight = "shortcut"
        nodes["shortcut"] = _synapse(block.shortcut.synapse, sizes)
        edges.append(("input", "shortcut"))
    nodes["output"] = nir.Output(nodes["lif"].output_type)
    return nir.NIRGraph(nodes=nodes, edges=[*edges, (straight, "lif"), ("lif", "output")])


def _array(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy().copy()
