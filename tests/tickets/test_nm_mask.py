"""N:M: exactly N of each M, the largest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import Nm, NmConfig
from spikeformer_lt.tickets.one_shot import nm_mask


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([(), (3, 3)]))
def test_each_group_keeps_its_largest(n, groups, kernel):
    scores = torch.rand(5, 4 * groups, *kernel)
    kept = nm_mask({"w": scores}, n, 4)["w"].movedim(1, -1).reshape(-1, 4)
    values = scores.movedim(1, -1).reshape(-1, 4)
    assert bool((kept.sum(1) == n).all())
    low = torch.where(kept, values, torch.inf).min(1).values
    assert bool((low >= torch.where(kept, -torch.inf, values).max(1).values).all())


def test_of_equals_the_first_stay():
    assert nm_mask({"w": torch.ones(1, 4)}, 2, 4)["w"].tolist() == [[True, True, False, False]]


def test_layers_that_do_not_divide_stay_dense(make):
    mask = Nm().find(make(), None).mask
    assert all(kept.shape[1] % 4 == 0 for kept in mask.values())
    assert mask.sparsity == 0.5
    with pytest.raises(ConfigError, match="divides the inputs of no layer"):
        Nm(NmConfig(m=97)).find(make(), None)


@pytest.mark.parametrize(("field", "value"), [("n", 4), ("n", 0), ("m", 1), ("start", "x")])
def test_bad_options_are_refused(field, value):
    with pytest.raises(ConfigError):
        NmConfig(**{field: value})
