from __future__ import annotations

import hashlib
import json
import logging
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import (
    hashed_subset,
    hashed_validation,
    make_splits,
    shared_images,
    split_sha256,
)


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


label_lists = st.lists(st.integers(0, 5), min_size=2, max_size=120)
hyper = settings(derandomize=True, deadline=None, max_examples=60)


@hyper
@given(label_lists, st.sampled_from([0.1, 0.2, 0.29, 0.5, 0.9]))
def test_the_two_parts_are_a_partition_with_the_exact_count_of_each_class(listed, fraction):
    labels = torch.tensor(listed)
    sizes = {c: listed.count(c) for c in set(listed)}
    wanted = {
        c: min(int(Fraction(str(fraction)) * n + Fraction(1, 2)), n - 1) for c, n in sizes.items()
    }
    if not any(wanted.values()):
        with pytest.raises(DataError, match="whole sample"):
            hashed_validation("set", labels, fraction)
        return
    kept, held = hashed_validation("set", labels, fraction)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(listed)))
    assert kept.tolist() == sorted(kept.tolist())
    for label, count in wanted.items():
        assert int((labels[held] == label).sum()) == count


def test_membership_is_the_order_of_the_written_hash():
    labels = torch.zeros(20, dtype=torch.int64)
    _, held = hashed_validation("set", labels, 0.25, seed=3)
    order = sorted(
        range(20), key=lambda i: hashlib.sha256(json.dumps(["set", 3, i]).encode()).hexdigest()
    )
    assert held.tolist() == sorted(order[:5])


@pytest.mark.golden
def test_the_split_is_the_same_on_every_machine():
    labels = torch.arange(40) % 4
    _, held = hashed_validation("golden", labels, 0.2)
    assert held.tolist() == [1, 7, 8, 12, 22, 27, 37, 38]
    assert hashed_subset("golden", labels, 6).tolist() == [1, 8, 12, 27, 37, 38]


def test_name_and_seed_give_other_splits():
    labels = torch.arange(200) % 4
    first = hashed_validation("a", labels)[1].tolist()
    assert hashed_validation("a", labels)[1].tolist() == first
    assert hashed_validation("b", labels)[1].tolist() != first
    assert hashed_validation("a", labels, seed=1)[1].tolist() != first


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_that_leaves_a_part_empty_is_refused(fraction):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        hashed_validation("set", torch.zeros(5, dtype=torch.int64), fraction)


@hyper
@given(label_lists, st.data())
def test_a_larger_subset_keeps_what_a_smaller_one_chose(listed, data):
    labels = torch.tensor(listed)
    small = data.draw(st.integers(1, len(listed)))
    large = data.draw(st.integers(small, len(listed)))
    chosen = hashed_subset("set", labels, small).tolist()
    assert len(chosen) == len(set(chosen)) == small
    assert set(chosen) <= set(hashed_subset("set", labels, large).tolist())


def test_classes_of_one_size_get_equal_shares():
    labels = torch.arange(500) % 10
    for count in (10, 200, 490):
        counts = torch.bincount(labels[hashed_subset("set", labels, count)], minlength=10)
        assert counts.tolist() == [count // 10] * 10


def test_classes_get_their_proportion():
    labels = torch.tensor([0] * 300 + [1] * 100 + [2] * 50)
    counts = torch.bincount(labels[hashed_subset("set", labels, 45)])
    assert counts.tolist() == [30, 10, 5]


def test_ids_decide_and_positions_do_not():
    labels = torch.zeros(30, dtype=torch.int64)
    ids = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    straight = set(hashed_subset("set", labels, 7).tolist())
    assert set(ids[hashed_subset("set", labels, 7, ids=ids)].tolist()) == straight


@pytest.mark.parametrize("count", [0, -1, 31])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(ConfigError, match="1 to 30 samples"):
        hashed_subset("set", torch.zeros(30, dtype=torch.int64), count)


def test_the_fingerprint_changes_with_an_index_a_label_and_a_part_and_not_with_order():
    one, two = torch.tensor([1, 2]), torch.tensor([0, 1])
    base = {"train": (one, two), "val": (two, one)}
    print_of = split_sha256(base)
    assert len(print_of) == 64
    assert split_sha256(dict(reversed(base.items()))) == print_of
    others = [
        {"train": (one, two), "val": (two, two)},
        {"train": (one.flip(0), two), "val": (two, one)},
        {"train": (two, one), "val": (one, two)},
        {"train": (one, two), "test": (two, one)},
        {"train": (one[:1], two[:1]), "val": (two, one)},
    ]
    assert len({print_of, *map(split_sha256, others)}) == 6
