from __future__ import annotations

import json
import logging
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.disk import sha256_of
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import split
from spikeformer_lt.events.split import (
    Sample,
    Split,
    accept,
    check_counts,
    class_samples,
    find_folder,
    find_shared,
    first_of_each_class,
    hold_out,
    limit,
    scan,
)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.fault(26)
def test_files_come_in_one_order_and_desktop_leavings_do_not_come(tmp_path):
    touch(
        tmp_path, "b/10.npy", "b/9.npy", "a/1.npy", "a/.DS_Store", "a/._1.npy", "B/1.npy",
        "__MACOSX/a/1.npy", ".hidden/1.npy", "list.txt", "a/1.npy.part", "top.npy",
        "SIMULATED.txt", "errata.txt", "trials_to_test.txt",
    )  # fmt: skip
    assert scan(tmp_path, (".npy",)) == ["B/1.npy", "a/1.npy", "b/10.npy", "b/9.npy", "top.npy"]
    assert scan(tmp_path, (".npy", ".txt"))[-2:] == ["list.txt", "top.npy"]


@pytest.mark.fault(34)
def test_the_order_is_not_the_file_systems(tmp_path, monkeypatch):
    import os

    touch(tmp_path, *(f"{c}/{n}.npy" for c in "cab" for n in (3, 1, 2)))
    straight = scan(tmp_path, (".npy",))
    walk = os.walk

    def other_machine(top, **options):
        for here, folders, files in walk(top, **options):
            folders.sort(reverse=True)
            yield here, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", other_machine)
    assert scan(tmp_path, (".npy",)) == straight == sorted(straight)


@pytest.mark.fault(26, 83)
def test_links_are_followed_where_users_put_them(tmp_path):
    touch(tmp_path, "set/a/1.npy", "disk/2.npy", "disk/below/3.NPY")
    (tmp_path / "set/a/2.npy").symlink_to("1.npy")
    (tmp_path / "set/a/3.npy").symlink_to(tmp_path / "disk/2.npy")
    (tmp_path / "set/b").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    found = ["a/1.npy", "a/2.npy", "a/3.npy", "b/2.npy", "b/below/3.NPY"]
    assert scan(tmp_path / "set", (".npy",)) == scan(tmp_path / "link", (".npy",)) == found


@pytest.mark.fault(26, 83)
def test_a_link_to_nothing_or_to_where_it_is_is_refused(tmp_path):
    touch(tmp_path, "set/a/1.npy")
    link = tmp_path / "set/a/2.npy"
    link.symlink_to(tmp_path / "gone.npy")
    with pytest.raises(DataError, match=r"2\.npy' is a link to .*gone\.npy': nothing is there"):
        scan(tmp_path / "set", (".npy",))
    for place in (tmp_path / "set", tmp_path / "set/a", tmp_path):
        link.unlink()
        link.symlink_to(place)
        with pytest.raises(DataError, match=r"2\.npy' is a link to a folder that it is in"):
            scan(tmp_path / "set", (".npy",))
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(DataError, match="nothing is there"):
        scan(tmp_path / "set", (".npy",))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.* is not a folder"):
        scan(tmp_path / "gone", (".npy",))


def test_a_folder_is_found_where_users_unpack_it(tmp_path):
    for place in ("", "x", "x/y"):
        root = tmp_path / f"root-{len(place)}"
        touch(root, f"{place}/Set/1.npy".lstrip("/"))
        assert find_folder(root, ("Set", "SET")) == root / place / "Set"
    assert find_folder(tmp_path / "root-0" / "Set", ("Set",)) == tmp_path / "root-0" / "Set"


@pytest.mark.fault(83)
def test_a_set_is_found_through_links_once(tmp_path):
    touch(tmp_path / "disk", "Set/1.npy")
    root = tmp_path / "root"
    root.mkdir()
    (root / "elsewhere").symlink_to(tmp_path / "disk")
    assert find_folder(root, ("Set",)) == root / "elsewhere" / "Set"
    (root / "Set").symlink_to(tmp_path / "disk" / "Set")
    assert find_folder(root, ("Set",)) == root / "Set"
    assert scan(root / "Set", (".npy",)) == ["1.npy"]
    (root / "also").symlink_to(tmp_path / "disk")
    (root / "Set").unlink()
    assert find_folder(root, ("Set",)) == root / "also" / "Set"
    touch(tmp_path / "deep", "a/b/c/Set/1.npy")
    assert find_folder(tmp_path / "deep", ("Set",)) is None
    assert find_folder(tmp_path / "gone", ("Set",)) is None


@pytest.mark.fault(26)
def test_a_set_unpacked_twice_is_an_error_and_nested_in_itself_is_the_outer(tmp_path):
    touch(tmp_path, "one/Set/1.npy", "two/Set/1.npy")
    with pytest.raises(DataError, match="both look like the set"):
        find_folder(tmp_path, ("Set",))
    touch(tmp_path / "nested", "Set/Set/1.npy")
    assert find_folder(tmp_path / "nested", ("Set",)) == tmp_path / "nested" / "Set"


def test_the_first_folder_is_the_class_and_an_unknown_one_is_named_with_the_nearest(tmp_path):
    classes = ("airplane", "truck")
    touch(tmp_path / "set", "truck/1.npy", "airplane/a/2.npy")
    whole = [Sample("airplane/a/2.npy", label=0), Sample("truck/1.npy", label=1)]
    assert class_samples(tmp_path / "set", (".npy",), classes) == whole
    below = class_samples(tmp_path, (".npy",), classes, "set")
    assert below == [Sample("set/airplane/a/2.npy", label=0), Sample("set/truck/1.npy", label=1)]
    touch(tmp_path / "set", "truk/1.npy")
    with pytest.raises(DataError, match=r"'truk/1\.npy': 'truk' is no class; did you mean 'truck'"):
        class_samples(tmp_path / "set", (".npy",), classes)


@pytest.mark.fault(26)
def test_counts_of_each_class_are_compared_and_told():
    samples = [Sample(f"{i}", label=i % 2) for i in range(5)]
    check_counts("set train", samples, ("a", "b"), {"a": 3, "b": 2})
    check_counts("set train", samples, ("a", "b"), 5)
    for classes, expected, told in (
        (
            "abc",
            {"a": 3, "b": 3, "c": 1},
            "set has 5 recordings of 7: a 3 of 3, b 2 of 3, c 0 of 1",
        ),
        # As many as there should be, but one class is missing and another has more.
        ("abc", 5, "set has 5 recordings of 5: a 3, b 2, c 0"),
        ("ab", {"a": 2, "b": 3}, "a 3 of 2, b 2 of 3"),
    ):
        with pytest.raises(DataError, match=f"{told}; get the rest"):
            check_counts("set", samples, tuple(classes), expected)
    with pytest.raises(DataError, match="set has 0 recordings of 1: a 0"):
        check_counts("set", [], ("a",), 1)


@pytest.mark.fault(26)
def test_an_incomplete_set_is_an_error_or_a_warning(caplog):
    with pytest.raises(DataError, match="set has 1 of 2; get the rest, or use incomplete=report"):
        accept("set has 1 of 2", "error")
    with caplog.at_level(logging.WARNING):
        accept("set has 1 of 2", "report")
    assert "set has 1 of 2" in caplog.text


def test_stretches_of_one_file_have_names_of_their_own():
    assert Sample("a.npy").key == "a.npy"
    assert Sample("a.aedat", 5, 9).key == "a.aedat[5:9]"
    assert Sample("a", 5, 9) < Sample("a", 6, 8) < Sample("b", 1, 2)


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
    for odd in ([[], "a", 0], ["train", ["a"], 0], ["train", "a", "0"], ["train", "a", 0.0]):
        yield {**told, "recordings": [odd, *rows]}, "no list of recordings"
    yield {**told, "version": 2}, "found split v2, supports v1"
    yield {**told, "format": "else"}, "is not a split file"
    yield [1], "is not a split file"


@pytest.mark.fault(34)
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
    with pytest.raises(DataError, match=r"cannot read .*gone\.json"):
        split.as_saved(tmp_path / "gone.json")


@pytest.mark.fault(34)
def test_a_set_that_changed_on_disk_does_not_fit_its_split_file(tmp_path):
    split = made()
    split.save(tmp_path / "split.json")
    fewer = Split("made", ("a", "b"), split.train[1:], split.val, split.test)
    with pytest.raises(DataError, match=r"class0/0000\.npy.*on disk it is not there"):
        fewer.as_saved(tmp_path / "split.json")


def put(tmp_path, contents):
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)


def test_the_same_bytes_in_two_parts_are_found_and_in_one_part_are_not(tmp_path):
    long = bytes(5000)
    put(
        tmp_path,
        {
            "a": b"one", "b": b"one", "c": b"two", "d": b"one",
            "e": long + b"1", "f": long + b"2", "g": long + b"1",
        },
    )  # fmt: skip
    parts = {
        "train": [Sample("a"), Sample("b"), Sample("e")],
        "test": [Sample("c"), Sample("d"), Sample("f"), Sample("g")],
    }
    assert find_shared(tmp_path, parts) == [("a", "d"), ("e", "g")]
    assert find_shared(tmp_path, {"train": parts["train"]}) == []


def test_pairs_begin_in_the_first_part_whatever_the_order_of_the_copies():
    parts = {"train": [Sample("b"), Sample("c")], "test": [Sample("a")]}
    for copies in (["a", "b", "c"], ["c", "b", "a", "left out"]):
        assert split.pairs_apart([copies], parts) == [("b", "a")]


def test_only_files_of_one_size_and_one_beginning_are_read_whole(tmp_path, monkeypatch):
    put(tmp_path, {"a": b"1", "b": b"22", "c": b"x" * 9000, "d": b"y" * 9000, "e": b"y" * 9000})
    read = []

    def told(path):
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(split, "sha256_of", told)
    samples = [Sample(name) for name in "abcde"]
    assert find_shared(tmp_path, {"train": samples[:4], "test": samples[4:]}) == [("d", "e")]
    assert read == ["d", "e"]


def test_stretches_of_one_file_are_no_copies(tmp_path):
    put(tmp_path, {"a": b"1"})
    parts = {"train": [Sample("a", 0, 5)], "val": [Sample("a", 5, 9)]}
    assert find_shared(tmp_path, parts) == []


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone.*No such file"):
        find_shared(tmp_path, {"train": [Sample("gone")]})
