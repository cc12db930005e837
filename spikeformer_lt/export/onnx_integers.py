"""Binary convolutions of an ONNX graph in integer arithmetic: ConvInteger, then scale and shift."""

from __future__ import annotations

from typing import Any

import torch

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.compact import CompactModel
from spikeformer_lt.export.folding import FoldedConv

__all__ = ["use_integers"]


def use_integers(proto: Any, model: CompactModel) -> int:
    """Rewrite, in place, every Conv of spikes with binary weights; the sums in int32 are exact.

    Args:
        proto: ``onnx.ModelProto`` of the network.
        model: the network; its `FoldedConv` layers say which weights are binary.

    Returns:
        Number of convolutions rewritten.

    Raises:
        ExportError: the graph has none of the network's binary convolutions.
    """
    import onnx
    from onnx import helper, numpy_helper

    layers = {
        f"{name}.weight": layer
        for name, layer in model.net.named_modules()
        if isinstance(layer, FoldedConv) and layer.as_bytes
    }
    graph, nodes, done = proto.graph, [], []
    for node in graph.node:
        layer = layers.get(node.input[1]) if node.op_type == "Conv" else None
        if layer is None:
            nodes.append(node)
            continue
        name = node.input[1]
        for part, value in (
            ("signs", layer.signs),
            ("gain", layer.gain.view(-1, 1, 1)),
            ("shift", layer.bias.view(-1, 1, 1)),
        ):
            array = value.detach().contiguous().numpy()
            graph.initializer.append(numpy_helper.from_array(array, f"{name}.{part}"))
        steps = [f"{name}.{step}" for step in ("bytes", "sum", "real", "scaled")]
        same = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        nodes += [
            helper.make_node("Cast", [node.input[0]], steps[:1], to=onnx.TensorProto.UINT8),
            helper.make_node("ConvInteger", [steps[0], f"{name}.signs"], [steps[1]], **same),
            helper.make_node("Cast", [steps[1]], [steps[2]], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [steps[2], f"{name}.gain"], [steps[3]]),
            helper.make_node("Add", [steps[3], f"{name}.shift"], list(node.output)),
        ]
        done.append(name)
    if not done:
        raise ExportError(
            f"no binary convolution of spikes in this graph ({len(layers)} in the network); "
            "export it without integers"
        )
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(proto)
    assert torch.float32 == next(iter(layers.values())).weight.dtype
    return len(done)
