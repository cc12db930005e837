"""Intervals and paired tests for accuracies: what a table may conclude from saved predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikeformer_lt.errors import DataError, shown


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its confidence interval, all in the unit of the value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.ends}"

    @property
    def ends(self) -> str:
        """The interval alone."""
        return f"[{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Paired:
    """Two networks on the same test samples; differences in percentage points."""

    difference: Interval  # accuracy of the first minus the second, paired bootstrap
    p: float  # exact two-sided McNemar test on the samples that one of the two gets right
    only_first: int  # samples that the first alone gets right
    only_second: int  # samples that the second alone gets right


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"confidence={confidence} is not allowed: between 0 and 1")


def _check_finite(values: Sequence[float]) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{shown(list(values))} are not finite numbers")


def wilson(correct: int, count: int, confidence: float = 0.95) -> Interval:
    """Accuracy in percent of `correct` of `count` samples, with Wilson's score interval.

    Raises:
        DataError: `correct` outside [0, count], or an empty set.

    Source: Wilson 1927, JASA 22(158).
    """
    from scipy.stats import binomtest

    if not 0 <= correct <= count or count < 1:
        raise DataError(
            f"correct={correct} of count={count} is not allowed: 0 to count, count >= 1"
        )
    _check_confidence(confidence)
    found = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    return Interval(100 * correct / count, 100 * found.low, 100 * found.high)


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of one value a seed, with its t interval; its ends are infinite for a single seed.

    Raises:
        DataError: no value, or one that is not finite.
    """
    from scipy.stats import t

    if not values:
        raise DataError("no value to average: give one for each seed")
    _check_finite(values)
    mean, half = float(np.mean(values)), np.inf
    if len(values) > 1:
        error = float(np.std(values, ddof=1)) / len(values) ** 0.5
        half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def accuracy_interval(values: Sequence[float], count: int | None) -> Interval:
    """Test accuracy, %: Wilson's interval of one run on `count` samples, else t over seeds.

    Seeds share their test samples, so that several are never surer than one run of their mean.
    """
    found = over_seeds(values)
    if not count:
        return Interval(found.value, max(found.low, 0.0), min(found.high, 100.0))
    one = wilson(round(found.value * count / 100), count)
    if len(values) == 1:
        return one
    low, high = max(found.low, 0.0), min(found.high, 100.0)
    return Interval(found.value, min(low, one.low), max(high, one.high))


def compare_predictions(
    first: Any, second: Any, labels: Any, confidence: float = 0.95, draws: int = 10_000
) -> Paired:
    """Compare two networks on the same test samples, sample by sample.

    Args:
        first, second: predicted classes, ``[n]`` integers.
        labels: true classes, ``[n]``.
        confidence: of the interval of the difference.
        draws: bootstrap samples, drawn with a fixed seed.

    Raises:
        DataError: lengths differ, or no samples.

    Source: McNemar 1947, Psychometrika 12(2), exact form; Efron 1979 for the bootstrap, where no
    sample tells the two apart with one more of each kind (Bonett & Price 2012, JEBS 37(4)).
    """
    from scipy.stats import binomtest

    _check_confidence(confidence)
    if draws < 1:
        raise DataError(f"draws={draws} is not allowed: 1 or more")
    rows = [np.asarray(each) for each in (first, second, labels)]
    if len({row.shape for row in rows}) != 1 or rows[0].ndim != 1 or not len(rows[0]):
        shapes = ", ".join(str(list(row.shape)) for row in rows)
        raise DataError(f"predictions and labels {shapes} are not of the same samples")
    right = [rows[0] == rows[2], rows[1] == rows[2]]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    count, apart = len(rows[2]), only_first + only_second
    # Smaller ones are 0 in floating point, which no test says.
    p = max(float(binomtest(only_first, apart).pvalue), 1e-300) if apart else 1.0
    generator = np.random.default_rng(0)
    cells = [only_first, only_second] if apart else [1, 1]  # never certain that none differs
    cells.append(max(count - sum(cells), 0))
    drawn = generator.multinomial(count, np.array(cells) / sum(cells), draws)
    tail = (1 - confidence) / 2
    low, high = np.quantile(100 * (drawn[:, 0] - drawn[:, 1]) / count, [tail, 1 - tail])
    difference = 100 * (only_first - only_second) / count
    return Paired(Interval(difference, float(low), float(high)), p, only_first, only_second)


@dataclass(frozen=True)
class Outcome:
    """Test result of one run: accuracy in percent of `count` samples, and its answers if saved."""

    accuracy: float
    count: int
    predicted: Any = None  # classes ``[count]``, as `labels`
    labels: Any = None


@dataclass(frozen=True)
class Contrast:
    """Difference of two variants over the seeds that both have, in percentage points."""

    difference: Interval
    p: float  # two-sided
    seeds: int
    test: str  # how the interval and p were found

    def verdict(self, p: float | None = None, level: float = 0.05) -> str:
        """higher, lower, or not told apart; `p` is the adjusted one of a table."""
        if not (self.p if p is None else p) < level:
            return "not told apart"
        return "higher" if self.difference.value > 0 else "lower"


def contrast(pairs: Sequence[tuple[Outcome, Outcome]], confidence: float = 0.95) -> Contrast:
    """Compare two variants, one pair of runs a seed, all on the same test samples.

    One seed with saved predictions is a McNemar test. Otherwise the variance of the mean difference
    is that over seeds plus that of the test samples, which further seeds do not make smaller, with
    degrees of freedom after Satterthwaite.

    Raises:
        DataError: no pair, values that are not finite, or different test samples.

    Source: Satterthwaite 1946, Biometrics 2(6); Agresti & Caffo 2000, Am. Stat. 54(4).
    """
    from scipy.stats import t

    if not pairs:
        raise DataError("no seed that both variants have: run them with the same seeds")
    if len(counts := {outcome.count for pair in pairs for outcome in pair}) > 1:
        raise DataError(f"test sets of {sorted(counts)} samples are not comparable")
    _check_finite([outcome.accuracy for pair in pairs for outcome in pair])
    n = len(pairs)
    if n == 1 and (found := _paired(*pairs[0], confidence=confidence)):
        return Contrast(found.difference, found.p, 1, "McNemar")
    lost = np.array([first.accuracy - second.accuracy for first, second in pairs])
    mean = float(lost.mean())
    samples = float(np.mean([_sample_variance(*pair) for pair in pairs]))
    seeds = float(np.var(lost, ddof=1)) / n if n > 1 else 0.0
    parts = seeds**2 / max(n - 1, 1) + samples**2 / max(pairs[0][0].count - 1, 1)
    degrees, error = (seeds + samples) ** 2 / parts if parts else 1.0, (seeds + samples) ** 0.5
    half = float(t.ppf((1 + confidence) / 2, degrees)) * error
    p = float(2 * t.sf(abs(mean) / error, degrees)) if error else float(mean == 0)
    test = f"t over {n} seeds" if n > 1 else "two proportions"
    return Contrast(Interval(mean, mean - half, mean + half), p, n, test)


def _paired(first: Outcome, second: Outcome, **how: Any) -> Paired | None:
    """Compare the saved answers of two runs; None if one of them saved none."""
    if first.predicted is None or second.predicted is None:
        return None
    if not np.array_equal(first.labels, second.labels):
        raise DataError("the saved predictions are of different test samples: evaluate both again")
    return compare_predictions(first.predicted, second.predicted, first.labels, **how)


def _sample_variance(first: Outcome, second: Outcome) -> float:
    """Variance of the difference of two accuracies, in points, from the draw of test samples."""
    found, n = _paired(first, second, draws=1), first.count
    if found is None:
        shares = [(x.accuracy / 100 * x.count + 1) / (x.count + 2) for x in (first, second)]
        return sum(1e4 * share * (1 - share) / n for share in shares)
    apart = found.only_first + found.only_second or 2  # as in compare_predictions
    lost = found.only_first - found.only_second
    return 1e4 * (apart - lost**2 / n) / n**2


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of a table's comparisons, adjusted for their number.

    Source: Holm 1979, Scand. J. Statist. 6(2).
    """
    _check_finite(list(p_values.values()))
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
