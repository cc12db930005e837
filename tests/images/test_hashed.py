from __future__ import annotations

import hashlib
import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import hashed_subset, hashed_validation, split_sha256

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
