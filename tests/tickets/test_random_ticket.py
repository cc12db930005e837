"""Random tickets: exact, seeded, blind."""

from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import RandomConfig, RandomTicket


def test_the_seed_alone_chooses(make):
    masks = [RandomTicket(RandomConfig(0.5), seed).find(make(), None).mask for seed in (1, 1, 2)]
    assert masks[0] == masks[1] != masks[2]


def test_uniform_layers_are_alike_and_erk_layers_are_not(make):
    uniform = RandomTicket(RandomConfig(0.8)).find(make(), None).mask
    assert all(abs(s - 0.8) < 1 / uniform[n].numel() for n, s in uniform.layer_sparsity().items())
    erk = RandomTicket(RandomConfig(0.8, "erk")).find(make(), None).mask
    assert erk.removed == uniform.removed
    densities = {n: 1 - s for n, s in erk.layer_sparsity().items()}
    largest, smallest = (f(erk, key=lambda n: erk[n].numel()) for f in (max, min))
    assert densities[smallest] > densities[largest]


@pytest.mark.parametrize(("field", "value"), [("sparsity", 1.0), ("distribution", "x")])
def test_bad_options_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        RandomConfig(**{field: value})
