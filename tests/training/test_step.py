"""Points in training."""

from __future__ import annotations

from operator import ge, gt, le, lt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.options import Step

COUNTS = st.integers(0, 10**9)
STEPS = st.builds(Step, COUNTS, COUNTS)


@given(STEPS)
def test_text_and_step_are_inverse(step: Step) -> None:
    assert Step.parse(str(step)) == step
    assert hash(Step.parse(str(step))) == hash(step)


@pytest.mark.parametrize(
    ("text", "epochs", "extra", "written"),
    [
        ("2ep", 2, 0, "2ep"),
        ("500it", 0, 500, "500it"),
        ("2ep50it", 2, 50, "2ep50it"),
        ("0ep", 0, 0, "0it"),
        ("02ep0it", 2, 0, "2ep"),
    ],
)
def test_the_three_forms_are_read(text: str, epochs: int, extra: int, written: str) -> None:
    step = Step.parse(text)
    assert step == Step(epochs, extra) == Step(epochs=epochs, iterations=extra)
    assert str(step) == written


@pytest.mark.parametrize(
    "text",
    ["", "2", "ep", "-1ep", "2 ep", "50it2ep", "2.5ep", "2ep\n", "\uff12ep", "1" * 13 + "ep"],
)
def test_any_other_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="2ep50it"):
        Step.parse(text)


@pytest.mark.parametrize("numbers", [(-1, 0), (0, -1), (True, 0), (1.5, 0), ("1", 0)])
def test_numbers_that_count_nothing_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="an integer >= 0"):
        Step(*numbers)


def test_iterations_count_from_the_start_of_training() -> None:
    assert Step(2, 50).iterations(40) == 130
    with pytest.raises(ConfigError, match="1 or more"):
        Step(2).iterations(0)


SMALL = st.builds(Step, st.integers(0, 3), st.integers(0, 6))


@given(SMALL, SMALL, st.integers(1, 10))
def test_order_is_that_of_the_iterations_wherever_it_is_certain(a: Step, b: Step, n: int) -> None:
    i, j = a.iterations(n), b.iterations(n)
    for compare, expected in ((lt, i < j), (le, i <= j), (gt, i > j), (ge, i >= j)):
        try:
            answer = compare(a, b)
        except ConfigError:
            # Uncertain means that another length of the epoch turns the answer around.
            signs = {(x > 0) - (x < 0) for x in (a.iterations(m) - b.iterations(m) for m in (1, 9))}
            assert len(signs) == 2
        else:
            assert answer is expected


def test_steps_of_one_unit_can_be_sorted() -> None:
    assert [str(step) for step in sorted([Step(2, 1), Step(), Step(2), Step(1)])] == [
        *("0it", "1ep", "2ep", "2ep1it"),
    ]
    with pytest.raises(ConfigError, match=r"'4it' and '2ep1it' .*steps_per_epoch"):
        sorted([Step(0, 4), Step(2, 1)])


def test_a_step_compares_with_a_step_only() -> None:
    with pytest.raises(TypeError, match="with a Step only"):
        _ = Step(1) <= 3
    with pytest.raises(TypeError, match="not supported"):
        _ = Step(1) < 3
