"""Drops of published rows and of ours: references, noise, directions."""

from __future__ import annotations

import math

import pytest
from paper_rows import ROWS, line
from papers.drops import NOISE, OPPOSITE, SAME, Drop, against_one, drop, drops


def test_a_drop_is_against_dense_and_since_the_first_level() -> None:
    found = drops(ROWS)
    assert found[0] == (Drop(), Drop())
    assert (found[1][0].published, found[1][0].ours) == (-0.5, 0.0)
    assert found[2][0].published == 3.0 and found[2][0].ours == pytest.approx(14.5)
    assert found[2][1].published == 3.5 and found[2][1].ours == pytest.approx(14.5)
    assert (found[3][0].published, found[3][0].ours) == (1.0, None)
    assert found[4][0].ours == 35.0  # seed 0 alone, which both have
    assert (found[4][1].published, found[4][1].ours) == (12.0, None)  # its first level was not run


@pytest.mark.fault(85)
def test_noise_is_of_the_test_images_once_and_of_the_seeds() -> None:
    dense, row = (90.0, 90.01, 90.02), (88.9, 88.91, 88.92)
    noise = []
    for seeds in (1, 2, 3):
        found = drop(
            line("IMP", 0.5, 89.0, *row[:seeds]), line("dense", None, 90.0, *dense[:seeds])
        )
        assert found.ours == pytest.approx(1.1) and found.verdict == NOISE
        noise.append(found.noise)
    error = math.sqrt((361 / 402 * 41 / 402 + 356.6 / 402 * 45.4 / 402) / 400)
    assert noise[0] == pytest.approx(100 * 1.966 * error, rel=1e-3)
    assert noise[1] == pytest.approx(noise[0], rel=1e-2)  # the same images, read again
    assert noise[2] == pytest.approx(noise[0], rel=1e-2)
    far = drop(line("IMP", 0.5, 90.0, 80.0, 40.0), line("dense", None, 93.0, 90.0, 90.0))
    assert far.ours == 30.0 and far.noise > 200  # t of hardly more than one degree of freedom


def test_directions_are_told_after_correction_for_the_table() -> None:
    many = [line("dense", None, 93.0, 95.0, 95.2, 95.1)]
    many += [line("IMP", at / 20, 92.0, 90.4, 90.6, 90.5) for at in range(1, 15)]
    alone, whole = drops(many[:2])[1][0], drops(many)[1][0]
    assert alone.verdict == SAME and whole.verdict == NOISE
    assert whole.p == pytest.approx(27 * alone.p)  # 14 against dense, 13 since the first level


@pytest.mark.parametrize(
    ("published", "ours", "noise", "word"),
    [
        (1.0, 5.0, 2.0, SAME),
        (-1.0, -5.0, 2.0, SAME),
        (-1.0, 5.0, 2.0, OPPOSITE),
        (1.0, 1.5, 2.0, NOISE),
        (1.0, None, 0.0, ""),
        (None, 5.0, 2.0, ""),
    ],
)
def test_direction(published, ours, noise, word) -> None:
    assert Drop(published, ours, noise).verdict == word


def test_a_panel_without_a_published_dense_is_compared_with_its_first_level() -> None:
    rows = [
        line("dense", None, None, 95.0),
        line("IMP", 0.5, 92.0, 94.0),
        line("IMP", 0.9, 90.0, 60.0),
        line("random", 0.5, None, 80.0),
        line("random", 0.9, None, 50.0),
    ]
    found = against_one(rows)
    assert {words for _, words in found[1:]} == {"since its first level"}
    lost = [(d.published, d.ours) for d, _ in found[1:]]
    assert lost == [(0.0, 0.0), (2.0, 34.0), (None, 0.0), (None, 30.0)]
    known = against_one([line("dense", None, 93.0, 95.0), *rows[1:]])
    assert {words for _, words in known[1:]} == {"against dense"}
    assert [d.ours for d, _ in known[1:]] == [1.0, 35.0, 15.0, 45.0]


def test_a_line_says_what_was_run_where_or_that_nothing_was() -> None:
    assert (ROWS[3].shown, ROWS[3].place, ROWS[3].accuracy) == ("not run", "not run", None)
    assert (ROWS[0].shown, ROWS[0].place) == ("96.00 ± 1.41", "digits; toy T 5; 8 epochs")
