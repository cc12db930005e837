"""ConvInteger takes the place of binary convolutions and of no others."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")

import numpy as np  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from spikeformer_lt.errors import ExportError  # noqa: E402
from spikeformer_lt.export.graphs import use_integers  # noqa: E402
from spikeformer_lt.export.inference import compact  # noqa: E402


def graph_of(layer, name: str):
    """One Conv with the folded weights of a layer."""
    weight, bias = (numpy_helper.from_array(t.contiguous().numpy().copy(), n) for t, n in (
        (layer.weight, f"{name}.weight"), (layer.bias, f"{name}.bias")))  # fmt: skip
    node = helper.make_node(
        "Conv", ["x", f"{name}.weight", f"{name}.bias"], ["y"], pads=[1, 1, 1, 1]
    )
    ends = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", c, 8, 8])
        for n, c in (("x", layer.weight.shape[1]), ("y", len(layer.bias)))
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_integer_form_has_the_same_values(net) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    fast = compact(net()[0])
    name = "conv_pep.stages.2.synapse"
    layer = fast.net.get_submodule(name)
    plain = graph_of(layer, name)
    made = graph_of(layer, name)
    assert use_integers(made, fast) == 1
    assert [node.op_type for node in made.graph.node] == [
        *("Cast", "ConvInteger", "Cast", "Mul", "Add"),
    ]
    assert f"{name}.weight" not in [t.name for t in made.graph.initializer]
    x = (np.random.default_rng(0).random((2, layer.weight.shape[1], 8, 8)) < 0.3).astype(np.float32)
    found = [
        runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for proto in (plain, made)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)
    assert found[0].std() > 0.1


def test_a_graph_without_binary_convolutions_is_refused(net) -> None:
    fast = compact(net(activation="relu")[0])
    name = "conv_pep.stages.1.synapse"
    with pytest.raises(ExportError, match=r"no binary convolution of spikes in this graph \(0 in"):
        use_integers(graph_of(fast.net.get_submodule(name), name), fast)
