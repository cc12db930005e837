"""What models and layers say of themselves: units, stems, selections, chains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import SpikingClassifier
from spikeformer_lt.layers.neuron import BatchNorm
from spikeformer_lt.layers.patches import PatchSelect, Rate, patches_of
from spikeformer_lt.layers.stems import ConvPEP, Stem, stem_of
from spikeformer_lt.layers.tracing import trace_chains
from spikeformer_lt.layers.units import (
    Chain,
    ConvLayer,
    ConvUnit,
    HiddenLayer,
    Integers,
    LinearUnit,
    Unit,
    chains_of,
    map_rows,
)
from spikeformer_lt.models.spiking_cnn import SpikingCNN

UNITS: dict[str, Any] = {
    "conv": lambda: ConvUnit(3, 8),
    "linear": lambda: LinearUnit(5, 8),
    "layer": lambda: ConvLayer(3, 8, stride=2, bias=True),
    "hidden": lambda: HiddenLayer(5, 8, norm=True),
    "hidden without a norm": lambda: HiddenLayer(5, 8, norm=False),
}


def toy(**options: Any) -> Any:
    return create_model("spikformer_toy", image_size=16, embed_dim=32, **options)


@pytest.mark.parametrize("name", UNITS)
def test_a_folded_unit_gives_the_normalised_current(name: str) -> None:
    torch.manual_seed(0)
    unit = UNITS[name]().double().eval()
    for part in unit.modules():
        if isinstance(part, BatchNorm):
            for value in (part.weight, part.bias, part.running_mean, part.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
    assert isinstance(unit, Unit)
    folded, synapse = unit.folded(), copy.deepcopy(unit.synapse)
    assert folded.weight.dtype == folded.bias.dtype == torch.float64
    assert folded.neuron is unit.neuron is unit.act
    x = torch.rand(2, *(() if isinstance(synapse, nn.Linear) else (3, 6)), synapse.weight.shape[1])
    x = x.double() if isinstance(synapse, nn.Linear) else torch.rand(2, 3, 6, 6).double()
    plain = synapse(x)
    rows = plain if plain.ndim == 2 else plain.permute(0, 2, 3, 1)
    wanted = rows if unit.norm is None else unit.norm(rows)
    synapse.weight.data, synapse.bias = folded.weight, nn.Parameter(folded.bias)
    found = synapse(x)
    torch.testing.assert_close(
        found if found.ndim == 2 else found.permute(0, 2, 3, 1), wanted, rtol=0, atol=1e-12
    )


def test_a_norm_without_running_statistics_cannot_be_folded() -> None:
    unit = LinearUnit(4, 8)
    unit.norm = BatchNorm(8, track_running_stats=False)
    with pytest.raises(ConfigError, match="running statistics"):
        unit.folded()


def test_units_of_a_transformer_say_what_they_read() -> None:
    model = toy()
    assert [unit.reads for _, unit in model.stem.units()] == ["real", *["spikes"] * 4]
    first, second = model.blocks
    assert first.attn.q.reads == Integers(2) and first.mlp.fc1.reads == Integers(3)
    assert second.attn.v.reads == Integers(4) and second.mlp.fc1.reads == Integers(5)
    assert second.attn.proj.reads == second.mlp.fc2.reads == "spikes"
    model.stem.set_activation("heaviside", "or")
    assert (first.attn.k.reads, second.mlp.fc1.reads) == ("spikes", Integers(4))
    copied = copy.deepcopy(model)
    copied.stem.set_activation("sign")
    assert [unit.reads for _, unit in copied.stem.units()] == ["real"] * 5
    assert copied.blocks[0].attn.q.reads == copied.blocks[1].mlp.fc1.reads == "real"
    assert copied.blocks[1].mlp.fc2.reads == "spikes" and first.attn.q.reads == "spikes"


def test_layers_of_a_cnn_say_what_they_read() -> None:
    vgg = create_model("spiking_vgg_toy", pool="avg")
    assert [u.reads for u in vgg.layers if isinstance(u, Unit)] == [
        "real",
        "real",
        "spikes",
        "real",
    ]
    resnet: Any = create_model("spiking_resnet_toy")
    one, two = resnet.blocks
    assert resnet.stem.reads == "real"
    assert one.conv1.reads == one.conv2.reads == two.shortcut.reads == "spikes"
    assert one.conv1.fires and not one.conv2.fires
    resnet.set_neuron("relu")
    assert {u.reads for u in resnet.modules() if isinstance(u, Unit)} == {"real"}


@pytest.mark.parametrize(
    ("name", "options", "hidden"),
    [
        ("spikformer_toy", {"residual": "or"}, None),
        ("spikformer_toy", {}, None),
        ("spiking_vgg_toy", {"image_size": 8, "hidden": 16}, "spikes"),
        ("spiking_vgg_toy", {"image_size": 16, "hidden": 16}, "real"),
        ("spiking_resnet_toy", {"image_size": 16, "hidden": 16}, "real"),
    ],
)
def test_units_receive_what_they_say_that_they_read(
    name: str, options: dict[str, Any], hidden: object, awaken
) -> None:
    model: Any = create_model(name, **{"image_size": 16, "T": 3, **options})
    x = torch.randn(4, 3, *model.image_size)
    awaken(model, lambda module: module(x))
    units = {n: m for n, m in model.eval().named_modules() if isinstance(m, Unit)}
    seen: dict[str, torch.Tensor] = {}
    for n, unit in units.items():
        unit.register_forward_pre_hook(lambda m, args, n=n: seen.update({n: args[0]}))
    model(x)
    assert seen.keys() == units.keys()
    for n, unit in units.items():
        limit = {"spikes": 1, "real": None}.get(unit.reads, getattr(unit.reads, "max", None))
        if limit is not None:
            assert set(seen[n].unique().tolist()) <= set(range(limit + 1)), n
            assert seen[n].any(), n
    assert getattr(getattr(model, "hidden", None), "reads", None) == hidden


def test_a_stem_and_a_selection_are_found_whatever_they_are_called() -> None:
    model = toy()
    assert stem_of(model) is model.conv_pep and isinstance(model.stem, Stem)
    assert [role for role, _ in model.stem.units()] == ["first", *["main"] * 3, "shortcut"]
    other = nn.ModuleDict({"patch_embed": ConvPEP(3, 16), "tokens": PatchSelect(Rate(), 0.5)})
    assert stem_of(other) is other["patch_embed"]
    assert patches_of(other) is other["tokens"] and patches_of(model) is None
    assert stem_of(nn.ModuleList([ConvPEP(3, 16), ConvPEP(3, 16)])) is None
    assert stem_of(create_model("spiking_resnet_toy")) is None


def test_a_classifier_of_another_name_than_head_classifies() -> None:
    class Plug(SpikingClassifier):
        def __init__(self) -> None:
            super().__init__(image_size=16, T=2)
            self.tokenizer, self.classifier = ConvPEP(3, 16), nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens, _ = self.tokenizer(self.time_first(x), self.T)
            return self.classifier(tokens.mean(2)).transpose(0, 1)

    model = Plug().double().eval()
    assert model(torch.rand(2, 3, 16, 16).double()).shape == (2, 2, 10)
    with pytest.raises(ConfigError, match="float32 is not the model's torch.float64"):
        model(torch.rand(2, 3, 16, 16))


def test_models_declare_their_chains() -> None:
    assert chains_of(toy()) == [
        Chain(tuple(f"conv_pep.stages.{i}" for i in range(4))),
        *(Chain((f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.fc2")) for i in range(2)),
    ]
    vgg = create_model("spiking_vgg_toy", hidden=16)
    convolutions = [f"layers.{i}" for i in (0, 2, 3, 5)]
    assert chains_of(vgg) == [
        Chain((*convolutions, "hidden"), repeats=4),
        Chain(("hidden", "head")),
    ]
    assert chains_of(create_model("spiking_resnet_toy")) == [
        Chain((f"blocks.{i}.conv1", f"blocks.{i}.conv2")) for i in range(2)
    ]
    undeclared = nn.ModuleDict({"embed": ConvPEP(3, 16)})
    assert chains_of(undeclared) == [Chain(tuple(f"embed.stages.{i}" for i in range(4)))]


class Branches(SpikingCNN):
    """Layers under names of its own: two in a row, a pool, and two that read the same map."""

    def __init__(self, **options: Any) -> None:
        super().__init__(image_size=8, T=2, **options)
        self.body = nn.ModuleDict(
            {
                name: ConvLayer(3 if name == "first" else 4, 4, neuron=self.neuron)
                for name in ("first", "second", "third", "left", "right", "twice")
            }
        )
        self.shrink = nn.MaxPool2d(2)
        self.build_classifier(4, (4, 4), pooled=1, hidden=6, norm=True)

    def features(self, rows: torch.Tensor) -> torch.Tensor:
        """Run the layers."""
        part, T = self.body, self.T
        rows = map_rows(part["second"](part["first"](rows, T), T), self.shrink)
        rows = part["third"](rows, T)
        rows = part["left"](rows, T) + part["right"](rows, T)
        return part["twice"](part["twice"](rows, T), T)


@pytest.mark.parametrize("kind", ["lif", "relu"])
def test_chains_are_found_by_watching_a_forward(kind: str) -> None:
    model = Branches(neuron=kind).train()
    assert chains_of(model) == [
        Chain(("body.first", "body.second", "body.third")),
        Chain(("hidden", "head")),
    ]
    assert model.training and not model.body["first"]._forward_hooks


def test_watching_finds_what_models_declare_but_for_flattened_maps() -> None:
    for name in ("spikformer_toy", "spiking_resnet_toy"):
        model: Any = create_model(name, image_size=16)
        found = trace_chains(model, torch.zeros(1, 3, 16, 16))
        assert found == chains_of(model) and found
    vgg = create_model("spiking_vgg_toy", hidden=16)
    declared = chains_of(vgg)
    assert trace_chains(vgg, torch.zeros(1, 3, 16, 16)) == [
        Chain(declared[0].names[:-1]),
        declared[1],
    ]


def test_what_is_read_beside_the_next_unit_is_in_no_chain() -> None:
    class Peek(Branches):
        def features(self, rows: torch.Tensor) -> torch.Tensor:
            first = self.body["first"](rows, self.T)
            return self.body["second"](first, self.T) * first.mean()

    assert chains_of(Peek()) == [Chain(("hidden", "head"))]
