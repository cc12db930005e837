from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.split import Sample, Split, first_of_each_class, hold_out, limit


def some(counts, groups=1):
    return [
        Sample(f"class{label}/{i:04d}.npy", label=label, group=f"user{i % groups}")
        for label, n in enumerate(counts)
        for i in range(n)
    ]


def made(val=4):
    pool, test = first_of_each_class(some((10, 10)), 0.6)
    train, held = hold_out("made", pool, val / 12)
    return Split("made", ("a", "b"), tuple(train), tuple(held), tuple(test))


def test_the_fields_rule_takes_the_first_nine_tenths_of_each_class_by_path():
    samples = [Sample(f"{c}/cifar10_{c}_{i}.aedat", label=c) for c in (1, 0) for i in range(1000)]
    train, test = first_of_each_class(samples, 0.9)
    assert Counter(s.label for s in train) == {0: 900, 1: 900}
    assert Counter(s.label for s in test) == {0: 100, 1: 100}
    # By the characters of the path, as a sorted folder has it: 0, 1, 10, 100, 101, ... 99, 990, ...
    names = sorted(f"{i}.aedat" for i in range(1000))
    assert [s.path for s in test if s.label == 0] == [f"0/cifar10_0_{n}" for n in names[900:]]
    assert first_of_each_class(samples[::-1], 0.9) == (train, test)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([0.1, 0.25, 0.5, 0.9]))
def test_each_class_is_cut_where_its_own_size_says(counts, fraction):
    samples = some(counts)
    train, test = first_of_each_class(samples, fraction)
    assert sorted(train + test) == sorted(samples)
    for label, n in enumerate(counts):
        wanted = math.ceil(round(fraction * n, 9))
        assert sum(s.label == label for s in train) == wanted


@given(st.lists(st.integers(2, 40), min_size=1, max_size=4), st.sampled_from([0.1, 0.25, 0.5]))
def test_validation_is_the_fraction_of_each_class_and_never_all(counts, fraction):
    samples = some(counts)
    expected = [min(math.floor(fraction * n + 0.5), n - 1) for n in counts]
    if not sum(expected):
        with pytest.raises(DataError, match="holds none out"):
            hold_out("made", samples, fraction)
        return
    kept, held = hold_out("made", samples, fraction)
    assert sorted(kept + held) == sorted(samples)
    assert [sum(s.label == label for s in held) for label in range(len(counts))] == expected


def test_a_choice_depends_on_names_only():
    samples = some((30, 30))
    kept, held = hold_out("made", samples, 0.1)
    assert hold_out("made", samples[::-1], 0.1) == (kept, held)
    assert hold_out("else", samples, 0.1)[1] != held
    # A recording that is missing moves no other one by its number, as indices would.
    fewer = hold_out("made", [s for s in samples if s not in kept[:1]], 0.1)[1]
    assert len(set(fewer) & set(held)) >= len(held) - 1


def test_whole_groups_are_held_out_and_no_class_loses_its_last():
    samples = some((20, 20, 20), groups=10)
    kept, held = hold_out("made", samples, 0.1, groups=True)
    assert {s.group for s in kept}.isdisjoint(s.group for s in held)
    assert len(held) == 6 and len({s.group for s in held}) == 1
    kept, held = hold_out("made", samples, 0.25, groups=True)
    assert len({s.group for s in held}) == 3  # two groups are less than a quarter
    only = [*some((20,), groups=4), Sample("rare/1.npy", label=1, group="user0")]
    for fraction in (0.1, 0.5, 0.9):
        kept, held = hold_out("made", only, fraction, groups=True)
        assert {s.label for s in kept} == {0, 1} and held
    with pytest.raises(DataError, match="holds none out"):
        hold_out("made", some((20,)), 0.1, groups=True)  # one group is all there is


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_lies_between_0_and_1(fraction):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        hold_out("made", some((9,)), fraction)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        first_of_each_class(some((9,)), fraction)


def test_a_limit_keeps_proportions_and_what_a_smaller_one_chose():
    samples = some((40, 20, 20))
    before: set[Sample] = set()
    for count in (1, 4, 8, 40, 80):
        chosen = limit("made", samples, count)
        assert len(chosen) == count and before <= set(chosen)
        before = set(chosen)
    assert Counter(s.label for s in limit("made", samples, 8)) == {0: 4, 1: 2, 2: 2}
    for count in (0, 81):
        with pytest.raises(ConfigError, match=f"limit={count} is not allowed"):
            limit("made", samples, count)


def test_a_recording_in_two_parts_and_a_label_without_a_class_are_refused():
    a, b = Sample("a.npy", label=0), Sample("b.npy", label=1)
    with pytest.raises(DataError, match=r"'a\.npy' is in train and in test"):
        Split("made", ("x", "y"), (a,), (b,), (a,))
    with pytest.raises(
        DataError, match=r"val sample 0, 'b\.npy', has the label 1, outside \[0, 1\)"
    ):
        Split("made", ("x",), (a,), (b,), ())
    with pytest.raises(DataError, match=r"has the label -1"):
        Split("made", ("x",), (Sample("c", label=-1),), (), ())
    stretches = (Sample("a", 0, 5), Sample("a", 5, 9))
    Split("made", ("x",), stretches[:1], (), stretches[1:])


def test_the_fingerprint_is_of_parts_paths_labels_and_classes():
    split = made()
    assert split.sha256 == "a72ec89b06d52c080fdfee088e7c248da26264980393af34b47203b4c4b3c593"
    shuffled = Split("made", ("a", "b"), split.train[::-1], split.val, split.test)
    assert shuffled.sha256 == split.sha256
    moved = Split("made", ("a", "b"), split.train[1:], (*split.val, split.train[0]), split.test)
    relabelled = Split(
        "made", ("a", "b"), (Sample(split.train[0].path, label=1), *split.train[1:]), split.val,
        split.test,
    )  # fmt: skip
    renamed = Split("made", ("a", "c"), split.train, split.val, split.test)
    assert len({s.sha256 for s in (split, moved, relabelled, renamed)}) == 4


def test_a_saved_split_is_the_split_of_another_run(tmp_path):
    split = made()
    split.save(tmp_path / "split.json")
    assert split.as_saved(tmp_path / "split.json") == split
    other = made(val=6)
    assert other.sha256 != split.sha256
    taken = other.as_saved(tmp_path / "split.json")
    assert taken.sha256 == split.sha256 and taken.val == split.val
    told = json.loads((tmp_path / "split.json").read_text())
    assert told["sha256"] == split.sha256 and len(told["recordings"]) == 20


def edits(text):
    told = json.loads(text)
    rows = told["recordings"]
    yield {**told, "recordings": [["test", *rows[0][1:]], *rows[1:]]}, "was edited"
    yield {**told, "sha256": "0" * 64}, "was edited"
    yield {**told, "classes": ["a", "x"]}, "was edited"
    yield {**told, "recordings": rows[1:]}, "does not list"
    yield {**told, "recordings": [*rows, ["train", "gone.npy", 0]]}, r"'gone\.npy'.*not there"
    yield {**told, "recordings": [*rows, rows[0]]}, "not there"
    yield {**told, "recordings": [[*rows[0][:2], 1], *rows[1:]]}, "of class 0"
    yield {**told, "recordings": [["dev", *rows[0][1:]], *rows[1:]]}, "as dev"
    yield {**told, "recordings": [5]}, "no list of recordings"
    yield {**told, "version": 2}, "found split v2, supports v1"
    yield {**told, "format": "else"}, "is not a split file"
    yield [1], "is not a split file"


def test_an_edited_foreign_or_damaged_split_file_is_refused(tmp_path):
    split, path = made(), tmp_path / "split.json"
    split.save(path)
    text = path.read_text()
    for changed, words in edits(text):
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError, match=words) as caught:
            split.as_saved(path)
        assert "split.json" in str(caught.value)
    for content in (text[:-20], "", "<html>", text.replace('"name"', '"sha256"')):
        path.write_text(content)
        with pytest.raises(DataError, match=r"split\.json"):
            split.as_saved(path)
    with pytest.raises(DataError, match="cannot read the split file"):
        split.as_saved(tmp_path / "gone.json")


def test_a_set_that_changed_on_disk_does_not_fit_its_split_file(tmp_path):
    split = made()
    split.save(tmp_path / "split.json")
    fewer = Split("made", ("a", "b"), split.train[1:], split.val, split.test)
    with pytest.raises(DataError, match=r"class0/0000\.npy.*on disk it is not there"):
        fewer.as_saved(tmp_path / "split.json")
