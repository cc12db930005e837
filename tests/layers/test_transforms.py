"""Gradients by torch.func and forward mode, and modules of 16 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

from spikeformer_lt import create_model
from spikeformer_lt.layers.neuron import LIF, Heaviside, NeuronConfig, Sign
from spikeformer_lt.layers.patches import SCORES, PatchSelect, make_score
from spikeformer_lt.layers.recompute import set_recompute
from spikeformer_lt.layers.subnet import SubnetLinear, install

SIZES: dict[str, Any] = {"image_size": 16, "T": 2, "v_threshold": 0.2}
SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 4, **SIZES}
MODELS = {"spikformer_toy": SMALL, "spiking_vgg_toy": SIZES, "spiking_resnet_toy": SIZES}
NEURONS = [
    LIF(), LIF(surrogate="atan", v_reset=None), Heaviside(surrogate="hardtanh"),
    Sign(NeuronConfig(surrogate="bireal")),
]  # fmt: skip


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: type(neuron).__name__)
@pytest.mark.fault(96)
def test_every_mode_of_differentiation_gives_the_gradient_of_autograd(neuron: nn.Module) -> None:
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    t, weight = torch.randn_like(x), torch.randn_like(x)

    def loss(x: Tensor) -> Tensor:
        return (neuron(x, 3) * weight).sum()

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    assert wanted.abs().sum() > 0
    for found in (grad(loss)(x), jacrev(loss)(x), jacfwd(loss)(x)):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    along = (t * wanted).sum()
    torch.testing.assert_close(jvp(loss, (x,), (t,))[1], along)
    for graph in (True, False):
        with forward_ad.dual_level(), torch.set_grad_enabled(graph):
            tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, t))).tangent
        torch.testing.assert_close(tangent, along)
    each = vmap(lambda x: neuron(x, 3), in_dims=1, out_dims=1)(x)
    assert torch.equal(each, neuron(x, 3))


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("name", [*MODELS, "subnet"])
@pytest.mark.fault(96)
def test_a_networks_gradients_follow_transforms(name: str, awaken) -> None:
    model: Any = create_model(
        "spikformer_toy" if name == "subnet" else name, **MODELS.get(name, SMALL)
    )
    if name == "subnet":
        install(model, "conv_pep.stages.1.conv", "both", binary=True)
        install(model, "blocks.0.mlp.fc1.linear", "scores", binary=False)
    x, y = torch.randn(4, 3, 16, 16).double(), torch.arange(4)
    awaken(model.double(), lambda module: module(x))
    model.eval()
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, (weights, buffers), (x,))
        return nn.functional.cross_entropy(logits.mean(1), y)

    found = torch.autograd.grad(loss(weights, x, y), list(weights.values()), materialize_grads=True)
    wanted = dict(zip(weights, found, strict=True))
    assert sum(bool(g.any()) for g in found) > len(found) / 2
    each = vmap(grad(lambda w, x, y: loss(w, x[None], y[None])), in_dims=(None, 0, 0))
    tangents = {n: torch.randn_like(w) for n, w in weights.items()}
    _, along = jvp(lambda w: loss(w, x, y), (weights,), (tangents,))
    for n, gradients in each(weights, x, y).items():
        torch.testing.assert_close(gradients.mean(0), wanted[n], rtol=1e-9, atol=1e-12)
    total = sum((tangents[n] * g).sum() for n, g in wanted.items())
    torch.testing.assert_close(along, total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.fault(96)
def test_a_network_of_16_bits_classifies_and_trains(name: str, dtype: torch.dtype, awaken) -> None:
    model: Any = create_model(name, **MODELS[name])
    x = torch.randn(8, 3, 16, 16)
    awaken(model, lambda module: module(x))
    wide, narrow = model.eval()(x), copy.deepcopy(model).to(dtype)
    found = narrow(x.to(dtype))
    assert found.dtype == dtype and wide.std() > 1e-3
    alike = torch.corrcoef(torch.stack([found.float().flatten(), wide.flatten()]))[0, 1]
    assert alike > (0.9 if dtype == torch.float16 else 0.6)
    narrow.train()(x.to(dtype)).float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in narrow.parameters())
    assert all(value.dtype in (dtype, torch.int64) for value in narrow.state_dict().values())


@pytest.mark.parametrize("kind", [kind for kind in SCORES if kind != "qk"])
def test_every_patch_score_runs_in_16_bits_and_without_values(kind: str) -> None:
    model: Any = create_model("spikformer_toy", **SMALL)
    model.set_patch(PatchSelect(make_score(kind, 32, 10, 4), 0.5))
    on_meta = copy.deepcopy(model).to("meta")(torch.empty(2, 3, 16, 16, device="meta"))
    assert on_meta.is_meta and on_meta.shape == (2, 2, 10)
    assert model.eval().bfloat16()(torch.randn(2, 3, 16, 16).bfloat16()).isfinite().all()


@pytest.mark.fault(96)
def test_an_ensemble_trains_under_vmap_and_parts_that_recompute_under_grad() -> None:
    models = [create_model("spikformer_toy", **SMALL).double().train() for _ in range(2)]
    x = torch.randn(4, 3, 16, 16).double()
    weights, buffers = stack_module_state(models)
    shell = copy.deepcopy(models[0]).to("meta")

    def loss(weights: Any, buffers: Any) -> Tensor:
        return functional_call(shell, (weights, buffers), (x,)).square().sum()

    found = vmap(grad(loss))(weights, buffers)
    set_recompute(shell)
    again = vmap(grad(loss))(weights, buffers)
    for i, model in enumerate(models):
        model(x).square().sum().backward()
        for n, p in model.named_parameters():
            wanted = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(found[n][i], wanted, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(again[n][i], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_kernels")
def test_what_a_transform_does_not_wrap_is_computed_inside_of_one() -> None:
    layer, own = SubnetLinear(nn.Linear(5, 5), "both"), torch.randn(2, 5).requires_grad_()
    x = torch.randn(3, 5)
    assert torch.equal(vmap(layer)(x), layer(x))
    assert grad(lambda x: layer(x).sum())(x).shape == x.shape
    assert torch.equal(vmap(lambda row: row + LIF()(own)[1])(x), x + LIF()(own)[1])
