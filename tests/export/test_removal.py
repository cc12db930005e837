"""Channels that a search removed are gone from the network that runs, and missed by nobody."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt import Mask, Ticket, create_model, load_exported
from spikeformer_lt.export import export_ticket
from spikeformer_lt.export.inference import FoldedConvUnit, alive, compact, find_pairs
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.units import Chain
from spikeformer_lt.models.spiking_cnn import SpikingCNN
from spikeformer_lt.tickets.early_bird import channel_mask, find_groups, norm_scales, shrink

CNN = {"image_size": 16, "T": 3}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "spikformer": (
        "spikformer_toy",
        {"image_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "T": 3},
    ),
    "spikformer, stateless": (
        "spikformer_toy",
        {**{"image_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 4, "T": 3},
         "activation": "heaviside", "in_channels": 2},
    ),
    "vgg": ("spiking_vgg_toy", {**CNN, "pooled": 1}),
    "vgg with a hidden layer": ("spiking_vgg_toy", {**CNN, "hidden": 16}),
    "vgg of frames": ("spiking_vgg16", {**CNN, "layers": (8, "M", 12, "M"), "in_channels": 2}),
    "resnet": ("spiking_resnet_toy", CNN),
    "resnet with a hidden layer": (
        "spiking_resnet19",
        {**CNN, "stem": 8, "widths": (8, 12), "depths": (2, 1), "strides": (1, 2),
         "hidden": 12, "hidden_norm": True},
    ),
}  # fmt: skip


def inputs(model: Any, batch: int = 4) -> torch.Tensor:
    shape = (batch, model.T) if model.in_channels == 2 else (batch,)
    return torch.rand(*shape, model.in_channels, *model.image_size)


@pytest.fixture(params=list(NETWORKS))
def found(request: pytest.FixtureRequest, awaken) -> tuple[Any, Any, Ticket]:
    """A network that a search of channels has masked, its groups and its ticket."""
    name, sizes = NETWORKS[request.param]
    torch.manual_seed(2)
    model: Any = create_model(name, **sizes)
    awaken(model, lambda m: m(inputs(m, 8)))
    model.eval()
    groups = find_groups(model, inputs(model, 2))
    channels = Mask.from_scores(norm_scales(model, groups), 0.5, floor=0.1)
    mask = channel_mask(model, groups, channels)
    mask.apply_(model)
    known = {"search": "early_bird", "model": {"name": name, "args": sizes}}
    return model, groups, Ticket.of(model, mask, known)


def test_an_exported_channel_ticket_is_as_small_as_the_shrunk_network(found, tmp_path) -> None:
    model, groups, ticket = found
    small = shrink(copy.deepcopy(model), groups, ticket.mask)
    done = export_ticket(ticket, tmp_path / "out")
    assert done.check.compact_gap_float64 <= 1e-9
    fast = load_exported(tmp_path / "out")
    pairs = {name: (unit, reader) for name, unit, reader, _ in find_pairs(fast.net)}
    for group in groups:
        made = small.get_submodule(group.producer).weight
        read = small.get_submodule(group.consumer).weight
        whole = model.get_submodule(group.producer).weight
        name = group.producer.removesuffix(".conv").removesuffix(".linear")
        unit, reader = pairs[name]
        assert len(unit.synapse.weight) == len(made) < len(whole), group
        assert unit.synapse.weight.numel() <= made.numel(), group
        assert reader.weight.numel() <= read.numel(), group
        assert fast.removed[name] == len(whole) - len(made)


def test_the_shrunk_runtime_is_the_masked_network_in_float64(found) -> None:
    model, groups, ticket = found
    model.double()
    fast = compact(model)
    assert len(fast.removed) >= len({group.producer for group in groups})
    x = inputs(model).double()
    small = shrink(copy.deepcopy(model), groups, ticket.mask)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(fast(x), wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(small(x), wanted, rtol=0, atol=1e-9)
    assert wanted.std() > 1e-4


def test_what_fed_only_the_dead_dies_with_them(awaken) -> None:
    torch.manual_seed(0)
    sizes = {**CNN, "layers": (6, 8, 10), "pooled": 2, "hidden": 9}
    model: Any = create_model("spiking_vgg16", **sizes)
    awaken(model, lambda m: m(inputs(m, 8)))
    with torch.no_grad():
        model.hidden.linear.weight.view(9, 4, 10)[:, :, 7] = 0  # nobody reads 7 at any place,
        model.layers[2].conv.weight[:7, 3] = 0
        model.layers[2].conv.weight[8:, 3] = 0  # which alone reads 3,
        model.layers[1].conv.weight[:3, 2] = 0
        model.layers[1].conv.weight[4:, 2] = 0  # which alone reads 2
    model.double().eval()
    fast = compact(model)
    assert fast.removed == {"layers.2": 1, "layers.1": 1, "layers.0": 1}
    assert fast.net.hidden.synapse.weight.shape == (9, 4 * 9)
    x = inputs(model).double()
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0, atol=1e-9)


def test_one_channel_stays_where_all_are_dead() -> None:
    model: Any = create_model("spiking_vgg_toy", **CNN).eval()
    nn.init.zeros_(model.layers[0].conv.weight)
    fast = compact(model.double())
    assert fast.net.layers[0].synapse.weight.shape[:2] == (1, 3)
    assert fast.net.layers[2].synapse.weight.shape[1] == 1
    x = inputs(model).double()
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "choice",
    [{}, {"v_reset": None}, {"decay_input": False, "tau": 3.0}, {"v_reset": -0.2}],
    ids=str,
)
def test_a_channel_that_a_longer_stream_would_hear_stays(choice: dict[str, Any]) -> None:
    act, bias = LIF(**choice), torch.linspace(-0.5, 1.5, 201)
    found = alive(torch.zeros(201, 3), bias, act)
    fires = act(bias[None], 400).any(0)
    act.reset()
    late = fires & ~act(bias[None], 4).any(0)
    assert late.any(), "nothing is tested"
    assert found[fires].all() and (found != fires).sum() <= 1, "one at the threshold may stay"


def with_list(name: str, known: str) -> Any:
    """A CNN whose convolutions are in a list of this name, half of the first ones dead.

    Its chains are declared, traced by its base class, or none.
    """

    class Net(SpikingCNN):
        def __init__(self) -> None:
            super().__init__(image_size=16, T=2)
            layers = nn.ModuleList([self.spiking_layer(3, 16), self.spiking_layer(16, 16)])
            setattr(self, name, layers)
            self.build_classifier(16, (16, 16), pooled=1, hidden=None, norm=False)

        def features(self, rows: torch.Tensor) -> torch.Tensor:
            for layer in getattr(self, name):
                rows = layer(rows, self.T)
            return rows

        if known != "traced":

            def chains(self) -> list[Chain]:
                return [self.sequence(getattr(self, name))] if known == "declared" else []

    torch.manual_seed(0)
    model = Net().double().eval()
    first = getattr(model, name)[0]
    with torch.no_grad():
        first.conv.weight[:8] = 0
        first.norm.bias[:8] = -1
    return model


@pytest.mark.parametrize("chains", ["declared", "traced"])
@pytest.mark.parametrize("name", ["layers", "convs", "conv_pep"])
def test_dead_channels_go_whatever_their_list_is_called(name: str, chains: str) -> None:
    model, x = with_list(name, chains), torch.rand(3, 3, 16, 16).double()
    fast = compact(model)
    assert fast.removed == {f"{name}.0": 8}
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0, atol=1e-9)


def test_a_model_without_chains_says_that_nothing_was_examined() -> None:
    model, x = with_list("layers", "none"), torch.rand(3, 3, 16, 16).double()
    fast = compact(model)
    assert fast.removed is None and isinstance(fast.net.layers[0], FoldedConvUnit)
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0, atol=1e-9)


def test_the_card_says_whether_channels_were_examined(ticket, tmp_path, monkeypatch) -> None:
    done = export_ticket(ticket, tmp_path / "a")
    assert done.check.removed is not None
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"dead channels: {done.check.removed} removed" in card
    monkeypatch.setattr("spikeformer_lt.export.inference.chains_of", lambda net: [])
    assert export_ticket(ticket, tmp_path / "b").check.removed is None
    assert "dead channels: not examined" in (tmp_path / "b" / "README.md").read_text()
