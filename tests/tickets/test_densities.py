"""Sharing out a sparsity over layers: exact in sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets.levels import DISTRIBUTIONS
from spikeformer_lt.tickets.one_shot import kept_counts, random_mask

shapes = st.lists(st.tuples(*[st.integers(1, 12)] * 2), min_size=1, max_size=6)


@given(shapes, st.floats(0, 0.999), st.sampled_from(DISTRIBUTIONS))
def test_the_sum_is_exact_and_no_layer_overflows(given_shapes, sparsity, distribution):
    named = {str(i): shape for i, shape in enumerate(given_shapes)}
    counts = kept_counts(named, sparsity, distribution)
    total = sum(math.prod(shape) for shape in given_shapes)
    assert sum(counts.values()) == total - round(sparsity * total)
    assert all(0 <= counts[n] <= math.prod(shape) for n, shape in named.items())


def test_erk_densities_follow_the_formula():
    named = {"a": (64, 64, 3, 3), "b": (256, 256, 3, 3), "c": (512, 512)}
    counts = kept_counts(named, 0.95, "erk")
    ratio = [counts[n] / sum(shape) for n, shape in named.items()]
    assert max(ratio) / min(ratio) == pytest.approx(1, rel=1e-2)


def test_erk_fills_a_layer_that_would_overflow():
    counts = kept_counts({"small": (2, 2), "large": (100, 100)}, 0.5, "erk")
    assert counts["small"] == 4


def test_a_random_mask_has_the_counts_and_depends_on_the_seed():
    weights = {"a": torch.zeros(10, 10), "b": torch.zeros(5, 4)}
    masks = [random_mask(weights, 0.6, "erk", seed) for seed in (1, 1, 2)]
    counts = kept_counts({n: w.shape for n, w in weights.items()}, 0.6, "erk")
    assert {name: int(kept.sum()) for name, kept in masks[0].items()} == counts
    assert masks[0] == masks[1] != masks[2]


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ConfigError, match="distribution"):
        kept_counts({"a": (2, 2)}, 0.5, "ERK2")
