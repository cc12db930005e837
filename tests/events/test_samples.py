from __future__ import annotations

import logging

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.split import (
    Sample,
    accept,
    check_counts,
    class_samples,
    find_folder,
    scan,
)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_come_in_one_order_and_desktop_leavings_do_not_come(tmp_path):
    touch(
        tmp_path, "b/10.npy", "b/9.npy", "a/1.npy", "a/.DS_Store", "a/._1.npy", "B/1.npy",
        "__MACOSX/a/1.npy", ".hidden/1.npy", "readme.txt", "a/1.npy.part", "top.npy",
    )  # fmt: skip
    assert scan(tmp_path, (".npy",)) == ["B/1.npy", "a/1.npy", "b/10.npy", "b/9.npy", "top.npy"]
    assert scan(tmp_path, (".npy", ".txt"))[-2:] == ["readme.txt", "top.npy"]


def test_the_order_is_not_the_file_systems(tmp_path, monkeypatch):
    import os

    touch(tmp_path, *(f"{c}/{n}.npy" for c in "cab" for n in (3, 1, 2)))
    straight = scan(tmp_path, (".npy",))
    walk = os.walk

    def other_machine(top):
        for here, folders, files in walk(top):
            folders.sort(reverse=True)
            yield here, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", other_machine)
    assert scan(tmp_path, (".npy",)) == straight == sorted(straight)


def test_a_link_inside_is_a_file_and_a_link_out_is_refused(tmp_path):
    touch(tmp_path, "set/a/1.npy", "secret/2.npy")
    (tmp_path / "set/a/2.npy").symlink_to("1.npy")
    assert scan(tmp_path / "set", (".npy",)) == ["a/1.npy", "a/2.npy"]
    (tmp_path / "set/a/3.npy").symlink_to(tmp_path / "secret/2.npy")
    with pytest.raises(DataError, match=r"3\.npy.* is a link that leads out of"):
        scan(tmp_path / "set", (".npy",))
    (tmp_path / "set/a/3.npy").unlink()
    (tmp_path / "set/b").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"set/b.* is a link that leads out of"):
        scan(tmp_path / "set", (".npy",))
    # The root itself may be a link: that is the user's own choice.
    (tmp_path / "set/b").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert scan(tmp_path / "link", (".npy",)) == ["a/1.npy", "a/2.npy"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.* is not a folder"):
        scan(tmp_path / "gone", (".npy",))


def test_a_folder_is_found_where_users_unpack_it(tmp_path):
    for place in ("", "x", "x/y"):
        root = tmp_path / f"root-{len(place)}"
        touch(root, f"{place}/Set/1.npy".lstrip("/"))
        assert find_folder(root, ("Set", "SET")) == root / place / "Set"
    assert find_folder(tmp_path / "root-0" / "Set", ("Set",)) == tmp_path / "root-0" / "Set"
    touch(tmp_path / "deep", "a/b/c/Set/1.npy")
    assert find_folder(tmp_path / "deep", ("Set",)) is None
    assert find_folder(tmp_path / "gone", ("Set",)) is None


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
