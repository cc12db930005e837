"""Voltages are local to a forward, or in a state that the caller holds; threads share a model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from spikingjelly.activation_based.neuron import LIFNode
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.export.inference import compact
from spikeformer_lt.layers.inputs import SpikingClassifier
from spikeformer_lt.layers.neuron import (
    BatchNorm,
    NeuronState,
    carried,
    carry,
    make_activation,
    make_lif,
    reset_state,
)
from spikeformer_lt.layers.patches import PatchSelect, Rate

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("spikformer_digits", {"v_threshold": 0.3}),
    "transformer that selects patches": ("spikformer_digits", {"v_threshold": 0.3}),
    "compact transformer": ("spikformer_digits", {"v_threshold": 0.3}),
    "vgg": ("spiking_vgg_toy", {"hidden": 16}),
    "resnet": ("spiking_resnet_toy", {}),
    "compact vgg": ("spiking_vgg_toy", {"hidden": 16}),
    "plug-in": ("", {}),
}


class PlugIn(SpikingClassifier):
    """A network of a user's that declares nothing, of our layers and torch's."""

    def __init__(self) -> None:
        super().__init__(image_size=16, v_threshold=0.3)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.first, self.second = make_activation("heaviside"), make_lif(v_threshold=0.3)
        self.norm, self.head = BatchNorm(8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, T, K]`` of images."""
        images = self.time_first(x)
        maps = self.first(self.conv(images.flatten(0, 1)).unflatten(0, images.shape[:2]))
        rows = self.second(self.norm(maps.permute(0, 1, 3, 4, 2), self.T), self.T)
        return self.head(rows.mean((2, 3))).transpose(0, 1)


def layers() -> nn.Sequential:
    made = nn.Sequential(make_lif(), nn.Linear(64, 64), make_lif(tau=1.5, v_reset=None))
    nn.init.constant_(made[1].weight, 0.1)
    return made


def test_two_forwards_are_equal_and_write_nothing_on_a_module() -> None:
    net, x = layers(), torch.rand(5, 30, 64) * 2
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    first = net(x)
    assert 0.05 < first.mean() < 0.6
    assert torch.equal(net(x), first)
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before


def test_a_sequence_in_parts_is_the_whole_one_where_a_state_is_carried() -> None:
    net, x, state = layers(), torch.rand(5, 30, 64) * 2, NeuronState()
    whole = net(x)
    with carry(state):
        first = net(x[:2])
        with carry(None):
            assert torch.equal(net(x), whole)
        parts = torch.cat([first, net(x[2:])])
    assert torch.equal(parts, whole)
    assert not torch.equal(net(x[2:]), whole[2:])
    assert {type(module) for module in state.voltages} == {type(net[0])}
    assert not any(v.requires_grad for v in state.voltages.values())


def test_two_states_share_a_network() -> None:
    net, a, b = layers(), torch.rand(4, 8, 64) * 2, torch.rand(4, 3, 64) * 2
    states = NeuronState(), NeuronState()
    found: list[list[torch.Tensor]] = [[], []]
    for t in range(4):
        for i, x in enumerate((a, b)):
            with carry(states[i]):
                found[i].append(net(x[t : t + 1]))
    assert torch.equal(torch.cat(found[0]), net(a))
    assert torch.equal(torch.cat(found[1]), net(b))


def test_a_carried_state_is_of_one_thread_and_ends_with_its_block() -> None:
    seen: list[object] = []
    state = NeuronState()

    def failing() -> None:
        with carry(state):
            thread = threading.Thread(target=lambda: seen.append(carried()))
            thread.start()
            thread.join()
            seen.append(carried())
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        failing()
    assert seen == [None, state] and carried() is None


def test_a_state_of_another_shape_starts_from_rest() -> None:
    lif, state = make_lif(v_reset=-0.5), NeuronState()
    with carry(state):
        lif(torch.rand(2, 3))
        spikes = lif(torch.full((1, 7), 0.9))
    assert spikes.shape == (1, 7) and state.voltages[lif].shape == (7,)
    assert lif.v == -0.5


def test_recordings_and_foreign_neurons_are_reset() -> None:
    own, foreign = make_lif(store_v_seq=True), LIFNode(step_mode="m")
    net = nn.Sequential(own, foreign, make_activation("sign"), nn.BatchNorm1d(3))
    net(torch.rand(8, 3))
    assert own.v_seq is not None and isinstance(foreign.v, torch.Tensor)
    before = {name: value.clone() for name, value in net[3].state_dict().items()}
    reset_state(net)
    assert own.v_seq is None and own.v == foreign.v == 0.0
    assert all(torch.equal(value, before[name]) for name, value in net[3].state_dict().items())


def threads_share(name: str, calls: int) -> None:
    """Eight threads get the bits of one."""
    kind, options = MODELS[name]
    model: Any = create_model(kind, **options).eval() if kind else PlugIn().eval()
    if "patches" in name:
        model.set_patch(PatchSelect(Rate(), 0.5, rescale=True).eval())
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, BatchNorm):
            nn.init.uniform_(part.bias, 0.0, 1.5)
    if "compact" in name:
        model = compact(model)
    inputs = [torch.rand(2 + i % 3, 3, 16, 16) for i in range(8)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
    assert all(float(y.std()) > 0 for y in wanted)
    wrong: list[str] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(calls):
                if not torch.equal(model(inputs[i]), wanted[i]):
                    wrong.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", MODELS)
def test_eight_threads_that_share_a_model_get_the_bits_of_one(name: str) -> None:
    threads_share(name, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_eight_threads_of_a_thousand_calls_get_the_bits_of_one(name: str) -> None:
    threads_share(name, 1000)
