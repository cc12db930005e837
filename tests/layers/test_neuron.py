"""The LIF layer: golden voltages, equality with spikingjelly, and what its tools rely on."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, monitor, surrogate
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.layers.kernels.reference import lif_loop
from spikeformer_lt.layers.neuron import (
    LIF,
    Heaviside,
    NeuronState,
    Relu,
    Sign,
    carry,
    lif_path,
    make_activation,
    make_lif,
)
from spikeformer_lt.layers.units import Integers, emitted

SURROGATES = {"sigmoid": surrogate.Sigmoid, "atan": surrogate.ATan}
OPTIONS = [
    {"tau": tau, "v_reset": reset, "decay_input": decay, "detach_reset": detach, "surrogate": name}
    for (tau, name), reset, decay, detach in itertools.product(
        [(2.0, "sigmoid"), (4 / 3, "atan")], [0.0, None, -0.25], [True, False], [True, False]
    )
]


def currents(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, dtype=dtype) * 1.2 + 0.6).requires_grad_()


def peer(**options: object) -> LIFNode:
    name = str(options.pop("surrogate"))
    return LIFNode(**options, surrogate_function=SURROGATES[name](), step_mode="m")


def test_eight_voltages_by_hand() -> None:
    x = torch.tensor([1.0, 1.0, 2.0, 0.0, 4.0, 1.5, 1.5, -1.0], dtype=torch.float64)
    lif = make_lif(store_v_seq=True)
    spikes = lif(x[:, None])
    # h = v/2 + x/2: 0.5, 0.75, 1.375 (fires), 0, 2 (fires), 0.75, 1.125 (fires), -0.5
    assert spikes[:, 0].tolist() == [0, 0, 1, 0, 1, 0, 1, 0]
    assert lif.v_seq[:, 0].tolist() == [0.5, 0.75, 0, 0, 0, 0.75, 0, -0.5]
    assert lif.v.tolist() == [-0.5]


def test_soft_reset_keeps_the_excess() -> None:
    lif = make_lif(v_reset=None, decay_input=False, tau=2.0, store_v_seq=True)
    x = torch.tensor([[1.5], [0.25]], dtype=torch.float64)
    # h = 1.5 (fires), v = 0.5; h = 0.25 + 0.25 = 0.5
    assert lif(x).flatten().tolist() == [1, 0]
    assert lif.v.item() == 0.5


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_spikes_voltage_and_gradient_equal_spikingjelly(options: dict[str, object]) -> None:
    x, weight = currents(5, 3, 7), torch.randn(5, 3, 7, dtype=torch.float64)
    ours, theirs, state = make_lif(**options), peer(**options), NeuronState()
    with carry(state):
        spikes, expected = ours(x), theirs(x)
    assert torch.equal(spikes, expected)
    assert torch.equal(state.voltages[ours], theirs.v)
    assert 0.05 < spikes.mean() < 0.95
    (ours_x,) = torch.autograd.grad(spikes, x, weight)
    (theirs_x,) = torch.autograd.grad(expected, x, weight)
    torch.testing.assert_close(ours_x, theirs_x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-2]], ids=str)
def test_float32_spikes_equal_spikingjelly_to_the_bit(options: dict[str, object]) -> None:
    x = currents(6, 40, 96, dtype=torch.float32)
    ours, theirs, state = make_lif(**options), peer(**options), NeuronState()
    with carry(state):
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(state.voltages[ours], theirs.v)


def test_static_input_equals_its_copies() -> None:
    once = currents(1, 4, 6)
    many = once.detach().expand(5, 4, 6).clone().requires_grad_()
    weight = torch.randn(5, 4, 6, dtype=torch.float64)
    a, b = make_lif(), make_lif()
    spikes = a(once, 5)
    assert torch.equal(spikes, b(many))
    (g_once,) = torch.autograd.grad(spikes, once, weight)
    (g_many,) = torch.autograd.grad(b(many), many, weight)
    torch.testing.assert_close(g_once[0], g_many.sum(0), rtol=0, atol=1e-12)


@given(current=st.floats(-10.0, 0.999), tau=st.floats(1.01, 50.0), steps=st.integers(1, 30))
def test_a_constant_current_below_threshold_never_fires(
    current: float, tau: float, steps: int
) -> None:
    x = torch.full((1, 3), current, dtype=torch.float64)
    assert make_lif(tau=tau)(x, steps).sum() == 0


def test_one_step_without_input_decay_is_heaviside() -> None:
    x = currents(1, 50)
    lif, heaviside = make_lif(decay_input=False, v_threshold=0.7), Heaviside(v_threshold=0.7)
    assert torch.equal(lif(x), heaviside(x))
    (a,) = torch.autograd.grad(lif(x).sum(), x)
    (b,) = torch.autograd.grad(heaviside(x).sum(), x)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


def test_constants_changed_later_are_obeyed() -> None:
    lif = make_lif()
    lif.v_threshold = 0.25
    assert lif(torch.full((1, 2), 0.6)).sum() == 2


def test_spikingjelly_monitors_see_voltages_and_spikes() -> None:
    net = nn.Sequential(nn.Linear(4, 8), make_lif(), nn.Linear(8, 8), make_lif())
    net[1].store_v_seq = net[3].store_v_seq = True
    voltages = monitor.AttributeMonitor("v", False, net, LIF)
    spikes = monitor.OutputMonitor(net, LIF, lambda s: s.mean())
    out = net(torch.randn(3, 2, 4) * 5)
    assert [v.shape for v in voltages.records] == [(2, 8), (2, 8)]
    assert torch.equal(voltages["3"][0], net[3].v)
    assert spikes["3"][0] == out.mean()


def test_stored_voltages_end_in_the_state_and_vanish_with_it() -> None:
    lif, plain = make_lif(store_v_seq=True), make_lif()
    x = currents(1, 5)
    spikes = lif(x, 4)
    assert torch.equal(spikes, plain(x, 4))
    assert lif.v_seq.shape == (4, 5)
    assert not lif.v_seq.requires_grad
    assert torch.equal(lif.v_seq[-1], lif.v)
    lif.reset()
    assert lif.v_seq is None


def test_only_whole_sequences_are_run() -> None:
    functional.set_step_mode(nn.Sequential(make_lif()), "m")
    with pytest.raises(ValueError, match="step_mode"):
        make_lif().step_mode = "s"


def test_another_surrogate_of_spikingjelly_is_used() -> None:
    x = currents(4, 9)
    ours, theirs = make_lif(), LIFNode(detach_reset=True, step_mode="m")
    ours.surrogate_function = theirs.surrogate_function = surrogate.Rect()
    (a,) = torch.autograd.grad(ours(x).sum(), x)
    (b,) = torch.autograd.grad(theirs(x).sum(), x)
    assert torch.equal(a, b)
    assert ours.params() is None


def test_half_precision_input_is_integrated_in_float32() -> None:
    x = torch.full((8, 1), 1.0078125, dtype=torch.bfloat16)  # bfloat16 voltages would stop below 1
    lif, state = make_lif(), NeuronState()
    with carry(state):
        spikes = lif(x)
    assert spikes.dtype == torch.bfloat16
    assert state.voltages[lif].dtype == torch.float32
    assert torch.equal(spikes, make_lif()(x.double()).bfloat16())
    assert spikes.sum() == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_export_and_trace_follow_the_plain_loop_and_leave_no_state() -> None:
    net = nn.Sequential(nn.Linear(4, 4), make_lif()).eval()
    x = torch.randn(3, 2, 4) * 4
    expected = net(x)
    exported = torch.export.export(net, (x,)).module()
    assert net[1].v == 0.0
    traced = torch.jit.trace(net, (x,), check_trace=False)
    assert net[1].v == 0.0
    assert torch.equal(exported(x), expected)
    assert torch.equal(exported(x), expected)
    assert torch.equal(traced(x), expected)


def test_an_empty_batch_gives_empty_spikes() -> None:
    assert make_lif()(torch.zeros(4, 0, 3)).shape == (4, 0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 1.0}, "tau=1.0"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"v_threshold": float("inf")}, "v_threshold=inf"),
        ({"v_reset": float("nan")}, "v_reset=nan"),
        ({"surrogate": "sigmod"}, "did you mean 'sigmoid'"),
        ({"surrogate": "hardtanh"}, "not one of"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"v_treshold": 1.0}, "did you mean 'v_threshold'"),
    ],
)
def test_a_constant_out_of_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_lif(**options)


@pytest.mark.parametrize(
    ("x", "T"),
    [
        (torch.zeros(7, 2), 4),
        (torch.zeros(0, 2), None),
        (torch.zeros(1, 2), 0),
        (torch.zeros(4, 2, dtype=torch.uint8), None),
        (torch.tensor(1.0), None),
    ],
)
def test_a_wrong_leading_axis_or_dtype_is_refused(x: Tensor, T: int | None) -> None:
    with pytest.raises(DataError, match="LIF got"):
        make_lif()(x, T)


def test_activations_are_made_by_name_from_the_options_of_a_lif() -> None:
    options = {"tau": 3.0, "v_threshold": 0.5, "detach_reset": False}
    made = {kind: make_activation(kind, **options) for kind in ("lif", "heaviside", "sign", "relu")}
    assert [type(m) for m in made.values()] == [LIF, Heaviside, Sign, Relu]
    assert made["lif"].tau == 3.0
    assert made["lif"].v_threshold == made["heaviside"].v_threshold == 0.5
    assert [m.stateful for m in made.values()] == [True, False, False, False]
    assert [m.spiking for m in made.values()] == [True, True, False, False]
    with pytest.raises(ConfigError, match="did you mean 'lif'"):
        make_activation("lfi")
    with pytest.raises(ConfigError, match="did you mean 'tau'"):
        make_activation("relu", tua=2.0)


def test_whole_numbers_round_what_is_inside_and_pass_its_gradient() -> None:
    act = make_activation("ilif", tau=3.0)
    x = torch.tensor([-1.0, -0.3, 0.0, 0.6, 2.7, 3.4, 4.0, 4.2, 9.0], requires_grad=True)
    y = act(x[None], 3)
    assert y.tolist() == [[0, 0, 0, 1, 3, 3, 4, 4, 4]]
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    random = torch.randn(4, 999, generator=torch.Generator().manual_seed(0)) * 3
    trained = act(random.clone().requires_grad_())
    assert torch.equal(trained.detach(), act(random)) and torch.equal(trained, trained.round())
    assert not act.spiking and emitted(act) == Integers(4)
    assert emitted(Heaviside()) == "spikes" and emitted(Relu()) == emitted(None) == "real"


def test_import_is_silent_and_leaves_numba_for_later() -> None:
    code = "import spikeformer_lt.layers.neuron, sys; assert 'numba' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"v_reset": None, "tau": 3.0},
        {"v_reset": -0.2, "decay_input": False, "v_threshold": 0.7},
        {"surrogate": "atan", "alpha": 3.0, "detach_reset": False},
    ],
    ids=str,
)
def test_spikingjellys_own_function_runs_the_same_neuron(
    choice: dict[str, Any], carried: bool, steps: int
) -> None:
    torch.manual_seed(0)
    neuron = LIF(**choice)
    params = neuron.params()
    assert params is not None
    v = torch.randn(3, 50) if carried else None
    x = (2 * torch.randn(steps, 3, 50)).requires_grad_()
    found, last = neuron.run_theirs(x, v, 4)
    start = x.new_full(x.shape[1:], params.v_rest) if v is None else v
    wanted, end = lif_loop(x, start, 4, params, neuron.surrogate_function)
    assert torch.equal(found, wanted) and 0 < wanted.mean() < 1
    torch.testing.assert_close(last, end)
    g = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, g)[0], torch.autograd.grad(wanted, x, g)[0]
    )


@pytest.mark.gpu
def test_on_cuda_its_kernels_give_the_spikes_of_the_cpu() -> None:
    x = 2 * torch.randn(4, 1 << 12)
    own, theirs = LIF(), LIF()
    wanted = own(x)
    assert (theirs(x.cuda()).cpu() != wanted).float().mean() < 1e-3
    assert "spikingjelly" in lif_path(torch.device("cuda"))


def test_the_path_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert lif_path(cpu) == "numba"
    assert lif_path(torch.device("meta")) == "torch"
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._broken", True)
    assert lif_path(cpu) == "torch (the numba kernels failed)"
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
    assert lif_path(cpu) == "torch (SPIKEFORMER_KERNELS)"
