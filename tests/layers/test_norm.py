"""BatchNorm over rows, its repeats, and its fusion with the LIF."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import monitor
from torch import Tensor, nn

from spikeformer_lt.errors import DataError
from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.neuron import (
    LIF,
    BatchNorm,
    NeuronState,
    carry,
    fused_norm_act,
    make_activation,
    make_lif,
    norm_act,
)

NORMS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"affine": False, "eps": 1e-3},
    {"track_running_stats": False},
]


def awake(norm: nn.Module, dtype: torch.dtype = torch.float64) -> Any:
    if norm.weight is not None:
        nn.init.uniform_(norm.weight, 0.8, 1.6)
        nn.init.uniform_(norm.bias, 0.2, 0.8)
    return norm.to(dtype)


def pair(**options: Any) -> tuple[BatchNorm, nn.BatchNorm1d]:
    ours = awake(BatchNorm(6, **options))
    theirs = nn.BatchNorm1d(6, **options).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def buffers(norm: nn.Module) -> dict[str, Tensor]:
    return {name: b.double() for name, b in norm.named_buffers()}


@pytest.mark.parametrize("options", NORMS, ids=str)
def test_equals_batch_norm_of_torch_in_training_and_after(options: dict[str, Any]) -> None:
    ours, theirs = pair(**options)
    for train in (True, True, False):
        ours.train(train), theirs.train(train)
        x = torch.randn(3, 4, 6, dtype=torch.float64).mul_(2).requires_grad_()
        weight = torch.randn(3, 4, 6, dtype=torch.float64)
        y, expected = ours(x), theirs(x.reshape(-1, 6)).view(x.shape)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
        of = [x, *ours.parameters()]
        for a, b in zip(
            torch.autograd.grad(y, of, weight),
            torch.autograd.grad(expected, [x, *theirs.parameters()], weight),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        torch.testing.assert_close(buffers(ours), buffers(theirs), rtol=0, atol=1e-14)


@given(rows=st.integers(2, 9), repeats=st.integers(1, 16))
def test_repeats_stand_for_copies_along_time(rows: int, repeats: int) -> None:
    once, many = pair()
    x = torch.randn(1, rows, 6, dtype=torch.float64)
    copies = x.expand(repeats, rows, 6)
    y = many(copies.reshape(-1, 6)).view(repeats, rows, 6)
    torch.testing.assert_close(once(x, repeats).expand_as(y), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(buffers(once), buffers(many), rtol=0, atol=1e-13)


def test_the_state_dict_is_that_of_torch() -> None:
    assert list(BatchNorm(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


def test_low_precision_input_is_normalised_in_float32() -> None:
    norm = BatchNorm(4)
    x = (torch.randn(64, 4) * 3 + 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, BatchNorm(4)(x.float()).bfloat16(), rtol=0, atol=0)
    assert norm.running_mean.dtype == torch.float32


@pytest.mark.parametrize("kind", ["lif", "heaviside"])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_currents_run_the_fused_kernel_in_float32(
    kind: str, pooled: bool, dtype: torch.dtype
) -> None:
    shape = (2, 8, 32, 32, 16)  # large enough for kernels
    found = []
    for own in (dtype, torch.float32):
        torch.manual_seed(0)
        norm, act = awake(BatchNorm(16), torch.float32), make_activation(kind, NeuronConfig())
        x = (torch.randn(shape) * 1.5).to(dtype).to(own).requires_grad_()
        spikes = fused_norm_act(norm, act, x, 2, pooled)
        assert spikes is not None and spikes.dtype == own
        spikes.backward(torch.randn_like(spikes, dtype=torch.float32).to(dtype).to(own))
        assert x.grad is not None and x.grad.dtype == own
        found.append((spikes, x.grad, norm.weight.grad, *norm.state_dict().values()))
    for half, single in zip(*found, strict=True):
        assert torch.equal(half, single.to(half.dtype))
    assert 0.02 < float(found[1][0].detach().mean()) < 0.99


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.fault(38)
def test_one_value_per_channel_is_refused_in_training_alone(repeats: int) -> None:
    norm = BatchNorm(3)
    with pytest.raises(DataError, match="one value per channel has no variance"):
        norm(torch.zeros(1, 1, 3), repeats)
    with pytest.raises(DataError, match="one value per channel"):
        norm_act(norm, make_lif(), torch.zeros(1, 1, 3), repeats)
    assert norm.num_batches_tracked == 0
    assert norm.eval()(torch.zeros(1, 1, 3), repeats).shape == (1, 1, 3)


@pytest.mark.parametrize("shape", [(4, 5), (3,), (4, 3, 1)])
def test_a_wrong_last_axis_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"must be \[T\|1, ..., 3\]"):
        BatchNorm(3)(torch.zeros(shape))


CASES = {
    "hard": {"v_reset": -0.2},
    "soft": {
        "tau": 4 / 3,
        "v_reset": None,
        "decay_input": False,
        "detach_reset": False,
        "surrogate": "atan",
    },
}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_fused_equals_norm_then_neuron(
    case: str, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
    steps, channels = 5, 7
    repeats = steps if case == "soft" else 1  # one static, one not, to compile half as much
    x = torch.randn(steps // repeats, 40, 61, channels, dtype=torch.float64) * 1.5 + 3.0
    weight = torch.randn(steps, 40, 61, channels, dtype=torch.float64)
    norm = awake(BatchNorm(channels))
    norm.running_mean.fill_(3.0)
    start = torch.rand(x.shape[1:], dtype=torch.float64)
    results = []
    for fused in (True, False):
        n, act = BatchNorm(channels).double().train(train), make_lif(**CASES[case])
        n.load_state_dict(norm.state_dict())
        state = NeuronState()
        if train:
            state.voltages[act] = start
        leaf = x.clone().requires_grad_()
        with carry(state):
            if fused:
                out = norm_act(n, act, leaf, steps)
            else:
                monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
                out = act(n(leaf, repeats), steps)
        gradients = torch.autograd.grad(out, [leaf, *n.parameters()], weight)
        results.append((out, state.voltages[act], gradients, buffers(n)))
    (out, v, gradients, state), (out_2, v_2, gradients_2, state_2) = results
    assert 0.1 < out_2.mean() < 0.9
    assert torch.equal(out, out_2)
    torch.testing.assert_close(v, v_2, rtol=0, atol=1e-12)
    for a, b in zip(gradients, gradients_2, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(state, state_2, rtol=0, atol=1e-13)


def test_fused_float32_spikes_differ_in_fewer_than_one_in_a_thousand() -> None:
    x = torch.randn(4, 50, 96) * 2 + 1
    norm = awake(BatchNorm(96), torch.float32)
    fused = norm_act(norm, make_lif(), x)
    apart = make_lif()(norm(x))
    assert fused.mean() > 0.1
    assert (fused != apart).float().mean() < 1e-3


def test_the_fused_path_is_taken_by_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, act = awake(BatchNorm(96), torch.float32), make_lif()
    monkeypatch.setattr(BatchNorm, "forward", None)
    state = NeuronState()
    with carry(state):
        out = norm_act(norm, act, torch.randn(1, 50, 96, requires_grad=True), 4)
    out.sum().backward()
    assert out.shape == (4, 50, 96)
    assert norm.weight.grad.abs().sum() > 0
    assert state.voltages[act].shape == (50, 96)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("kind", ["heaviside", "sign", "relu", "lif"])
def test_every_activation_follows_a_norm(kind: str) -> None:
    norm, act = awake(BatchNorm(5)), make_activation(kind)
    x = torch.randn(1, 8, 5, dtype=torch.float64)
    out, current = norm_act(norm, act, x, 4), norm(x)
    assert out.shape == ((4, 8, 5) if kind == "lif" else x.shape)
    assert torch.equal(out, act(current, 4))


def test_watched_layers_are_called_one_by_one() -> None:
    net = nn.ModuleDict({"norm": BatchNorm(96), "act": make_lif(v_threshold=0.5)})
    seen = monitor.OutputMonitor(net, (LIF, BatchNorm))
    out = norm_act(net["norm"], net["act"], torch.randn(4, 50, 96))
    assert torch.equal(seen["act"][0], out)
    assert seen["norm"][0].shape == out.shape


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = awake(BatchNorm(8)), make_lif()

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(self.norm, self.act, x, 4)


@pytest.mark.parametrize("strict", [False, True], ids=["fake tensors", "bytecode"])
def test_an_export_takes_any_batch_size_and_repeats_its_source(strict: bool) -> None:
    unit = Unit().eval()
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    batch = torch.export.Dim("batch", max=1024)
    exported = torch.export.export(unit, (x,), dynamic_shapes=({1: batch},), strict=strict)
    for size in (6, 9):
        x = torch.randn(4, size, 8, dtype=torch.float64) + 0.5
        expected = unit(x)
        assert 0 < expected.mean() < 1
        assert torch.equal(exported.module()(x), expected)


def test_a_hook_that_only_observes_the_output_sees_the_fused_spikes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm, act = BatchNorm(96), make_lif()
    seen: list[Tensor] = []

    def observe(module: nn.Module, args: object, out: Tensor) -> None:
        seen.append(out)

    observe.observes_output = True
    act.register_forward_hook(observe)
    monkeypatch.setattr(BatchNorm, "forward", None)
    assert norm_act(norm, act, torch.randn(4, 50, 96)) is seen[0]


def test_a_forward_that_was_replaced_is_called() -> None:
    """As accelerate's hooks do it, on the module itself."""
    norm, act, calls = BatchNorm(16), LIF(), list[str]()
    x = torch.randn(4, 512, 16)
    for name, module in (("norm", norm), ("act", act)):
        own = module.forward
        module.forward = lambda *args, name=name, own=own: calls.append(name) or own(*args)
    norm_act(norm, act, x, 4)
    assert calls == ["norm", "act"]
