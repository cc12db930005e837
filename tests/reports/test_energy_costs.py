"""The constants, and how they are varied."""

from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.reports.energy import COSTS, HOROWITZ, SOP_77FJ, Costs, sensitivity_costs


def test_the_two_sets_are_the_ones_in_use():
    assert (HOROWITZ.mac_pj, HOROWITZ.ac_pj) == (4.6, 0.9)
    assert SOP_77FJ.ac_pj == 0.077
    assert list(COSTS) == ["45nm", "77fJ"]


def test_77_fj_gives_spikformers_published_power():
    published = {6.82: 0.525, 8.69: 0.669, 11.09: 0.854, 13.67: 1.053, 22.09: 1.701}  # G -> mJ
    for gsops, mj in published.items():
        assert SOP_77FJ.energy_pj(0, gsops * 1e9) / 1e9 == pytest.approx(mj, abs=1e-3)


def test_sensitivity_halves_and_doubles_each_figure_once():
    found = sensitivity_costs()
    pairs = [(c.mac_pj, c.ac_pj) for c in found]
    assert len(set(pairs)) == len(pairs) == 11
    assert {(2.3, 0.9), (9.2, 0.9), (4.6, 0.45), (4.6, 1.8)} <= set(pairs)


def test_a_negative_or_endless_cost_is_refused():
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="mac_pj"):
            Costs("x", bad, 1.0, "")
