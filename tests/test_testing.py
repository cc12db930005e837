"""What `check_model` tells the author of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt import create_model
from spikeformer_lt.layers.stems import ConvPEP
from spikeformer_lt.layers.units import Chain, ConvLayer
from spikeformer_lt.models.spiking_cnn import SpikingCNN
from spikeformer_lt.testing import check_model


class Plain(nn.Module):
    """A network that declares nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means of the maps."""
        return self.body(x).mean((2, 3))


class Wrong(SpikingCNN):
    """A network whose chain does not fit, with a layer of its own name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(image_size=16, T=2, **options)
        self.convs = nn.ModuleList(
            [ConvLayer(3, 8, neuron=self.neuron), ConvLayer(8, 4, neuron=self.neuron)]
        )
        self.build_classifier(4, self.image_size, pooled=2, hidden=None, norm=False)

    def chains(self) -> list[Chain]:
        """Declare a chain without its repeats, and a name that is not there."""
        return [Chain(("convs.0", "convs.1", "head")), Chain(("convs.9", "head"))]

    def features(self, rows: Tensor) -> Tensor:
        """Run the layers."""
        for layer in self.convs:
            rows = layer(rows, self.T)
        return rows


def test_a_transformer_declares_everything() -> None:
    model = create_model("spikformer_toy", image_size=16, embed_dim=16).train()
    found = check_model(model)
    assert found.missing == []
    assert found.declared["stem"] == "conv_pep: first, main, main, main, shortcut; stride 4"
    assert found.declared["logits"] == "[2, 4, 10]"
    assert "blocks.1.mlp.fc1 > blocks.1.mlp.fc2" in found.declared["chains"]
    assert "Integers(max=5)" in found.declared["units"]
    assert model.training


@pytest.mark.parametrize("name", ["spiking_vgg_toy", "spiking_resnet_toy"])
def test_a_cnn_lacks_a_stem_alone_or_blocks_too(name: str) -> None:
    found = check_model(create_model(name))
    missing = {text.split(":")[0] for text in found.missing}
    assert missing == {"a stem"} | ({"blocks"} if "vgg" in name else set())


def test_a_network_that_declares_nothing_is_told_what_is_missing() -> None:
    text = str(check_model(Plain()))
    for part in ("attribute T", "a stem", "head", "chains()", "body is in no unit"):
        assert f"missing: {part}" in text


def test_a_chain_that_does_not_fit_is_named() -> None:
    found = check_model(Wrong())
    assert any("convs.1 has 4 outputs, head reads 16 columns" in text for text in found.missing)
    assert any("convs.9 is neither a unit" in text for text in found.missing)


def test_a_unit_that_cannot_be_folded_and_a_failing_forward_are_named() -> None:
    model: Any = create_model("spikformer_toy", image_size=16, embed_dim=16)
    model.conv_pep = ConvPEP(2, 16)
    model.blocks[0].mlp.fc1.norm.running_mean = None
    found = check_model(model)
    assert any("fc1.folded() fails" in text for text in found.missing)
    assert any("a forward of images [2, 3, 16, 16] fails" in text for text in found.missing)
    assert torch.is_grad_enabled()


def test_a_unit_that_others_read_is_in_no_chain() -> None:
    class Twice(Wrong):
        def chains(self) -> list[Chain]:
            """Declare what another operation reads, too."""
            return [Chain(("convs.0", "convs.1"))]

        def features(self, rows: Tensor) -> Tensor:
            """Read the first unit twice."""
            first = self.convs[0](rows, self.T)
            return self.convs[1](first, self.T) * first.mean()

    found = check_model(Twice())
    assert "chains(): convs.0 is read by others than convs.1" in found.missing
