"""Graphs for other runtimes give the logits of the compact network, for any batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export import graphs
from spikeformer_lt.export.compact import compact
from spikeformer_lt.export.graphs import to_onnx, to_pt2, write
from spikeformer_lt.export.verify import fixed_batch

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra 'onnx' is not installed",
)


@pytest.mark.parametrize("choice", [{"in_channels": 2}, {"activation": "heaviside"}], ids=str)
def test_an_exported_program_is_exact_in_float64(choice, net, images, tmp_path: Path) -> None:
    model, _, _ = net(**choice)
    fast = compact(model.double())
    assert to_pt2(fast, tmp_path / "a.pt2") <= 1e-9
    program = torch.export.load(tmp_path / "a.pt2").module()
    x = images(model, 5).double()
    torch.testing.assert_close(program(x), fast(x), rtol=0, atol=1e-9)
    assert fast(x).std() > 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


@needs_onnx
@pytest.mark.parametrize("integers", [False, True])
def test_onnxruntime_agrees_for_any_batch(integers: bool, net, images, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model, _, _ = net(score="tp")
    fast = compact(model)
    assert to_onnx(fast, tmp_path / "a.onnx", integers) <= 1e-5
    proto = onnx.load(tmp_path / "a.onnx")
    assert sum(node.op_type == "ConvInteger" for node in proto.graph.node) == 4 * integers
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x = images(model, batch)
        (found,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), fast(x), rtol=0, atol=1e-5)


@needs_onnx
def test_a_graph_with_other_logits_is_not_written(
    net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = compact(net(patches=0.0)[0])
    real = graphs._program

    def other(model):
        changed = compact(net(patches=0.0)[0])
        changed.net.head.bias = torch.nn.Parameter(torch.arange(10.0).flip(0) * 9)
        return real(changed)

    monkeypatch.setattr(graphs, "_program", other)
    with pytest.raises(ExportError, match="logits differ by"):
        to_onnx(fast, tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="logits differ by"):
        to_pt2(fast, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_what_has_no_graph_is_refused_by_name(net, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="random patch score"):
        to_pt2(compact(net(score="random")[0]), tmp_path / "a.pt2")
    with pytest.raises(ExportError, match=r"ends in \.pt2, \.onnx or \.nir"):
        write(compact(net()[0]), tmp_path / "a.tflite")


def test_a_missing_extra_is_named(net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx, onnxscript, onnxruntime is not installed"):
        to_onnx(compact(net()[0]), tmp_path / "a.onnx")


def test_the_batch_of_the_comparison_is_not_silent(net) -> None:
    model, _, _ = net()
    with torch.no_grad():
        assert model(fixed_batch(model)).std() > 1e-4
