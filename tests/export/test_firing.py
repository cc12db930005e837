"""Spikes in the place of their currents are those of the neuron."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.export.inference import FoldedLinearUnit
from spikeformer_lt.export.synapses import FoldedLinear, fire, fire_linear
from spikeformer_lt.layers.neuron import LIF, Heaviside, NeuronState, carry
from spikeformer_lt.layers.units import LinearUnit

CHOICES = [{}, {"v_reset": None}, {"decay_input": False, "tau": 3.0}, {"surrogate": "atan"}]


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_spikes_and_state_are_those_of_the_neuron(choice: dict[str, object], steps: int) -> None:
    a, b = LIF(**choice), LIF(**choice)
    state = NeuronState()
    for _ in range(3):
        x = 2 * torch.randn(steps, 3, 11, 517)
        with torch.no_grad(), carry(state):
            wanted = a(x, steps)
            found = fire(b, x.clone(), steps)
        assert torch.equal(found, wanted) and 0 < wanted.mean() < 1
        assert torch.equal(state.voltages[a], state.voltages[b])


def test_the_memory_of_the_current_is_taken_only_where_nobody_can_tell() -> None:
    x = 2 * torch.randn(4, 8192)
    kept = x.clone()
    seen: list[torch.Tensor] = []
    watched = LIF()
    watched.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        for act, given in ((watched, x), (Heaviside(), x), (LIF(store_v_seq=True), x)):
            fire(act, given, 4)
            assert torch.equal(x, kept)
        fire(LIF(), x[:1], 4)  # one step stands for four
        fire(LIF(), x.T, 8192)
        assert torch.equal(x, kept) and len(seen) == 1
        found = fire(LIF(), x, 4)
    assert found.data_ptr() == x.data_ptr() and not torch.equal(x, kept)
    graph = kept.clone().requires_grad_()
    fire(LIF(), graph, 4).sum().backward()
    assert graph.grad is not None and torch.equal(graph, kept)


def test_without_kernels_torch_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
    x = 2 * torch.randn(4, 8192)
    with torch.no_grad():
        assert torch.equal(fire(LIF(), x, 4), LIF()(x, 4))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_product_and_its_neurons_in_one_pass(choice: dict[str, object]) -> None:
    torch.manual_seed(0)
    product = FoldedLinear(torch.randn(64, 40).double() / 3, torch.randn(64).double())
    a, b = LIF(**choice), LIF(**choice)
    state = NeuronState()
    with torch.no_grad(), carry(state), pytest.MonkeyPatch.context() as patch:
        patch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
        for steps in (4, 1, 4):
            x = (torch.rand(steps, 2, 9, 40) < 0.3).double()
            wanted = a(product(x), 4)
            found = fire_linear(b, product, x, 4)
            assert found is not None and torch.equal(found, wanted) and 0 < wanted.mean() < 1
            torch.testing.assert_close(state.voltages[a], state.voltages[b], rtol=0, atol=1e-12)
        product.weight.mul_(-1)  # in place
        assert torch.equal(fire_linear(b, product, x, 4), a(product(x), 4))  # type: ignore[arg-type]


def test_one_pass_is_for_plain_neurons_outside_of_gradients() -> None:
    product, x = FoldedLinear(torch.randn(64, 160), torch.randn(64)), torch.rand(4, 50, 160)
    watched = LIF()
    watched.register_forward_hook(lambda m, a, out: None)
    with torch.no_grad():
        assert fire_linear(LIF(), product, x, 4) is not None
        for act in (watched, Heaviside(), LIF(store_v_seq=True)):
            assert fire_linear(act, product, x, 4) is None
        assert fire_linear(LIF(), product, x[:2], 4) is None
        odd = FoldedLinear(torch.randn(63, 160), torch.randn(63))
        assert fire_linear(LIF(), odd, x, 4) is None
        signs = torch.ones(64, 160, dtype=torch.int8)
        binary = FoldedLinear(signs.float(), torch.zeros(64), whole=True)
        assert (fire_linear(LIF(), binary, x.round(), 4) is None) == binary.takes_bytes(x)
    assert fire_linear(LIF(), product, x, 4) is None


def test_a_watched_product_is_called_and_its_currents_stay() -> None:
    unit = FoldedLinearUnit(LinearUnit(64, 64).eval())
    x = 2 * torch.randn(4, 2, 64, 64)
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        wanted, current = unit(x, 4), unit.synapse(x)
        unit.synapse.register_forward_hook(lambda m, a, out: seen.append(out))
        torch.testing.assert_close(unit(x, 4), wanted)
    assert len(seen) == 1
    assert torch.equal(seen[0], current)


def test_a_wrong_width_is_refused_as_by_the_product() -> None:
    product = FoldedLinear(torch.randn(64, 64), torch.randn(64))
    with torch.no_grad():
        assert fire_linear(LIF(), product, torch.randn(4, 2, 64, 32), 4) is None
