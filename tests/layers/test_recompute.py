"""What is computed again gives the same gradients and leaves the same network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.neuron import LIF, NeuronState, carry
from spikeformer_lt.layers.recompute import call, set_recompute
from spikeformer_lt.layers.units import LinearUnit
from spikeformer_lt.training.monitor import FiringWatch

SMALL = {"image_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "T": 3}
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "spikformer": ("spikformer_toy", SMALL),
    "events, stateless stem": (
        "spikformer_toy", {**SMALL, "in_channels": 2, "activation": "heaviside"},
    ),
    "pools before the neuron": ("spikformer_toy", {**SMALL, "pool_before_act": True}),
    "vgg": ("spiking_vgg_toy", {"image_size": 16, "T": 3}),
    "resnet": ("spiking_resnet_toy", {"image_size": 16, "T": 3, "in_channels": 2}),
}  # fmt: skip


def inputs(model: Any, batch: int = 6) -> torch.Tensor:
    shape = (batch, model.T) if model.in_channels == 2 else (batch,)
    return torch.rand(*shape, model.in_channels, *model.image_size).double()


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits, all gradients, and the bytes that autograd kept but for the weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(x)
    torch.nn.functional.cross_entropy(logits.mean(1), torch.arange(len(x)) % 10).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return logits.detach(), {**grads, "input": x.grad}, sum(kept.values())


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_step_is_the_same_in_float64_and_keeps_less(
    choice: str, kernels: str, awaken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", kernels)
    name, sizes = CHOICES[choice]
    torch.manual_seed(0)
    plain: Any = create_model(name, **sizes).double()
    x = inputs(plain)
    awaken(plain, lambda m: m(x))
    plain.train()
    again = copy.deepcopy(plain)
    assert set_recompute(again) > 0
    for _ in range(2):  # the second begins where the first one ended
        wanted, found = step(plain, x), step(again, x)
        assert torch.equal(found[0], wanted[0])
        assert found[1].keys() == wanted[1].keys() and len(wanted[1]) > 10
        for key, grad in wanted[1].items():
            torch.testing.assert_close(found[1][key], grad, rtol=0, atol=1e-12, msg=key)
        assert float(wanted[1]["input"].abs().sum()) > 0
        assert found[2] < 0.75 * wanted[2], (found[2], wanted[2])
    state = again.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(state[key], value), key
    assert any(key.endswith("running_mean") for key in state)
    assert all(m.track_running_stats for m in again.modules() if hasattr(m, "running_mean"))


def test_watchers_see_each_spike_once_and_other_hooks_every_run() -> None:
    torch.manual_seed(0)
    model: Any = create_model("spikformer_toy", **SMALL).double()
    set_recompute(model)
    calls: list[str] = []
    model.blocks[0].mlp.fc1.register_forward_hook(lambda m, args, out: calls.append("fc1"))
    with FiringWatch(model) as watch:
        step(model, inputs(model))
        whole = dict(watch._counts)
        with torch.no_grad():
            model(inputs(model))
        assert whole
        assert all(watch._counts[name] == 2 * count for name, count in whole.items())
    assert calls == ["fc1"] * 3  # forward, backward, and the forward without gradients


def test_a_carried_voltage_is_there_again() -> None:
    torch.manual_seed(0)
    unit: Any = LinearUnit(8, 8).double().train()
    unit.recompute = False
    x = 3 * torch.randn(2, 5, 4, 8).double()
    begun = NeuronState()
    with torch.no_grad(), carry(begun):
        unit(x, 2)
    assert begun.voltages[unit.act].abs().sum() > 0
    found = []
    for unit.recompute in (False, True):
        state = begun.copy()
        unit.zero_grad()
        with carry(state):
            out = call(unit, x, 2)
        left = state.voltages[unit.act].clone()
        out.sum().backward()
        assert torch.equal(state.voltages[unit.act], left), "the backward pass left a voltage"
        found.append((out.detach(), left, unit.linear.weight.grad.clone()))
    for wanted, again in zip(*found, strict=True):
        assert torch.equal(wanted, again)


def test_nothing_is_computed_again_without_gradients_or_in_eval_mode() -> None:
    model: Any = create_model("spikformer_toy", **SMALL).double()
    set_recompute(model)
    calls: list[int] = []
    for lif in (m for m in model.modules() if isinstance(m, LIF)):
        lif.register_forward_hook(lambda m, args, out: calls.append(1))
    x = inputs(model)
    model.eval()(x).sum().backward()
    once = len(calls)
    with torch.no_grad():
        model.train()(x)
    assert len(calls) == 2 * once
    set_recompute(model, on=False)
    model(x).sum().backward()
    assert len(calls) == 3 * once


def test_a_network_without_parts_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="Linear has no part that says recompute"):
        set_recompute(nn.Linear(2, 2))
    assert set_recompute(nn.Linear(2, 2), on=False) == 0


def test_a_graph_that_is_kept_is_computed_again_for_each_backward_pass() -> None:
    model: Any = create_model("spikformer_toy", **SMALL).double().train()
    set_recompute(model)
    loss = model(inputs(model)).square().sum()
    wanted = torch.autograd.grad(loss, model.head.weight, retain_graph=True)[0]
    first, again = (
        torch.autograd.grad(loss, model.blocks[0].mlp.fc1.norm.weight, retain_graph=True)[0]
        for _ in range(2)
    )
    assert wanted.abs().sum() > 0
    assert torch.equal(first, again)


def test_two_forwards_before_one_backward_have_the_gradients_of_two(awaken: Any) -> None:
    """The border of a RepConv is of running statistics, which the second forward moves."""
    torch.manual_seed(0)
    model: Any = create_model("sdt2_toy", image_size=32, T=2).double().train()
    awaken(model, lambda net: net(inputs(net)))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
    x, found = [inputs(model) for _ in range(2)], []
    for on in (False, True):
        net = copy.deepcopy(model)
        set_recompute(net, on)
        sum(net(part).square().mean() for part in x).backward()
        buffers = [b.clone() for b in net.buffers()]
        found.append(([p.grad for p in net.parameters() if p.grad is not None], buffers))
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
