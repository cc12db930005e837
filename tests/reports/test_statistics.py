"""Intervals cover what they promise, paired tests count the right samples, tables are adjusted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.statistics import compare_predictions, holm, over_seeds, wilson


def test_wilson_is_the_published_formula() -> None:
    found, z, n, k = wilson(81, 263), 1.959963984540054, 263, 81
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    assert found.value == pytest.approx(100 * k / n)
    assert (found.low, found.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)))
    assert wilson(0, 10).low == 0 and wilson(10, 10).high == pytest.approx(100)


@pytest.mark.parametrize(("correct", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_counts_that_cannot_be_are_refused(correct: int, count: int) -> None:
    with pytest.raises(DataError, match=f"correct={correct} of count={count}"):
        wilson(correct, count)


def test_three_seeds_have_the_t_interval() -> None:
    found = over_seeds([90.0, 92.0, 94.0])
    assert found.value == 92
    assert found.high - 92 == pytest.approx(4.302652729911275 * 2 / math.sqrt(3))
    assert over_seeds([92.0]).high == math.inf  # one seed says nothing of the spread
    with pytest.raises(DataError, match="no value"):
        over_seeds([])


def test_the_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(50, 3, (2000, 3)).tolist()
    hits = sum(found.low <= 50 <= found.high for found in map(over_seeds, draws))
    assert 0.935 < hits / 2000 < 0.965


def test_only_samples_that_tell_the_two_apart_count() -> None:
    labels = np.zeros(100, int)
    first, second = labels.copy(), labels.copy()
    first[:2], second[10:20] = 1, 1
    found = compare_predictions(first, second, labels)
    assert (found.only_first, found.only_second) == (10, 2)
    tail = sum(math.comb(12, k) for k in range(3)) / 2**12
    assert found.p == pytest.approx(2 * tail)
    assert found.difference.value == 8 and 0 < found.difference.low < 8 < found.difference.high
    same = compare_predictions(first, first, labels)
    assert same.p == 1 and same.difference.low == same.difference.high == 0


def test_the_bootstrap_covers_the_true_difference() -> None:
    draw, hits = np.random.default_rng(2), 0
    labels = np.zeros(400, int)
    for _ in range(200):
        kind = draw.choice(3, 400, p=[0.10, 0.05, 0.85])  # first alone right, second alone, both
        found = compare_predictions(kind == 1, kind == 0, labels, draws=2000).difference
        hits += found.low <= 5 <= found.high
    assert hits / 200 > 0.90


def test_predictions_of_other_samples_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[3\], \[2\], \[3\] are not of the same samples"):
        compare_predictions([0, 1, 2], [0, 1], [0, 1, 2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_the_p_value_and_bonferroni(ps: list[float]) -> None:
    given_p = {str(i): p for i, p in enumerate(ps)}
    found = holm(given_p)
    for name, p in given_p.items():
        assert p <= found[name] <= min(1.0, p * len(ps)) + 1e-12
    ordered = sorted(given_p, key=lambda name: given_p[name])
    assert [found[n] for n in ordered] == sorted(found.values())
