"""Graphs for other runtimes give the logits of the compact network, for any batch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export import Preprocess, Recordings, graphs
from spikeformer_lt.export.api import fixed_batch
from spikeformer_lt.export.graphs import to_onnx, to_pt2, write_graph
from spikeformer_lt.export.inference import compact
from spikeformer_lt.tickets import PatchConfig, set_patches

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra 'onnx' is not installed",
)


CHOICES: list[Any] = [
    {"in_channels": 2},
    "resnet of events",
    pytest.param({"activation": "heaviside"}, marks=pytest.mark.slow),
    pytest.param("vgg", marks=pytest.mark.slow),
]
FLOATS, INTEGERS = "a.onnx", "a.int8.onnx"
ONNX_CHOICES = [
    ({"score": "tp"}, 4, FLOATS),
    ({"score": "tp"}, 4, INTEGERS),
    pytest.param({"in_channels": 2, "patches": 0.0}, 4, FLOATS, marks=pytest.mark.slow),
    pytest.param({"in_channels": 2, "patches": 0.0}, 4, INTEGERS, marks=pytest.mark.slow),
    ("vgg of events", 1, FLOATS),
    pytest.param("vgg of events", 1, INTEGERS, marks=pytest.mark.slow),
    pytest.param("resnet", 6, FLOATS, marks=pytest.mark.slow),
    ("resnet", 6, INTEGERS),
]


@pytest.fixture
def made(net, cnn):
    """Give the function that makes a CNN by its name, or a Spikformer by its options."""
    return lambda choice: cnn(choice) if isinstance(choice, str) else net(**choice)[0]


def faulty(x: torch.Tensor) -> list[torch.Tensor]:
    """Inputs that no network of this one's door takes: channels, size, dtype, axes."""
    return [x[..., :1, :, :], x[..., :-1], x.to(torch.float16), x[:, None]]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_an_exported_program_is_exact_in_float64(choice, made, images, tmp_path: Path) -> None:
    """For any batch by one file; a wrong input is refused, not computed."""
    model = made(choice)
    fast = compact(model.double())
    assert to_pt2(fast, tmp_path / "a.pt2") <= 1e-9
    program = torch.export.load(tmp_path / "a.pt2").module()
    for batch in (1, 2, 5):
        x = images(model, batch).double()
        torch.testing.assert_close(program(x), fast(x), rtol=0, atol=1e-9)
    assert fast(x).std() > 1e-4
    for wrong in faulty(x):
        with pytest.raises(Exception, match="."):
            program(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


def test_a_graph_says_the_frames_that_it_takes(net) -> None:
    model = net(in_channels=2, patches=0.0)[0]
    classes = tuple(map(str, range(model.num_classes)))
    recordings = Recordings((16, 16), model.T + 5)
    fast = compact(model)
    fast.preprocess = Preprocess(
        "off,on", model.image_size[0], (0.0, 0.0), (1.0, 1.0), classes, recordings
    )
    said = json.loads(graphs._facts(fast)["preprocess"])
    assert said["recordings"]["T"] == model.T


@pytest.mark.slow
def test_tokens_that_stop_are_in_the_graph(net, images, tmp_path: Path) -> None:
    model = net(patches=0.0)[0].double()
    set_patches(model, PatchConfig(0.4, "tp", "stop"))
    assert to_pt2(compact(model), tmp_path / "a.pt2") <= 1e-9
    program, x = torch.export.load(tmp_path / "a.pt2").module(), images(model, 5).double()
    torch.testing.assert_close(program(x), model(x), rtol=0, atol=1e-9)


@needs_onnx
@pytest.mark.parametrize(("choice", "integer_layers", "name"), ONNX_CHOICES, ids=str)
def test_onnxruntime_agrees_for_any_batch(
    name: str, choice, integer_layers: int, made, images, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    model = made(choice)
    if isinstance(choice, str):
        with torch.no_grad():
            for conv in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
                conv.weight.copy_(conv.weight.sign() * 0.2)
    fast = compact(model)
    said = write_graph(fast, tmp_path / name)
    integers = name == INTEGERS
    assert ("integers" in said) == integers and "dynamic batch" in said
    proto = onnx.load(tmp_path / name)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("ConvInteger") == integer_layers * integers
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        tmp_path / name, options, providers=["CPUExecutionProvider"]
    )
    for batch in (1, 2, 5):
        x = images(model, batch)
        (found,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), fast(x), rtol=0, atol=1e-5)
    assert fast(x).std() > 1e-4
    for wrong in faulty(x):
        with pytest.raises(Exception, match="."):
            session.run(None, {"input": wrong.contiguous().numpy()})


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
    with pytest.raises(ExportError, match=r"ends in \.pt2, \.onnx, \.int8\.onnx or"):
        write_graph(compact(net()[0]), tmp_path / "a.tflite")


def test_a_missing_extra_is_named(net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx, onnxscript, onnxruntime is not installed"):
        to_onnx(compact(net()[0]), tmp_path / "a.onnx")


def test_the_batch_of_the_comparison_is_not_silent(net) -> None:
    model, _, _ = net()
    with torch.no_grad():
        assert model(fixed_batch(model)).std() > 1e-4
