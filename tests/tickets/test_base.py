"""What may be pruned, and what a ticket says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model, create_search
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import (
    Magnitude,
    MagnitudeConfig,
    OneShotConfig,
    PruneConfig,
    Snip,
    dead_filters,
    retrain,
    snapshot,
)
from spikeformer_lt.tickets.base import shuffled, silenced


def test_only_matrices_and_kernels_can_be_pruned(make):
    model = make()
    weights = PruneConfig().weights(model)
    assert all(weight.ndim > 1 for weight in weights.values())
    others = sum(p.numel() for n, p in model.named_parameters() if n not in weights)
    assert others == sum(p.numel() for p in model.parameters() if p.ndim == 1)


def test_a_weight_that_two_layers_share_is_one_weight():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].weight = net[0].weight
    assert list(PruneConfig().weights(net)) == ["0.weight", "2.weight"]


def test_the_first_convolution_and_the_head_can_be_spared(make):
    model = make()
    whole = list(PruneConfig().weights(model))
    spared = list(PruneConfig(first_conv=False, head=False).weights(model))
    assert spared == whole[1:-1]
    assert whole[-1].startswith(("head", "classifier", "9."))


def test_the_head_is_the_one_that_a_network_declares_else_the_last_linear_map():
    class Declared(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head, self.body = head, nn.Linear(8, 8)

    def spared(model: nn.Module) -> set[str]:
        return set(PruneConfig().weights(model)) - set(PruneConfig(head=False).weights(model))

    assert spared(Declared(nn.Linear(8, 2))) == {"head.weight"}
    assert spared(Declared(nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))) == {"head.1.weight"}
    two = Declared(nn.Linear(8, 2))
    two.other = nn.Linear(8, 2)
    two.get_classifier = lambda: (two.head, two.other)  # as timm's distilled networks
    assert spared(two) == {"head.weight", "other.weight"}
    assert spared(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))) == {"1.weight"}
    with pytest.raises(ConfigError, match=r"prune\.head=False .* Sequential is known to give the"):
        PruneConfig(head=False).weights(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)))


def test_norms_that_do_not_follow_their_layers_one_by_one_are_not_silenced(caplog):
    parts = {"conv1": nn.Conv2d(3, 4, 3), "conv2": nn.Conv2d(4, 4, 3)}
    net = nn.ModuleDict({**parts, "bn1": nn.BatchNorm2d(4), "bn2": nn.BatchNorm2d(4)})
    kept = torch.ones(net["conv2"].weight.shape, dtype=torch.bool)
    kept[2] = False
    assert set(silenced(net, Mask({"conv2.weight": kept}))) == {"conv2.weight"}
    assert "which norm follows 'conv2' is not known" in caplog.text
    caplog.clear()
    usual = nn.ModuleDict({
        "conv1": parts["conv1"], "bn1": nn.BatchNorm2d(4), "conv2": parts["conv2"],
        "bn2": nn.BatchNorm2d(4), "conv3": nn.Conv2d(4, 4, 3), "bn3": nn.BatchNorm2d(4),
    })  # fmt: skip
    found = silenced(usual, Mask({"conv2.weight": kept}))
    assert found["bn2.bias"].tolist() == [True, True, False, True] and not caplog.text


def test_a_search_that_empties_a_layer_says_so(caplog):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 400))
    nn.init.constant_(net[0].weight, 1e-3)
    create_search("magnitude", sparsity=0.9).find(net, lambda model, phase: None)
    assert "magnitude left no weight of '0.weight'" in caplog.text


def test_inside_chooses_by_name_and_refuses_nothing(make):
    model = make()
    first = next(iter(PruneConfig().weights(model)))
    assert list(PruneConfig(inside=(first.removesuffix(".weight"),)).weights(model)) == [first]
    with pytest.raises(ConfigError, match="leaves nothing to prune"):
        PruneConfig(inside=("nowhere",)).weights(model)


@pytest.mark.parametrize(
    ("field", "value"), [("sparsity", 1.0), ("sparsity", -0.1), ("scope", "all"), ("floor", 2.0)]
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        OneShotConfig(**{field: value})


def test_dead_filters_are_counted():
    kept = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    kept[1] = kept[2] = False
    assert dead_filters(Mask({"a.weight": kept, "b.bias": torch.ones(3)})) == {"a.weight": 2}


@pytest.mark.parametrize("silence", [True, False])
def test_a_filter_without_weights_is_silent_where_that_is_asked_for(bench, tmp_path, silence):
    """Left alone it fires at the pace of BatchNorm's shift: at every input the same."""
    model = create_model("spiking_vgg_toy", image_size=16, T=3)
    layer = model.layers[2]
    with torch.no_grad():
        layer.conv.weight[:5] *= 1e-3
        layer.norm.bias[:5] = 2.0
    config = MagnitudeConfig(0.5, prune=PruneConfig(silence=silence))
    ticket = Magnitude(config).find(model, None)
    assert ticket.provenance["dead_filters"] == {"layers.2.conv.weight": 5}
    assert ticket.provenance["prunable_sparsity"] == pytest.approx(0.5, abs=1e-4)
    retrain(model, ticket, bench.trainer(tmp_path).fit, 2)
    fired = []
    layer.register_forward_hook(lambda *given: fired.append(given[2]))
    with torch.no_grad():
        model.eval()(torch.rand(4, 3, 16, 16))
    dead = fired[0][..., :5]
    assert bool((dead == 0).all()) == silence and bool((dead == 1).any()) != silence
    names = {"layers.2.norm.weight", "layers.2.norm.bias"}
    assert {name for name in ticket.mask if name in names} == (names if silence else set())


def test_a_shuffled_state_has_the_same_values_elsewhere(make):
    state = snapshot(make())
    name = next(iter(PruneConfig().weights(make())))
    drawn = shuffled(state, {name: None}, 3)
    assert not torch.equal(drawn[name], state[name])
    assert torch.equal(drawn[name].flatten().sort().values, state[name].flatten().sort().values)
    assert all(torch.equal(drawn[k], v) for k, v in state.items() if k != name)


def test_a_search_that_needs_images_says_so(make):
    with pytest.raises(ConfigError, match="batch=trainer.batch"):
        Snip().find(make(), None)


@pytest.mark.parametrize("name", ["random", "snip", "grasp", "synflow"])
def test_a_random_attention_keeps_its_frozen_weights(name: str) -> None:
    sizes = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
    model = create_model("spikformer_toy", attention="random", **sizes)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    images = torch.rand(10, 3, 16, 16)
    search = create_search(name, batch=lambda count: (images[:count], torch.arange(count)))
    search.config = replace(search.config, **({"images": 8} if name in ("snip", "grasp") else {}))
    ticket = search.find(model, lambda *phase: pytest.fail("nothing is trained"))
    assert before and not any("attn.q" in n or "attn.k" in n for n in ticket.mask)
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in before.items())
