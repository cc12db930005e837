from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from spikeformer_lt.layers.neuron import Heaviside, Sign, make_lif
from spikeformer_lt.training.monitor import FiringWatch, spiking_layers


class Fixed(nn.Module):
    """A spiking layer that fires as it is told."""

    spiking = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def net(layers: int = 2) -> nn.Module:
    return nn.ModuleDict({f"layer{i}": Fixed() for i in range(layers)})


def spikes(rate: float, size: int = 100) -> torch.Tensor:
    out = torch.zeros(size)
    out[: round(rate * size)] = 1
    return out


def test_rates_are_spikes_over_neurons_and_steps_of_all_batches():
    model = net()
    watch = FiringWatch(model)
    model["layer0"](spikes(0.25, 100))
    model["layer0"](spikes(0.5, 300))
    model["layer1"](spikes(0.0, 100))
    assert watch.rates() == {"layer0": (25 + 150) / 400, "layer1": 0.0}
    assert watch.mean_rate() == 175 / 500


def test_the_layers_of_this_package_are_found_by_their_attribute():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8), make_lif(), nn.Linear(8, 8), Heaviside(v_threshold=0.0), Sign(), nn.ReLU()
    )
    watch = FiringWatch(model)
    seen = {}
    model[1].register_forward_hook(lambda m, i, o: seen.update({"1": o}))
    model[3].register_forward_hook(lambda m, i, o: seen.update({"3": o}))
    model(3 * torch.randn(4, 6, 8))
    assert watch.rates() == {name: pytest.approx(o.mean().item()) for name, o in seen.items()}
    assert 0 < watch.rates()["1"] < 1


def test_a_neuron_is_one_layer_with_its_surrogate():
    class Neuron(Fixed):
        def __init__(self):
            super().__init__()
            self.surrogate_function = Fixed()

        def forward(self, x):
            return self.surrogate_function(x)

    model = nn.ModuleDict({"a": nn.Sequential(Neuron()), "a0": Neuron()})
    assert list(spiking_layers(model)) == ["a.0", "a0"]
    watch = FiringWatch(model)
    model["a"](spikes(0.5))
    assert watch.rates() == {"a.0": 0.5}  # once, not twice
    assert list(spiking_layers(Neuron())) == [""]


def test_validation_amid_an_epoch_leaves_no_trace_though_a_frozen_part_is_in_eval_mode():
    model = net()
    model.train()
    model["layer0"].eval()
    watch, always = FiringWatch(model), FiringWatch(model, always=True)
    model["layer0"](spikes(0.5))
    model.eval()
    model["layer0"](spikes(1.0))
    assert watch.rates() == {"layer0": 0.5}
    assert always.rates() == {"layer0": 0.75}


def test_outputs_gradients_and_training_are_untouched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), make_lif(), nn.Linear(8, 2))
    x = torch.randn(4, 3, 8)
    plain = model(x)
    plain.sum().backward()
    gradient = model[0].weight.grad.clone()
    model.zero_grad()
    model[1].reset()
    with FiringWatch(model):
        watched = model(x)
        watched.sum().backward()
    assert torch.equal(plain, watched)
    assert torch.equal(gradient, model[0].weight.grad)


def test_half_precision_spikes_are_counted_exactly():
    model = net(1)
    watch = FiringWatch(model)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.bool, torch.uint8):
        watch.reset()
        model["layer0"](spikes(0.3, 10_000).to(dtype))
        assert watch.rates() == {"layer0": 0.3}


def test_many_batches_add_up_without_rounding():
    model = net(1)
    watch = FiringWatch(model)
    watch.load_state({"layer0": [2.0**30, 2**31]})
    for _ in range(3):
        model["layer0"](torch.ones(1))
    assert watch.state() == {"layer0": [2.0**30 + 3, 2**31 + 3]}


@pytest.mark.fault(17)
def test_dead_and_saturated_layers_are_named_in_one_warning(caplog):
    model = net(4)
    watch = FiringWatch(model)
    for name, rate in {"layer0": 0.0, "layer1": 0.5, "layer2": 1.0, "layer3": 0.0}.items():
        model[name](spikes(rate))
    with caplog.at_level(logging.WARNING, "spikeformer_lt.training.monitor"):
        assert watch.warn(4) == (["layer0", "layer3"], ["layer2"])
    (record,) = caplog.records
    message = record.getMessage()
    assert "epoch 5: of 4 spiking layers" in message
    assert "2 never fired: layer0, layer3" in message
    assert "1 fired at every step: layer2" in message


def test_one_spike_in_an_epoch_is_life(caplog):
    model = net(1)
    watch = FiringWatch(model)
    model["layer0"](torch.zeros(10**6))
    model["layer0"](torch.ones(1))
    assert watch.warn(0) == ([], [])
    assert not caplog.records


def test_many_dead_layers_make_one_short_warning(caplog):
    model = net(30)
    watch = FiringWatch(model)
    for layer in model.values():
        layer(spikes(0.0))
    dead, _ = watch.warn(0)
    assert len(dead) == 30
    assert "and 22 more" in caplog.text


def test_a_resumed_epoch_ends_with_the_same_rates():
    model = net()
    straight = FiringWatch(model)
    model["layer0"](spikes(0.3))
    state = json.loads(json.dumps(straight.state()))
    resumed = FiringWatch(model)
    resumed.load_state(state)
    model["layer0"](spikes(0.7, 31))
    model["layer1"](spikes(0.2, 7))
    assert resumed.rates() == straight.rates()
    assert resumed.mean_rate() == straight.mean_rate()


def test_the_hook_says_that_it_needs_the_output_alone():
    model = net(1)
    watch = FiringWatch(model)
    (hook,) = model["layer0"]._forward_hooks.values()
    assert hook.observes_output is True
    assert hook(model["layer0"], (), spikes(0.5)) is None
    assert watch.rates() == {"layer0": 0.5}


def test_reset_and_close():
    model = net(1)
    watch = FiringWatch(model)
    assert watch.mean_rate() == 0.0
    assert watch.rates() == {}
    model["layer0"](spikes(0.5))
    watch.close()
    model["layer0"](spikes(1.0))
    assert watch.rates() == {"layer0": 0.5}
    assert not model["layer0"]._forward_hooks
    watch.reset()
    assert watch.rates() == {}
