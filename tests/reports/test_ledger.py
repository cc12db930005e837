"""The ledger's figures on networks whose figures are known."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from spikingjelly.activation_based.neuron import LIFNode
from torch import nn

from spikeformer_lt import adapt, create_model
from spikeformer_lt.errors import DataError
from spikeformer_lt.export import compact
from spikeformer_lt.layers.patches import PatchSelect, Rate
from spikeformer_lt.layers.stems import ConvPEP
from spikeformer_lt.reports.energy import HOROWITZ, Energy
from spikeformer_lt.reports.ledger import (
    AC_PJ,
    MAC_PJ,
    LayerWeights,
    build_ledger,
    count_operations,
)


def bits_per_weight(layers) -> float:
    counts = [LayerWeights.of(layer) for layer in layers]
    return sum(count.bits for count in counts) / sum(count.total for count in counts)


def is_binary(weight: torch.Tensor) -> bool:
    layer = nn.Linear(1, 1) if weight.ndim == 2 else nn.Conv2d(1, 1, 1)
    layer.weight = nn.Parameter(weight)
    return LayerWeights.of(layer).binary


IMAGES = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) for _ in range(2)]


def test_every_kind_of_sparsity_is_counted_apart(build):
    model = build()
    with torch.no_grad():
        for _, unit in model.conv_pep.units():
            flat = unit.conv.weight.view(-1)
            flat[: flat.numel() // 2] = 0
    model.patch = PatchSelect(Rate(), 0.25)
    ledger = build_ledger(model, IMAGES)
    assert ledger["sparsity"]["conv_pep_weight"] == 0.5
    assert ledger["sparsity"]["patch"] == 0.25
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    removed = sum(int((w == 0).sum()) for w in weights)
    assert ledger["sparsity"]["total_weight"] == removed / sum(w.numel() for w in weights)
    assert ledger["ledger_samples"] == 8
    assert ledger["conv_pep_bits_per_weight"] == bits_per_weight(
        [unit.conv for _, unit in model.conv_pep.units()]
    )
    assert ledger["conv_pep_bits_per_weight"] < ledger["bits_per_weight"] < 32
    json.dumps(ledger)


def test_a_model_without_a_stem_has_the_figures_that_it_can_have():
    torch.manual_seed(0)
    model = create_model("spiking_vgg_toy", T=2)
    with torch.no_grad():
        model.layers[0].conv.weight.view(-1)[:100] = 0
    ledger = build_ledger(model.eval(), IMAGES)
    assert ledger["sparsity"] == {
        "patch": 0.0,
        "conv_pep_weight": None,
        "total_weight": pytest.approx(100 / 30_000),
    }
    assert ledger["conv_pep_bits_per_weight"] is None
    assert ledger["bits_per_weight"] > 31
    assert ledger["macs"] > 0 and ledger["params"] == 30_266
    json.dumps(ledger)


def test_energy_is_the_sum_over_layers_by_the_stated_constants(build):
    ledger = build_ledger(build(), IMAGES)
    sops = sum(layer["sops"] for layer in ledger["layers"].values())
    macs = sum(layer["macs_nonspiking"] for layer in ledger["layers"].values())
    assert all(rate > 0 for rate in ledger["firing_rate"].values())
    assert ledger["sops"] == pytest.approx(sops)
    assert ledger["energy_pj"] == pytest.approx(MAC_PJ * macs + AC_PJ * sops)


@pytest.mark.fault(88)
def test_a_binary_first_convolution_has_one_energy_in_every_report(build):
    model = build()
    with torch.no_grad():
        weight = model.conv_pep.stages[0].conv.weight
        weight.copy_(torch.where(weight < 0, -0.125, 0.125))
    counted = count_operations(model, IMAGES, model.T)
    ledger, energy = build_ledger(model, IMAGES), Energy.of(counted)
    assert energy.layers[0].binary and energy.layers[0].multiplies == 0 < ledger["macs_nonspiking"]
    assert ledger["binary_layers"] == ["conv_pep.stages.0.conv"]
    assert ledger["acs"] == energy.total("acs") > ledger["sops"]
    assert ledger["energy_pj"] == pytest.approx(energy.headline_pj(HOROWITZ))


def test_the_stem_is_counted_whatever_the_model_calls_it():
    class Net(nn.Module):
        T = 2

        def __init__(self) -> None:
            super().__init__()
            self.patch_embed, self.head = ConvPEP(3, 32), nn.Linear(32, 10)
            self.place = nn.Parameter(torch.ones(16, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens, _ = self.patch_embed(x.unsqueeze(0), 2)
            return self.head((tokens + self.place).mean(2)).transpose(0, 1)

    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for _, unit in model.patch_embed.units():
            unit.conv.weight[::2] = 0
    ledger = build_ledger(model, [torch.rand(2, 3, 16, 16)])
    assert ledger["sparsity"]["conv_pep_weight"] == 0.5
    assert 0 < ledger["conv_pep_bits_per_weight"] < 32
    assert ledger["uncounted_layers"] == ["place"]  # a matrix of the network itself


@pytest.mark.fault(17)
def test_a_dead_network_gets_no_energy_headline(build):
    model = build()
    with torch.no_grad():
        model.blocks[0].attn.q.norm.bias.fill_(-100)
    ledger = build_ledger(model, IMAGES)
    assert "blocks.0.attn.q.act" in ledger["dead_layers"]
    assert ledger["energy_pj"] is None
    assert "refused" in ledger["energy_note"]


def conv_with(weight: torch.Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, bias=False)
    conv.weight.data = weight
    return conv


def test_bits_of_a_binary_half_empty_layer():
    weight = torch.ones(8, 4, 3, 3) * 0.3
    weight.view(-1)[::2] = 0
    weight.view(-1)[1::4] *= -1
    n = weight.numel()
    assert is_binary(weight)
    assert bits_per_weight([conv_with(weight)]) == pytest.approx((n + n / 2 + 32) / n)


def test_bits_of_a_full_precision_layer():
    weight = torch.randn(8, 4, 3, 3)
    assert bits_per_weight([conv_with(weight)]) == 32
    weight.view(-1)[: weight.numel() // 4] = 0
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert bits_per_weight([conv_with(weight)]) == pytest.approx(entropy + 0.75 * 32)


def test_binary_is_recognised_per_layer_and_per_filter():
    signs = torch.where(torch.rand(4, 2, 3, 3) < 0.5, -1.0, 1.0)
    assert is_binary(signs)
    assert is_binary(signs * torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None, None])
    few = torch.zeros(3, 4)  # three magnitudes for four weights: an export stores them as real
    few[0, :2], few[1, 0], few[2, 0] = torch.tensor([0.5, -0.5]), 0.3, 0.7
    assert not is_binary(few)
    assert not is_binary(torch.randn(4, 2, 3, 3))
    assert not is_binary(torch.zeros(4, 2, 3, 3))


def test_one_weight_in_each_filter_is_told_by_its_magnitude():
    one_each = torch.zeros(4, 2, 3, 3)
    one_each[range(4), 0, 1, 1] = torch.tensor([0.5, -0.5, 0.5, 0.5])
    assert is_binary(one_each)
    one_each[range(4), 0, 1, 1] = torch.tensor([0.5, -0.25, 0.125, 1.0])
    assert not is_binary(one_each)
    one_each[0] = 0  # a filter without any does not make the others' gains
    assert not is_binary(one_each)


def audited(build, **kwargs):
    model = build(**kwargs)
    return count_operations(model, IMAGES[:1], model.T).purity()


def test_add_residuals_make_integers_and_iand_keeps_tokens_binary(build):
    assert audited(build)["impure"]["blocks.0.attn.q.linear"] == "integers"
    for residual in ("iand", "or"):
        assert "blocks.0.attn.q.linear" not in audited(build, residual=residual)["impure"]


def test_the_image_enters_the_first_convolution_as_real_numbers(build):
    impure = audited(build, residual="iand")["impure"]
    assert impure["conv_pep.stages.0.conv"] == "real"
    assert "conv_pep.stages.1.conv" not in impure


def test_sign_activations_are_called_by_name(build):
    assert audited(build, activation="sign")["impure"]["conv_pep.stages.1.conv"] == "{-1,0,1}"


def test_relu_is_not_spiking(build):
    assert audited(build, activation="relu")["impure"]["conv_pep.stages.1.conv"] == "real"


class Foreign(nn.Module):
    """A network of somebody else: a shared weight, attentions of two kinds, one convolution of an
    image and a loop over steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.T = 4
        self.conv, self.node = nn.Conv2d(3, 16, 4, 4), LIFNode()
        self.known = nn.MultiheadAttention(16, 2, batch_first=True)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        current, steps = self.conv(x).flatten(2).transpose(1, 2), []
        for _ in range(self.T):
            tokens = self.second(self.first(self.node(current)))
            tokens = tokens + self.known(tokens, tokens, tokens, need_weights=False)[0]
            tokens = torch.softmax(tokens @ tokens.transpose(-1, -2), -1) @ tokens
            steps.append(self.head(tokens.mean(1)))
        return torch.stack(steps, 1)


def test_what_a_foreign_network_hides_is_counted_or_named():
    torch.manual_seed(0)
    model = adapt(Foreign(), images=torch.zeros(2, 3, 16, 16))
    x = [torch.rand(3, 3, 16, 16)]
    ledger, energy = build_ledger(model, x), Energy.of(count_operations(model, x, 4))
    weights = 16 * 48 + 16 * 16 + 160  # the shared one once
    inside = 16 * 16  # the attention's own projection, a linear map that never runs as such
    assert ledger["weight_bytes"] == energy.weight_bytes == 4 * (weights + inside)
    assert ledger["params"] == ledger["nonzero_params"] + 3 * 16 + 16  # biases that start at 0
    assert energy.layers[0].formula_macs == 16 * 16 * 48  # it ran once, whatever T
    names = ledger["uncounted_layers"]
    assert {"known", "known.out_proj"} <= set(names) and len(names) == 3
    macs = int(re.sub(r"\D", "", names[-1]))  # of 16 tokens in 4 steps, 16 wide; torch adds its own
    assert names[-1].startswith("products of activations") and macs >= 4 * 2 * 16 * 16 * 16


@pytest.mark.parametrize("what", ["nothing", "compact", "no T"])
def test_what_cannot_be_counted_is_refused_in_one_line(what):
    model = create_model("spikformer_digits").eval()
    images = [torch.rand(2, 3, 16, 16)]
    if what == "compact":
        with pytest.raises(DataError, match="load it with plain=True"):
            count_operations(compact(model), images, 4)
        return
    with pytest.raises(DataError, match="at least one batch|has no T"):
        build_ledger(nn.Identity() if what == "no T" else model, images if what == "no T" else [])
