"""MultiSp's options: presets override what they must, ranges are refused by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from spikeformer_lt import create_model
from spikeformer_lt.config import from_dict, to_dict
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import (
    ActivationConfig,
    MultiSp,
    MultiSpConfig,
    PatchConfig,
    WeightConfig,
    apply_surgery,
    set_activation,
)


def test_the_default_preset_changes_nothing():
    config = MultiSpConfig(schedule="reverse", epochs=3)
    assert MultiSp(config).config is config


def test_the_literal_preset_keeps_budgets_and_overrides_the_method():
    given = MultiSpConfig(
        preset="literal", epochs=7, stem_epochs=4, weights=WeightConfig(sparsity=0.7, gain="filter")
    )
    config = MultiSp(given).config
    assert (config.epochs, config.stem_epochs, config.weights.sparsity) == (7, 4, 0.7)
    assert (config.weights.gain, config.weights.init) == ("layer", "kaiming")
    assert config.weights.freeze_mask_at == 1.0


def test_a_config_survives_the_way_through_json():
    config = MultiSpConfig(epochs=3, patches=PatchConfig(score="tp"))
    assert from_dict(MultiSpConfig, to_dict(config)) == config


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), 90])
@pytest.mark.fault(49)
def test_a_sparsity_is_a_fraction_below_one(value):
    with pytest.raises(ConfigError, match="sparsity"):
        PatchConfig(sparsity=value)
    with pytest.raises(ConfigError, match="sparsity"):
        WeightConfig(sparsity=value)


def test_a_ramp_that_the_frozen_mask_would_cut_short_is_refused():
    ramp = WeightConfig(ramp_epochs=9.0)
    assert MultiSpConfig(epochs=12, weights=ramp).weights.ramp_epochs == 9
    MultiSpConfig(epochs=1, weights=replace(ramp, method="magnitude"))  # does not ramp
    MultiSpConfig(epochs=1, weights=ramp, preset="literal")  # nor does Algorithm 1
    with pytest.raises(ConfigError, match=r"ramp_epochs=9.0 .* at most 8"):
        MultiSpConfig(epochs=11, weights=ramp)
    with pytest.raises(ConfigError, match=r"ramp_epochs=9.0 .* at most 7"):
        MultiSpConfig(epochs=50, stem_epochs=10, schedule="sequential", weights=ramp)


def test_the_slope_of_an_activation_is_an_option_of_stateless_ones():
    model = create_model("spikformer_toy", image_size=16)
    for kind, ste, found in [
        ("heaviside", "auto", "sigmoid"), ("heaviside", "bireal", "bireal"),
        ("sign", "auto", "hardtanh"), ("sign", "bireal", "bireal"),
    ]:  # fmt: skip
        set_activation(model, ActivationConfig(kind, ste=ste))
        assert {part.unit.neuron.surrogate for part in model.stem.units()} == {found}
    with pytest.raises(ConfigError, match="activation.ste='bireal' is not allowed: auto for kind"):
        ActivationConfig("lif", ste="bireal")


@pytest.mark.parametrize(
    ("name", "levels", "said"),
    [
        ("spikingformer_toy", {"activation": ActivationConfig(residual="iand")},
         r"activation.residual='iand' is not allowed: add for the SpikingTokenizer of a Spikingf"),
        ("maxformer_toy", {"patches": PatchConfig(0.5, "tp", "stop")},
         "block 1 reads the neighbours of every token, .* give it a share of 0"),
        ("spikformer_toy", {"patches": PatchConfig(0.5, "gumbel", "stages")},
         r"patches.stages=\(1, 2, 3\) is not allowed: numbers of the 2 blocks of this network"),
        ("sdt_toy", {"patches": PatchConfig(0.5, "gumbel", "stages")},
         "mask the keys of a self attention"),
        ("sdt3_toy", {}, "none can leave: use patches.sparsity 0, or patches.mode stop"),
        ("sdt2_toy", {"patches": PatchConfig(0.5, "tp", "stop")}, "use patches.sparsity 0$"),
    ],
)  # fmt: skip
def test_levels_that_a_network_cannot_have_are_refused_before_it_is_trained(name, levels, said):
    """What comes on after the dense training, too; and nothing is changed."""
    model = create_model(name, image_size=32)
    search = MultiSp(MultiSpConfig(dense_epochs=9, **levels))
    with pytest.raises(ConfigError, match=said):
        search.find(model, None)
    assert not any(getattr(block, "stop", None) for block in model.encoder_blocks())


def test_a_ticket_of_an_earlier_version_keeps_its_order_of_equal_scores():
    old, new = {"sparsity": 0.5}, {"sparsity": 0.5, "ties": "hash"}
    for patches, ties in ((old, "index"), (new, "hash")):
        model = create_model("spikformer_toy", image_size=16)
        provenance = {"search": "multisp", "config": {"activation": {}, "patches": patches}}
        apply_surgery(model, SimpleNamespace(provenance=provenance))
        assert model.patch.ties == ties
