"""Surgery on the ConvPEP and the controller that holds its masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.subnet import SubnetConv2d, get_masks
from spikeformer_lt.tickets import WeightConfig
from spikeformer_lt.tickets.multisp import MaskController, StemProbe, install_subnets
from spikeformer_lt.training.phase import Progress


def toy(**kwargs):
    torch.manual_seed(0)
    return create_model(
        "spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2, T=2, **kwargs
    )


def dressed(config: WeightConfig, **kwargs):
    model = toy(**kwargs)
    install_subnets(model.conv_pep, config)
    return model


@pytest.mark.parametrize(
    ("channels", "first_conv", "binary"),
    [(3, "auto", False), (2, "auto", True), (3, "binary", True), (2, "full", False)],
)
def test_the_first_convolution_is_binary_by_rule(channels, first_conv, binary):
    model = dressed(WeightConfig(first_conv=first_conv), in_channels=channels)
    assert model.conv_pep.stages[0].conv.binary is binary
    assert model.conv_pep.stages[1].conv.binary


def test_the_position_encoding_can_be_left_out():
    model = dressed(WeightConfig(include_rpe=False))
    assert not isinstance(model.conv_pep.rpe.conv, SubnetConv2d)
    assert all(isinstance(stage.conv, SubnetConv2d) for stage in model.conv_pep.stages)


def test_kaiming_and_signed_starts_have_the_scaled_deviation():
    for init in ("kaiming", "signed"):
        weight = dressed(WeightConfig(init=init, sparsity=0.5)).conv_pep.rpe.conv.weight
        wanted = (2 / (weight[0].numel() * 0.5)) ** 0.5
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.1)
        assert (len(weight.abs().unique()) == 1) == (init == "signed")
    assert torch.equal(
        dressed(WeightConfig()).conv_pep.rpe.conv.weight, toy().conv_pep.rpe.conv.weight
    )


def test_the_ramp_is_cubic_and_ends_at_the_budget():
    config = WeightConfig(sparsity=0.8, ramp_epochs=4.0)
    model = dressed(config)
    controller = MaskController(model, config, seed=0)
    assert controller.settled_from == 4
    for epoch, wanted in ((0, 0.0), (2, 0.8 * (1 - 0.5**3)), (4, 0.8)):
        controller(Progress(epoch, 0, 10, 8))
        assert get_masks(model).sparsity == pytest.approx(wanted, abs=0.01)


def test_a_ramp_is_not_climbed_a_second_time():
    config = WeightConfig(sparsity=0.8, ramp_epochs=2.0)
    model = dressed(config)
    controller = MaskController(model, config, seed=0)
    controller(Progress(2, 0, 10, 4))
    after = controller.at_full_sparsity()
    after(Progress(0, 0, 10, 4))
    assert get_masks(model).sparsity == pytest.approx(0.8, abs=0.01)
    assert after.settled_from == 0


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_fixed_masks_never_move(method):
    config = WeightConfig(method=method, sparsity=0.6)
    model = dressed(config)
    controller = MaskController(model, config, seed=1)
    before = get_masks(model).sha256
    with torch.no_grad():
        for _, unit in model.conv_pep.units():
            unit.conv.weight.normal_()
    controller(Progress(1, 0, 10, 4))
    assert get_masks(model).sha256 == before
    assert all(
        v == pytest.approx(0.6, abs=0.01) for v in get_masks(model).layer_sparsity().values()
    )


def test_random_masks_follow_their_seed():
    config = WeightConfig(method="random", sparsity=0.6)
    hashes = set()
    for seed in (1, 1, 2):
        model = dressed(config)
        MaskController(model, config, seed)
        hashes.add(get_masks(model).sha256)
    assert len(hashes) == 2


def test_the_mask_freezes_for_the_last_part_of_the_phase():
    config = WeightConfig(sparsity=0.5, freeze_mask_at=0.5)
    model = dressed(config)
    controller = MaskController(model, config, seed=0)
    with torch.no_grad():
        model.conv_pep.rpe.conv.weight.normal_()
    before = get_masks(model).sha256
    controller(Progress(6, 0, 10, 10))
    assert get_masks(model).sha256 == before
    controller(Progress(4, 0, 10, 10))
    assert get_masks(model).sha256 != before


def test_annealing_depends_on_the_progress_alone():
    config = WeightConfig(method="both", anneal=4.0, freeze_mask_at=0.5)
    first, second = dressed(config), dressed(config)
    old, new = (MaskController(model, config, 0) for model in (first, second))
    for epoch in range(9):
        old(Progress(epoch, 0, 10, 10))
    new(Progress(8, 0, 10, 10))  # a process that resumes there
    values = [m.conv_pep.rpe.conv.anneal for m in (first, second)]
    assert values == [2.0, 2.0]


def test_the_probe_classifies_mean_tokens_at_every_step():
    for activation in ("lif", "heaviside"):
        probe = StemProbe(toy(activation=activation))
        assert probe(torch.rand(3, 3, 16, 16)).shape == (3, 2, 10)
    assert not any(name.startswith("blocks") for name, _ in probe.named_parameters())


@pytest.mark.parametrize("method", ["latent", "magnitude", "random"])
def test_a_sparsity_that_leaves_nothing_of_a_layer_is_refused_by_its_name(method):
    config = WeightConfig(method=method, sparsity=0.999)
    model = dressed(config)
    with pytest.raises(ConfigError, match=r"sparsity=0.999 .*of conv_pep.stages.0.conv.weight"):
        MaskController(model, config, seed=0)
    MaskController(model, replace(config, sparsity=0.98, scope="global", floor=0.01), seed=0)
    for name, removed in get_masks(model).layer_sparsity().items():
        assert removed <= 0.99, name  # the control, too, keeps the floor
    with torch.no_grad():  # a layer whose weights are all smaller than the others'
        model.conv_pep.stages[0].conv.weight.mul_(1e-6)
    none = replace(config, sparsity=0.9, scope="global", floor=0.0)
    with pytest.raises(ConfigError, match=r"stages.0.conv.weight, or .*floor above 0"):
        MaskController(model, none, seed=0)
