from __future__ import annotations

import logging

import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import make_splits, shared_images


@pytest.fixture
def pool(random_images):
    return random_images(200, name="made up train")


@pytest.fixture
def test_set(random_images):
    return random_images(40, seed=1, name="made up test")


def indices(part):
    return set(part.indices.tolist())


def test_parts_have_the_counts_and_facts_of_their_source(pool, test_set):
    splits = make_splits("made", pool, test_set, augment="digits")
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [180, 20, 40]
    assert indices(splits.train) | indices(splits.val) == set(range(200))
    assert not indices(splits.train) & indices(splits.val)
    assert torch.bincount(splits.val.labels).tolist() == [5] * 4
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (4, 3, 8)
    assert (splits.mean, splits.std) == (pool.mean, pool.std)
    assert (splits.name, splits.kind, splits.augment) == ("made", "static", "digits")
    assert [p.name for p in (splits.train, splits.val, splits.test)] == [
        "made train", "made val", "made up test"
    ]  # fmt: skip


def test_a_limited_run_never_trains_on_what_a_full_run_validates_on(pool, test_set):
    full = make_splits("made", pool, test_set)
    prints = {full.split_sha256}
    before = set()
    for limit in (4, 30, 90, 180):
        part = make_splits("made", pool, test_set, limit_train=limit)
        assert len(part.train) == limit
        assert len(part.val) == max(4, round(limit / 9))
        assert before <= indices(part.train) <= indices(full.train)
        assert indices(part.val) <= indices(full.val)
        before = indices(part.train)
        prints.add(part.split_sha256)
    assert len(prints) == 4  # the last limit limits nothing


def test_a_limited_test_set_keeps_proportions_and_changes_the_fingerprint(pool, test_set):
    full = make_splits("made", pool, test_set)
    part = make_splits("made", pool, test_set, limit_test=12)
    assert torch.bincount(part.test.labels).tolist() == [3] * 4
    assert part.split_sha256 != full.split_sha256
    assert indices(part.train) == indices(full.train)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"limit_train": 3}, "limit_train=3 is not allowed: 4 to 180"),
        ({"limit_train": 181}, "limit_train=181"),
        ({"limit_test": 0}, "limit_test=0 is not allowed: 1 to 40"),
        ({"val_fraction": 1.0}, "between 0 and 1"),
        ({"duplicates": "ignore"}, "duplicates='ignore'"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(pool, test_set, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make_splits("made", pool, test_set, **options)


def test_images_in_two_parts_are_counted_and_on_demand_refused(pool, test_set, caplog):
    test_set.images[7] = pool.images[11]
    test_set.images[30] = pool.images[11]
    assert shared_images(pool, test_set) == [(11, 7), (11, 30)]
    with caplog.at_level(logging.WARNING):
        make_splits("made", pool, test_set)
    assert [r.message for r in caplog.records] == [
        "2 images of made up test are in made train too, pixel for pixel; the first: 7 is 11 of "
        "the source"
    ]
    with pytest.raises(DataError, match=r"2 images of made up test.*duplicates=report"):
        make_splits("made", pool, test_set, duplicates="refuse")


def test_no_shared_image_is_no_word(pool, test_set, caplog):
    with caplog.at_level(logging.INFO):
        make_splits("made", pool, test_set, duplicates="refuse")
    assert caplog.records == []


def test_a_class_that_training_never_sees_is_refused(pool, test_set):
    some = pool.take(torch.nonzero(pool.labels != 2).flatten())
    with pytest.raises(DataError, match=r"no training image of class \[2\]; 1 missing"):
        make_splits("made", some, test_set)


def test_parts_of_two_kinds_are_refused(pool, random_images):
    with pytest.raises(DataError, match="must agree"):
        make_splits("made", pool, random_images(20, size=16))
    with pytest.raises(DataError, match="must agree"):
        make_splits("made", pool, random_images(20, classes=5))


def test_images_that_are_not_square_are_refused(pool, test_set):
    pool.images, test_set.images = pool.images[..., :4], test_set.images[..., :4]
    with pytest.raises(DataError, match="8 x 4 pixels"):
        make_splits("made", pool, test_set)
