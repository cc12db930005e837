"""Kernels as operators of torch: lawful by torch's own check, and equal to eager networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeformer_lt import create_model
from spikeformer_lt.export.inference import compact
from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import dispatch, operators, winograd
from spikeformer_lt.layers.neuron import BatchNorm

SOFT = NeuronConfig(1.7, 0.9, None, False, "atan", 2.5, False)


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dispatch, "_mode", "numba")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def values(*shape: int, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def cases() -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator that has a gradient, and of `moments`."""
    plain, soft = (operators.written(neuron) for neuron in (NeuronConfig(), SOFT))
    mean, var = values(16, grad=False), values(16, grad=False).exp()
    norm = (values(16), values(16), mean, var)
    return {
        "lif": (values(3, 5, 16), None, 3, plain),
        "lif from a voltage": (values(1, 5, 16), values(5, 16, grad=False), 3, soft),
        "moments": (values(2, 5, 16, grad=False),),
        "norm_lif": (values(2, 5, 16), *norm, False, 1e-5, None, 2, plain),
        "norm_lif of a batch": (values(2, 5, 16), None, None, mean, var, True, 1e-5, None, 2, soft),
        "attention": (values(2, 1, 3, 3, 32), 2, 0.25),
        "conv": (values(1, 1, 4, 4, 16), values(16, 16, 3, 3), False),
        "pool": (values(1, 2, 5, 4, 8),),
    }


@pytest.mark.parametrize("case", cases())
def test_an_operator_keeps_the_laws_of_torch(case: str) -> None:
    operator = getattr(operators, case.split()[0])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, cases()[case], test_utils=tests)


def test_gradients_of_a_convolution_can_be_differentiated_again() -> None:
    found = []
    for conv in (lambda x, w: operators.conv(x, w, False), winograd.direct):
        x, w = values(1, 1, 4, 4, 16), values(16, 16, 3, 3)
        (first,) = torch.autograd.grad(conv(x, w).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.pow(3).sum(), (x, w)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("neuron", [NeuronConfig(), SOFT, NeuronConfig(v_reset=-0.5, alpha=3.0)])
def test_constants_come_back_from_their_words(neuron: NeuronConfig) -> None:
    assert operators._read(operators.written(neuron)) == neuron


def network(**options: Any) -> Any:
    """A network of one block whose layers fire."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "T": 2}
    model: Any = create_model("spikformer_toy", **{**sizes, **options}).double()
    for norm in (m for m in model.modules() if isinstance(m, BatchNorm)):
        torch.nn.init.normal_(norm.weight, 1.5, 0.3)
        torch.nn.init.normal_(norm.bias, 0.4, 0.3)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_float32_is_one_graph_under_a_mask_too(training: bool) -> None:
    """float32 has products and lists of its own, which a graph leaves out."""
    model = network(image_size=32).float().train(training)
    x = torch.rand(2, 3, 32, 32)
    masked = {w: dispatch.Kept(w > 0) for w in model.parameters() if w.dim() > 1}
    for kept in ({}, masked):
        torch._dynamo.reset()
        with dispatch.kept_weights(kept), torch.set_grad_enabled(training):
            found = torch._dynamo.explain(model)(x)
        assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    if not training:
        torch._dynamo.reset()
        with torch.no_grad():
            found = torch._dynamo.explain(compact(model).net)(x)
        assert found.graph_break_count == 0, found.break_reasons


@pytest.mark.slow
def test_a_compiled_training_step_is_one_graph_of_operators_and_exact() -> None:
    plain, graphs = network(), []
    twin = copy.deepcopy(plain)

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(twin, backend=backend, fullgraph=True)  # a break would be an error
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted, found = plain(x), compiled(x)
    assert float(wanted.detach().abs().max()) > 0.01 and torch.allclose(
        found, wanted, rtol=0, atol=1e-9
    )
    for logits in (wanted, found):
        logits.square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(other.grad, one.grad, rtol=1e-9, atol=1e-12), name
    for one, other in zip(plain.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(other.double(), one.double(), rtol=0, atol=1e-12)
    (graph,) = graphs
    used = {str(node.target) for node in graph.graph.nodes if "spikeformer_lt" in str(node.target)}
    assert {name.split(".")[1] for name in used} == {
        "attention", "conv", "lif", "moments", "norm_lif", "pool",
    }  # fmt: skip


def test_an_exported_program_needs_no_operator_of_ours() -> None:
    model = network().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    program = torch.export.export(model, (x,))
    assert "spikeformer_lt" not in str(program.graph)
    assert torch.allclose(program.module()(x), model(x), rtol=0, atol=1e-9)
