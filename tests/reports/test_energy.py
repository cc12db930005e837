"""The energy ledger against nets counted by hand, another library's counters, and itself."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import DataError
from spikeformer_lt.layers.patches import PatchSelect, Rate
from spikeformer_lt.layers.subnet import effective_weight
from spikeformer_lt.reports.energy import HOROWITZ, SOP_77FJ, SUMMED, measure_energy
from spikeformer_lt.reports.ledger import build_ledger


class Fire(nn.Module):
    """A stateless neuron that says of itself that it spikes."""

    spiking = True

    def forward(self, x):
        return (x >= 1).to(x.dtype)


class HandNet(nn.Module):
    """2x2 pixels, 2 channels -> 1x1 convolution -> spikes -> linear map to 2 classes."""

    def __init__(self, conv, linear):
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 2, 1, bias=False), Fire()
        self.head = nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(conv).view(2, 2, 1, 1))
            self.head.weight.copy_(linear)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).flatten(1)[None])


IMAGE = torch.tensor([[[[0.5, 1.5], [2.5, 0.25]], [[0.25, 0.25], [0.25, 0.25]]]])


def test_a_net_counted_by_hand():
    linear = torch.tensor([[1.0, 2.0, 3.0, 0.0, 5.0, 6.0, 7.0, 8.0], [0.0] * 7 + [4.0]])
    found = measure_energy(HandNet([[1.0, 0.5], [0.0, 0.0]], linear), [IMAGE], T=1)
    first, head = found.layers
    # 8 real values, each at one weight that is there; channel 1's two are removed.
    assert (first.input, first.multiplies, first.sops, first.weight_sparsity) == ("real", 8, 0, 0.5)
    assert (first.macs_dense, first.formula_macs) == (16, 16)
    # Channel 0 spikes at pixels 1 and 2 and there meets weights 2 and 3: two accumulates.
    assert (head.input, head.multiplies, head.acs, head.sops) == ("{0,1}", 0, 2, 2)
    assert head.rate == 2 / 8
    assert head.formula_acs == 2 / 8 * 16  # the formula sees neither removed weight nor place
    assert [row.operation for row in found.layers] == ["convolution", "linear"]
    # BatchNorm and bias, folded: one accumulate for each of 8 and 2 outputs, in no headline.
    assert (first.bias_acs, head.bias_acs) == (8, 2)
    assert found.headline_pj(HOROWITZ) == 4.6 * 8 + 0.9 * 2
    assert found.formula_pj(HOROWITZ) == 4.6 * 16 + 0.9 * 4
    assert found.headline_pj(SOP_77FJ) == pytest.approx(4.6 * 8 + 0.077 * 2)


def test_binary_weights_turn_multiplications_into_accumulates():
    linear = torch.ones(2, 8)
    found = measure_energy(HandNet([[2.0, -2.0], [2.0, 2.0]], linear), [IMAGE], T=1)
    assert found.layers[0].binary
    assert (found.layers[0].multiplies, found.layers[0].acs, found.layers[0].sops) == (0, 16, 0)
    other = measure_energy(HandNet([[2.0, -2.0], [2.0, 1.0]], linear), [IMAGE], T=1)
    assert (other.layers[0].multiplies, other.layers[0].acs) == (16, 0)


def test_integer_inputs_count_by_value_and_the_first_layer_by_what_enters():
    found = measure_energy(HandNet([[1.0, 1.0], [1.0, 1.0]], torch.ones(2, 8)), [IMAGE.ceil()], T=1)
    assert (found.layers[0].input, found.layers[0].multiplies) == ("integers", 0)
    assert found.layers[0].sops == 2 * (1 + 2 + 3 + 1 + 4)


def test_patch_weight_and_spike_sparsity_multiply_exactly(lively, probe):
    """Kept tokens x their spikes x the weights that are left, by a loop over tokens."""
    lively.patch = PatchSelect(Rate(), 0.5)
    layer = lively.blocks[0].attn.q.linear
    with torch.no_grad():
        layer.weight.view(-1)[::3] = 0
    entered = []
    handle = layer.register_forward_hook(lambda m, x, y: entered.append(x[0].detach()))
    found = measure_energy(lively, probe, lively.T)
    handle.remove()
    fan_out = (layer.weight != 0).sum(0)
    by_hand = 0
    for x in entered:
        assert x.shape[2] == lively.num_tokens // 2
        for spikes in x.reshape(-1, x.shape[-1]):
            by_hand += int((spikes * fan_out).sum())
    row = next(row for row in found.layers if row.name == "blocks.0.attn.q.linear")
    assert row.sops * found.samples == by_hand > 0


def test_the_layers_sum_to_the_whole_and_to_the_ledger(lively, probe):
    found = measure_energy(lively, probe, lively.T)
    ledger = build_ledger(lively, probe)
    said = found.as_json()
    for name in SUMMED:
        assert said["totals"][name] == sum(row[name] for row in said["layers"])
    assert found.total("sops") == ledger["sops"]
    assert found.total("multiplies") == ledger["macs_nonspiking"]
    assert found.headline_pj(HOROWITZ) == ledger["energy_pj"]
    one_by_one = measure_energy(lively, [x[None] for b in probe for x in b], lively.T)
    assert one_by_one.total("sops") == found.total("sops")
    json.dumps(said, allow_nan=False)


@pytest.mark.parametrize("name", ["spiking_vgg_toy", "spikformer_toy"])
def test_events_into_any_network_sum_and_halve_exactly(name):
    """Frames [B, T, 2, H, W] of whole counts: the first layer accumulates them by value."""
    torch.manual_seed(0)
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2} if name == "spikformer_toy" else {}
    model = create_model(name, image_size=16, in_channels=2, T=3, v_threshold=0.2, **small).eval()
    frames = torch.poisson(torch.full((2, 3, 2, 16, 16), 0.4))
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))

    def count():
        return measure_energy(model, [frames], 3)

    whole = count()
    row = whole.layers[0]
    assert (row.operation, row.input, row.multiplies) == ("convolution", "integers", 0)
    assert row.formula_macs == row.macs_dense  # all T steps: frames differ
    assert row.sops > 0 and whole.total("multiplies") == sum(r.multiplies for r in whole.layers)
    met = nn.functional.conv2d(
        frames.flatten(0, 1).double(), torch.ones_like(first.weight).double(),
        stride=first.stride, padding=first.padding,
    )  # fmt: skip
    assert row.sops * 2 == float(met.sum())
    with torch.no_grad():
        first.weight[::2] = 0
    assert count().layers[0].sops == row.sops / 2


def test_a_dead_layer_refuses_the_headline_and_says_which(lively, probe):
    with torch.no_grad():
        lively.blocks[0].attn.q.norm.bias.fill_(-100)
    found = measure_energy(lively, probe, lively.T)
    assert "blocks.0.attn.q.act" in found.dead
    assert found.headline_pj(HOROWITZ) is None
    assert "blocks.0.attn.q.act" in found.refusal()
    assert set(found.as_json()["energy_pj"].values()) == {None}


def test_where_they_overlap_spikingjelly_counts_the_same():
    """Dense weights, spikes without borders: its SynOpCounter sees neither mask nor padding."""
    from spikingjelly.activation_based import op_counter

    def theirs(module, x):
        counter = op_counter.SynOpCounter()
        with op_counter.DispatchCounterMode([counter], strict=False), torch.no_grad():
            module(x)
        return counter.get_total()

    generator = torch.Generator().manual_seed(5)
    for module, shape in (
        (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 6, 6)),
        (nn.Linear(10, 5, bias=False), (4, 10)),
    ):
        spikes = (torch.rand(shape, generator=generator) < 0.4).float()
        ours = measure_energy(nn.Sequential(module), [spikes], 1)
        dense_count = theirs(module, spikes)
        assert dense_count > 0
        if isinstance(module, nn.Linear):
            assert ours.total("sops") * len(spikes) == dense_count
            with torch.no_grad():
                module.weight.view(-1)[::2] = 0
            assert theirs(module, spikes) == dense_count  # the mask is not seen there
            pruned = measure_energy(nn.Sequential(module), [spikes], 1)
            assert pruned.total("sops") * len(spikes) < dense_count
        else:
            assert ours.total("sops") * len(spikes) == dense_count


def test_memory_stands_apart_and_counts_the_bits_that_are_needed():
    found = measure_energy(HandNet([[2.0, 0.0], [1.0, 3.0]], torch.ones(2, 8)), [IMAGE], T=1)
    assert found.layers[0].input_bits == 8 * 32
    assert found.layers[1].input_bits == 8 * 1
    read = (found.total("weight_bits") + 8 * 32 + 8) / 8
    assert found.memory_pj()["SRAM 1 MB"] == pytest.approx(read * 12.5)


def test_nothing_to_measure_is_said():
    with pytest.raises(DataError, match="at least one batch"):
        measure_energy(nn.Linear(2, 2), [], 1)
    with pytest.raises(DataError, match="no convolution"):
        measure_energy(nn.Identity(), [torch.rand(1, 2)], 1)


def test_the_weight_that_is_counted_is_the_masked_one(lively):
    conv = lively.conv_pep.stages[0].conv
    assert torch.equal(effective_weight(conv), conv.weight)


def test_a_last_layer_behind_numbers_is_of_multiplications():
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    last = measure_energy(net, [IMAGE], T=1).layers[-1]
    assert (last.input, last.formula_macs, last.formula_acs) == ("real", 12, 0)
