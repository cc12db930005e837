"""Presets name published optimizers."""

from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import (
    BipropConfig,
    EarlyBirdConfig,
    EdgePopupConfig,
    ImpConfig,
    JointConfig,
    Search,
    preset_optim,
    with_preset,
)
from spikeformer_lt.tickets.presets import PRESETS, lr_entry


def test_only_a_preset_overrides_the_run():
    assert preset_optim("default") is None
    assert {preset_optim(name).opt for name in PRESETS} == {"momentum"}  # plain, not Nesterov


def test_every_preset_of_a_search_has_an_optimizer():
    asked = {ImpConfig: ["eccv22"], EarlyBirdConfig: ["eccv22"]}
    asked |= {kind: list(kind.PRESETS) for kind in (EdgePopupConfig, BipropConfig)}
    for kind, names in asked.items():
        for name in names:
            assert preset_optim(name) is not None
            assert Search.resolved(kind(preset=name)).epochs in (100, 300)


def test_a_preset_by_name_goes_into_the_configuration_of_its_search():
    config = ImpConfig(sparsity=0.9)
    assert with_preset(config, "default") is config
    assert with_preset(config, "eccv22") == ImpConfig("eccv22", sparsity=0.9)
    with pytest.raises(ConfigError, match="preset='iclr21'"):
        with_preset(config, "iclr21")


def test_a_learning_rate_that_is_resumed_is_so_in_the_training_from_the_ticket_too():
    for config, entry in (
        (ImpConfig(epochs=12, rewind="4ep", lr="resume"), "4ep"),
        (ImpConfig(epochs=12, rewind="4ep"), "0it"),
        (JointConfig(imp=ImpConfig(epochs=12, rewind="3ep", lr="resume")), "3ep"),
        (BipropConfig(), "0it"),
    ):
        assert str(lr_entry(config)) == entry
        assert str(lr_entry(EarlyBirdConfig(), config)) == entry
