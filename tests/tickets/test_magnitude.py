"""One-shot magnitude: the smallest go, from the weights that were asked for."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import Magnitude, MagnitudeConfig


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_smallest_initial_weights_go(make, scope):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    mask = Magnitude(MagnitudeConfig(0.6, scope)).find(model, None).mask
    none = torch.tensor([float("inf")])  # a global ranking may empty a layer, or leave it whole
    low = {n: float(torch.cat([before[n][kept].abs(), none]).min()) for n, kept in mask.items()}
    high = {n: float(torch.cat([before[n][~kept].abs(), -none]).max()) for n, kept in mask.items()}
    if scope == "global":
        assert min(low.values()) >= max(high.values())
    assert all(low[n] >= high[n] for n in mask)


def test_trained_weights_are_kept_or_undone(make, bench, tmp_path):
    found = {}
    for start in ("init", "trained"):
        fit = bench.trainer(tmp_path / start).fit
        found[start] = Magnitude(MagnitudeConfig(epochs=1, start=start)).find(make(), fit)
    assert found["init"].mask == found["trained"].mask  # ranked by the same training
    name = next(iter(found["init"].mask))
    assert not torch.equal(found["init"].tensors[name], found["trained"].tensors[name])


def test_a_floor_leaves_something_of_each_layer(make):
    mask = Magnitude(MagnitudeConfig(0.8, floor=0.15)).find(make(), None).mask
    assert max(mask.layer_sparsity().values()) <= 0.85 + 1e-9


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="start"):
        MagnitudeConfig(start="x")
