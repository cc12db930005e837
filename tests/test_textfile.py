"""JSON, YAML and CSV cells from strangers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.disk import csv_cell, parse_json, parse_yaml, read_mapping, read_record
from spikeformer_lt.errors import CheckpointError, ConfigError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@given(PLAIN)
def test_json_gives_back_what_was_written(value: object) -> None:
    assert parse_json(json.dumps(value), "f") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"x": {"a": 1, "a": 2}}', "'a' is there twice"),
        ('{"a": 1,\n}', "line 2: not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not JSON"),
        ("", "not JSON"),
    ],
)
def test_bad_json_is_refused_in_the_callers_class(text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^f.*{words}"):
        parse_json(text, "f", CheckpointError)


def test_yaml_scalars_follow_version_1_2() -> None:
    text = """
    lr: 1e-3
    small: .5
    word: off
    norm: no
    day: 2026-11-21
    time: 1:30
    octal: 010
    hex: 0x10
    flag: true
    empty:
    none: ~
    big: .inf
    text: "90"
    list: [1, two, 3.0]
    """
    found = parse_yaml(text, "f")
    assert found == {
        **{"lr": 1e-3, "small": 0.5, "word": "off", "norm": "no", "day": "2026-11-21"},
        **{"time": "1:30", "octal": 10, "hex": 16, "flag": True, "empty": None, "none": None},
        **{"big": float("inf"), "text": "90", "list": [1, "two", 3.0]},
    }
    assert [type(entry) for entry in found["list"]] == [int, str, float]


@given(st.dictionaries(st.text("ab_-c", min_size=1), st.integers() | st.booleans()))
def test_yaml_reads_json_of_flat_mappings(value: dict[str, object]) -> None:
    assert parse_yaml(json.dumps(value), "f") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n\tc: 2\n", "line 3: a tab"),
        ("a: 1\nb: 2\na: 3\n", r"line 3: the key 'a' is there twice \(first in line 1\)"),
        ("g:\n  x: 1\n  x: 1\n", "line 3: the key 'x' is there twice"),
        ("- {x: 1, x: 2}", "line 1: the key 'x' is there twice"),
        (BOMB, r"line 1: an anchor or alias"),
        ("a: 1\nb: *a\n", "line 2: an anchor or alias"),
        ("a: 1\nx: !!python/object/apply:os.system [ls]\n", "line 2: the tag '.*python.*'"),
        ("a: !custom 3", "line 1: the tag '!custom'"),
        ("a: !!str 3", "line 1: the tag"),
        ("a: 1\n--- \nb: 2\n", "not YAML: but found another document"),
        ("a: [1,\nb: {", "line .*: not YAML"),
        ("[" * 60, "nested deeper than 50"),
        ("? [a, b]\n: 1\n", "line 1: a key must be one plain word"),
        ("a: \x07", "not YAML"),
        ("a: " + "1" * 5000, "not YAML"),
    ],
)
@pytest.mark.fault(35)
def test_risky_yaml_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^f.*{words}"):
        parse_yaml(text, "f")


@pytest.mark.fault(35)
def test_a_yaml_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    begin = time.perf_counter()
    with pytest.raises(ConfigError, match="anchor or alias"):
        parse_yaml("\n".join(lines), "f")
    assert time.perf_counter() - begin < 1


def test_a_merge_key_is_an_ordinary_word() -> None:
    assert parse_yaml("<<: {a: 1}\nb: 2\n", "f") == {"<<": {"a": 1}, "b": 2}


def test_a_file_is_read_by_its_ending(tmp_path: Path) -> None:
    for name, text in (("a.yaml", "x: 1"), ("a.YML", "x: 1"), ("a.json", '\ufeff{"x": 1}')):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_mapping(tmp_path / name) == {"x": 1}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_mapping(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", b"", "must end in .json, .yaml, .yml"),
        ("a.yaml", b"\xff\xfe", "not UTF-8"),
        ("a.yaml", b"x: 1\n" * 300_000, "longer than 1000000 bytes"),
        ("a.yaml", b"- 1", "top level"),
        ("a.json", b"[1]", "top level"),
        ("missing.json", None, "cannot read .*No such file"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_mapping(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        read_mapping(tmp_path / "d.json")


@given(st.text())
def test_no_text_in_a_csv_cell_is_a_formula_or_breaks_the_line(text: str) -> None:
    cell = csv_cell(text)
    assert len(cell.splitlines()) <= 1
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))


def test_cells_keep_numbers_and_names() -> None:
    assert [csv_cell(x) for x in (-1, 0.1, True, None, "conv_pep.0", "=cmd|' /C calc'!A0")] == [
        *("-1", "0.1", "True", "", "conv_pep.0", "'=cmd|' /C calc'!A0"),
    ]
    assert csv_cell("a\r\nb") == r"a\r\nb"


FIELDS = {"a": "text", "n": "whole", "x": "real", "o": "names", "r": "rates", "l": "list"}
GOOD = {"a": "t", "n": 3, "x": 0.5, "o": {"k": []}, "r": {"k": 1, "m": None}, "l": [1], "more": {}}


@pytest.mark.fault(53)
def test_a_record_is_read_by_its_types(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for good in (GOOD, {}, dict.fromkeys(FIELDS)):
        file.write_text(json.dumps(good))
        assert read_record(file, FIELDS, CheckpointError) == good
    for name, kind in FIELDS.items():
        for odd in ("", 1.5, True, [], {}, {"k": "x"}, {"k": []}, [[]] * 9):
            file.write_text(json.dumps({**GOOD, name: odd}))
            if type(odd) is type(GOOD[name]) and (kind != "rates" or odd == {}):
                assert read_record(file, FIELDS, CheckpointError)[name] == odd
                continue
            with pytest.raises(CheckpointError, match=f"report.json.*{name}="):
                read_record(file, FIELDS, CheckpointError)


@pytest.mark.fault(53)
def test_lists_of_numbers_and_square_tables_are_looked_into(tmp_path: Path) -> None:
    file, fields = tmp_path / "report.json", {"v": "reals", "c": "table"}
    for good in ({"v": [1, 0.5], "c": [[1, 2], [3, 4]]}, {"v": [], "c": []}, {"v": None}):
        file.write_text(json.dumps(good))
        assert read_record(file, fields, CheckpointError) == good
    odd = {"v": ([[]], ["1"], [None], [True]), "c": ([1], [[1, 2]], [[1, 2], [3]], [["a"]])}
    for name, values in odd.items():
        for value in values:
            file.write_text(json.dumps({name: value}))
            with pytest.raises(CheckpointError, match=f"report.json.*{name}="):
                read_record(file, fields, CheckpointError)


@pytest.mark.fault(53)
def test_what_is_no_record_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for data in (b"[]", b"{", b"\xff", b"[" * 10**5, b'{"a": 1, "a": 2}', b" " * (1 << 24) + b"{}"):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match="report.json"):
            read_record(file, FIELDS, CheckpointError)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="report.json.*no regular file"):
        read_record(file, FIELDS, CheckpointError)
