"""Points in training."""

from __future__ import annotations

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
