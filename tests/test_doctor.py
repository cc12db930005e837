"""What the doctor finds, and the fix it prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spikeformer_lt.doctor import (
    Finding,
    check_data,
    check_disk,
    check_extras,
    check_imports,
    check_pair,
    check_threads,
    check_world,
    find_below,
    main,
)


@pytest.mark.parametrize(
    ("torch", "vision", "state"),
    [
        ("2.13.0+cpu", "0.28.0+cpu", "ok"),
        ("2.13.0+cu130", "0.28.0+cu130", "ok"),
        ("2.13.0", "0.28.0", "ok"),
        ("2.13.0+cpu", "0.28.0+cu130", "FAIL"),
        ("2.13.0+cpu", "0.27.1+cpu", "FAIL"),
        ("2.13.0", "garbage", "FAIL"),
        ("2.4.0", "0.19.0", "note"),
    ],
)
def test_a_pair_that_does_not_match_is_told_with_the_line_that_mends_it(torch, vision, state):
    found = check_pair(torch, vision)
    assert found.state == state
    assert (found.fix == "") == (state == "ok")
    assert torch in found.found and vision in found.found


def test_a_package_that_fails_to_load_is_a_failure_with_its_own_words(tmp_path, monkeypatch):
    (tmp_path / "broken_wheel.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    found = list(check_imports({"broken_wheel": "broken", "no_such_module_x": "lost", "re": "re"}))
    assert [f.state for f in found] == ["FAIL", "FAIL", "ok"]
    assert "operator nms" in found[0].found and "constraints.txt" in found[0].fix
    assert "no_such_module_x" in found[1].found


def test_an_extra_that_is_missing_names_its_extra():
    found = list(check_extras({"no_such_module_x": "onnx", "json": "trackers"}))
    assert [f.state for f in found] == ["note", "ok"]
    assert "spikeformer_lt[onnx]" in found[0].fix


def test_threads_disk_and_world_say_what_to_do(tmp_path):
    assert check_threads(2, 2, "2").state == "ok"
    assert "OMP_NUM_THREADS=8" in check_threads(1, 8, None).fix
    assert check_disk(tmp_path, 0.0).state == "ok"
    assert "--run.out" in check_disk(tmp_path, 1e12).fix
    assert check_world({}, 0).state == "ok"
    assert "torchrun" in check_world({"MASTER_ADDR": "127.0.0.1"}, 0).fix
    assert "--num_processes 4" in check_world({}, 4).fix
    assert check_world({"WORLD_SIZE": "4", "MASTER_ADDR": "a"}, 4).state == "ok"


def test_data_that_is_there_is_counted_and_data_that_is_not_says_where_to_put_it(tmp_path):
    found = {f.what: f for f in check_data(str(tmp_path))}
    assert found["digits"].state == "ok" and " test (split " in found["digits"].found
    assert found["cifar10"].state == "note" and str(tmp_path) in found["cifar10"].found
    assert "cifar-10-python.tar.gz" in found["cifar10"].fix


def test_data_in_a_folder_further_down_is_found_and_the_option_named(tmp_path):
    (tmp_path / "sets" / "images" / "cifar-10-batches-py").mkdir(parents=True)
    found = {f.what: f for f in check_data(str(tmp_path))}
    place = tmp_path / "sets" / "images"
    assert found["cifar10"].fix == f"--data.name cifar10 --data.root {place}"
    assert f"perhaps in {place}/" in found["cifar10"].found
    assert "--data.root" not in found["cifar100"].fix and "md5" not in found["cifar100"].fix
    assert "cifar-100-python.tar.gz" in found["cifar100"].fix


def test_the_search_for_data_has_an_end(tmp_path):
    deep = tmp_path.joinpath(*"abcdef")
    deep.mkdir(parents=True)
    (deep / "lost.zip").touch()
    (tmp_path / "near.zip").touch()
    assert find_below(tmp_path, {"lost.zip", "near.zip"}) is None
    (tmp_path / "a" / "lost.zip").touch()
    assert find_below(tmp_path, {"lost.zip"}) == tmp_path / "a"
    assert find_below(tmp_path / "missing", {"x"}) is None


def test_a_finding_prints_as_one_line_and_its_fix_below():
    assert str(Finding("ok", "a", "b")) == "ok    a                  b"
    assert str(Finding("FAIL", "a", "b", "c")).splitlines()[1].strip() == "fix: c"


def test_the_status_is_1_only_where_something_needed_fails(monkeypatch, capsys):
    assert main(["--no-data"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("everything that is needed works\n")
    assert "torch pair" in printed and "world size" in printed
    monkeypatch.setattr("spikeformer_lt.doctor.NEEDED", {})
    bad = Finding("FAIL", "x", "y", "z")
    monkeypatch.setattr("spikeformer_lt.doctor.check_disk", lambda folder: bad)
    assert main(["--no-data"]) == 1
    assert "1 thing(s) to repair" in capsys.readouterr().out


def test_the_module_runs_as_a_command():
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "spikeformer_lt.doctor", "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0 and "--no-data" in ended.stdout
