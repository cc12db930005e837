"""Seeds from names, and drawing without disturbing the global streams."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.rng import isolated_rng, seed_for

PARTS = st.lists(st.integers() | st.text(max_size=20), min_size=1, max_size=4)


def test_seeds_are_the_same_on_every_machine() -> None:
    # The first 63 bits of the sha256 of '[0]' and of '[7, "augment", 3]', found with sha256sum.
    assert seed_for(0) == 0xD0BCA111F8628137 >> 1
    assert seed_for(7, "augment", 3) == 0xCA46B133C38E09BD >> 1


@given(PARTS, PARTS)
def test_other_parts_give_another_seed(left: list[int | str], right: list[int | str]) -> None:
    assert (seed_for(*left) == seed_for(*right)) == (left == right)


@given(PARTS)
def test_a_seed_has_63_bits(parts: list[int | str]) -> None:
    assert 0 <= seed_for(*parts) < 2**63


def test_numbers_and_their_texts_are_different_parts() -> None:
    assert len({seed_for(1), seed_for("1"), seed_for(1, 1), seed_for(11)}) == 4
    assert seed_for(np.int64(5)) == seed_for(5)


@pytest.mark.parametrize("part", [1.0, True, None, b"x", (1,)])
def test_a_part_of_another_type_is_refused(part: object) -> None:
    with pytest.raises(ConfigError, match="integers and strings"):
        seed_for(part)  # type: ignore[arg-type]


def test_no_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        seed_for()


def test_seeds_do_not_depend_on_the_hash_seed_of_python() -> None:
    code = "from spikeformer_lt.rng import seed_for; print(seed_for('a', 1))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert found == {f"{seed_for('a', 1)}\n"}


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_outer_streams_go_on_as_if_nothing_had_been_drawn() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    found = [draw()]
    with isolated_rng(5):
        draw(), random.gauss(0, 1), np.random.normal(), torch.randn(3)  # noqa: NPY002
    with pytest.raises(ZeroDivisionError), isolated_rng(6):
        draw()[0] / 0
    found.append(draw())
    assert found == expected


def test_the_inner_streams_depend_on_the_seed_alone() -> None:
    drawn = []
    for seed in (3, 3, 4, 2**62 + 3):
        draw()
        with isolated_rng(seed):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert len(set(drawn[1:])) == 3
