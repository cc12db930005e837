"""Presets name published optimizers."""

from __future__ import annotations

from spikeformer_lt.tickets.biprop import BipropConfig
from spikeformer_lt.tickets.early_bird import EarlyBirdConfig
from spikeformer_lt.tickets.edge_popup import EdgePopupConfig
from spikeformer_lt.tickets.imp import ImpConfig
from spikeformer_lt.tickets.presets import PRESETS, preset_optim


def test_only_a_preset_overrides_the_run():
    assert preset_optim("default") is None
    assert {preset_optim(name).opt for name in PRESETS} == {"momentum"}  # plain, not Nesterov


def test_every_preset_of_a_search_has_an_optimizer():
    asked = {ImpConfig: ["eccv22"], EarlyBirdConfig: ["eccv22"]}
    asked |= {kind: list(kind.PRESETS) for kind in (EdgePopupConfig, BipropConfig)}
    for kind, names in asked.items():
        for name in names:
            assert preset_optim(name) is not None
            assert kind(preset=name).resolved().epochs in (100, 300)
