"""Intervals cover what they promise, paired tests count the right samples, tables are adjusted."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.statistics import (
    Outcome,
    accuracy_interval,
    compare_predictions,
    contrast,
    holm,
    over_seeds,
    wilson,
)


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
    assert same.p == 1 and same.difference.value == 0
    assert -4 <= same.difference.low <= -2 and 2 <= same.difference.high <= 4  # 3 of n, not 0
    twice = contrast([(outcome(first == 0), outcome(first == 0))] * 2)
    assert twice.p == 1 and -4 < twice.difference.low < -2


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


def test_what_no_test_can_compare_is_refused() -> None:
    """Values that are not finite, and accuracies of unequal test sets."""
    nan = Outcome(float("nan"), 100)
    for first, second, words in (
        (Outcome(90, 100_000), Outcome(80, 100), r"test sets of \[100, 100000\] samples"),
        (nan, Outcome(80, 100), r"\[nan, 80\] are not finite numbers"),
    ):
        with pytest.raises(DataError, match=words):
            contrast([(first, second)])
    with pytest.raises(DataError, match="not finite"):
        holm({"a": float("nan"), "b": 0.01})
    with pytest.raises(DataError, match="not finite"):
        accuracy_interval([float("inf")], 10)
    with pytest.raises(DataError, match=r"confidence=1.5 is not allowed: between 0 and 1"):
        wilson(3, 10, confidence=1.5)
    with pytest.raises(DataError, match="draws=0 is not allowed"):
        compare_predictions([0, 1], [0, 0], [0, 1], draws=0)


def outcome(right: np.ndarray, saved: bool = True) -> Outcome:
    labels = np.zeros(len(right), int)
    answers = (np.where(right, 0, 1), labels) if saved else (None, None)
    return Outcome(100 * float(right.mean()), len(right), *answers)


def test_one_seed_is_mcnemars_test_where_predictions_were_saved() -> None:
    draw = np.random.default_rng(3)
    first, second = (draw.random(500) < share for share in (0.9, 0.8))
    found = contrast([(outcome(first), outcome(second))])
    labels = np.zeros(500, int)
    alone = compare_predictions(np.where(first, 0, 1), np.where(second, 0, 1), labels)
    assert (found.p, found.difference, found.test) == (alone.p, alone.difference, "McNemar")
    assert found.verdict() == "higher" and found.verdict(0.2) == "not told apart"
    unsaved = contrast([(outcome(first, saved=False), outcome(second))])
    assert unsaved.test == "two proportions" and unsaved.p < 0.001
    other = replace(outcome(second), labels=labels + 1)
    with pytest.raises(DataError, match="different test samples"):
        contrast([(outcome(first), other)])
    with pytest.raises(DataError, match="no seed that both"):
        contrast([])


@pytest.mark.fault(85)
def test_the_interval_of_several_seeds_covers_the_difference_of_the_methods() -> None:
    """Seeds move both accuracies; all of them are read on the same test samples."""
    draw, hits, narrow, trials = np.random.default_rng(4), 0, 0, 300
    for _ in range(trials):
        easy = draw.random(400)
        pairs = [
            tuple(outcome(easy < share + draw.normal(0, 0.02)) for share in (0.85, 0.80))
            for _ in range(3)
        ]
        found = contrast(pairs).difference
        hits += found.low <= 5 <= found.high
        lost = [a.accuracy - b.accuracy for a, b in pairs]
        half = 2 * float(np.std(lost, ddof=1)) / math.sqrt(3)  # two standard errors of three seeds
        narrow += abs(float(np.mean(lost)) - 5) <= half
    assert hits / trials > 0.93 > narrow / trials


def test_several_seeds_are_never_surer_than_one_run_of_their_mean() -> None:
    assert accuracy_interval([95.0], 400) == wilson(380, 400)
    same = accuracy_interval([95.0, 95.0, 95.0], 400)
    assert (same.low, same.high) == (wilson(380, 400).low, wilson(380, 400).high)
    assert accuracy_interval([90.0, 94.0, 98.0], 400).low == over_seeds([90.0, 94.0, 98.0]).low
    assert accuracy_interval([95.0, 97.0], None).high == 100


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_the_p_value_and_bonferroni(ps: list[float]) -> None:
    given_p = {str(i): p for i, p in enumerate(ps)}
    found = holm(given_p)
    for name, p in given_p.items():
        assert p <= found[name] <= min(1.0, p * len(ps)) + 1e-12
    ordered = sorted(given_p, key=lambda name: given_p[name])
    assert [found[n] for n in ordered] == sorted(found.values())


TABLES = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("path", sorted(TABLES.rglob("*.csv")), ids=lambda path: path.stem)
def test_every_published_accuracy_of_ours_has_its_interval(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    of_runs = "seed" in (rows[0] if rows else ())
    for name in {"test accuracy %", "ours %"} & set(() if of_runs or not rows else rows[0]):
        known = [row for row in rows if row[name] != "not run"]
        assert known
        for row in known:
            low, high = map(float, re.findall(r"-?[\d.]+", row["95 % interval"]))
            assert low <= float(row[name].split()[0]) <= high
