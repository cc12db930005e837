from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
import zlib

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events import cache as cache_module
from spikeformer_lt.events.cache import FrameCache, MemoryCache, code_version, source_of

PARAMETERS = {"framing": "T=4", "size": 8}


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 9, (4, 2, 8, 8)).astype(np.uint8)


def entry(cache):
    (path,) = cache.folder.glob("??/*.frames")
    return path


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32"])
def test_what_was_put_comes_back_and_nothing_else(tmp_path, frames, kind):
    cache = FrameCache(tmp_path, "made", PARAMETERS)
    assert cache.get("a", "1-2") is None
    cache.put("a", "1-2", frames.astype(kind))
    found = cache.get("a", "1-2")
    assert found.dtype == kind and np.array_equal(found, frames)
    assert cache.get("b", "1-2") is None
    again = FrameCache(tmp_path, "made", dict(reversed(PARAMETERS.items())))
    assert np.array_equal(again.get("a", "1-2"), frames)
    assert json.loads((cache.folder / "key.json").read_text())["size"] == 8


def test_a_recording_that_changed_is_made_again(tmp_path, frames):
    cache = FrameCache(tmp_path, "made", PARAMETERS)
    cache.put("a", "1-2", frames)
    assert cache.get("a", "1-3") is None
    cache.put("a", "1-3", frames + 1)
    assert np.array_equal(cache.get("a", "1-3"), frames + 1)


@pytest.mark.parametrize(
    "other", [{"framing": "T=5", "size": 8}, {"framing": "T=4", "size": 9}, {"size": 8}]
)
def test_other_parameters_are_another_cache(tmp_path, frames, other):
    first = FrameCache(tmp_path, "made", PARAMETERS)
    first.put("a", "1-2", frames)
    assert FrameCache(tmp_path, "made", other).get("a", "1-2") is None
    assert FrameCache(tmp_path, "else", PARAMETERS).get("a", "1-2") is None


@pytest.mark.fault(30)
def test_other_code_is_another_cache(tmp_path, frames, monkeypatch):
    FrameCache(tmp_path, "made", PARAMETERS).put("a", "1-2", frames)
    monkeypatch.setattr(cache_module, "code_version", lambda: "changed")
    assert FrameCache(tmp_path, "made", PARAMETERS).get("a", "1-2") is None


@pytest.mark.fault(30)
def test_the_code_version_is_of_all_sources_and_changes_with_one(tmp_path, monkeypatch):
    version = code_version()
    assert len(version) == 16 and version == code_version()
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("1\n")
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "a.py"))
    versions = {code_version.__wrapped__()}
    (tmp_path / "b.py").write_text("2\n")
    versions.add(code_version.__wrapped__())
    (tmp_path / "c.py").write_text("1\n")
    versions.add(code_version.__wrapped__())
    assert len(versions) == 3
    assert source_of(FrameCache(tmp_path, "made", {})) and source_of(5) == ""


@pytest.mark.fault(31)
def test_every_cut_and_every_flipped_bit_is_noticed(tmp_path, frames):
    cache = FrameCache(tmp_path, "made", PARAMETERS)
    cache.put("a", "1-2", frames[:1])
    path = entry(cache)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert cache.get("a", "1-2") is None
    for place in range(len(whole)):
        hit = bytearray(whole)
        hit[place] ^= 1 << (place % 8)
        path.write_bytes(hit)
        assert cache.get("a", "1-2") is None
    path.write_bytes(whole + b"\0")
    assert cache.get("a", "1-2") is None
    path.write_bytes(bytes(len(whole)))
    assert cache.get("a", "1-2") is None
    cache.put("a", "1-2", frames)  # and made again
    assert np.array_equal(cache.get("a", "1-2"), frames)


@pytest.mark.parametrize(
    "header",
    [b"no JSON\n", b"5\n", b'["a", "1-2", "O", [1]]\n', b'["a", "1-2", "uint8", [7]]\n',
     b'["a", "1-2", "uint8", ["x"]]\n', b'["a", "1-2", [], [1]]\n', b"[" * 99_999],
)  # fmt: skip
def test_an_entry_that_was_made_up_is_made_again(tmp_path, frames, header):
    cache = FrameCache(tmp_path, "made", PARAMETERS)
    cache.put("a", "1-2", frames)
    rest = header + bytes(16)
    entry(cache).write_bytes(b"SLTFRM2\n" + zlib.crc32(rest).to_bytes(4, "little") + rest)
    assert cache.get("a", "1-2") is None


@pytest.mark.fault(31)
def test_a_full_or_read_only_disk_costs_a_warning_and_no_run(tmp_path, frames, monkeypatch, caplog):
    cache = FrameCache(tmp_path, "made", PARAMETERS)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        for name in "abc":
            cache.put(name, "1-2", frames)
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert not list(cache.folder.glob("??/.*")) and cache.get("a", "1-2") is None
    (tmp_path / "file").touch()
    FrameCache(tmp_path / "file", "made", PARAMETERS).put("a", "1-2", frames)
    assert "Not a directory" in caplog.text


def build(folder, turns, barrier):
    frames = np.arange(512, dtype=np.uint8).reshape(4, 2, 8, 8)
    cache = FrameCache(folder, "made", PARAMETERS)
    barrier.wait()
    for turn in range(turns):
        cache.put(str(turn % 5), "1-2", frames)
        found = cache.get(str(turn % 5), "1-2")
        assert found is not None and np.array_equal(found, frames)


@pytest.mark.fault(31)
def test_two_processes_building_one_cache_never_see_half_an_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [context.Process(target=build, args=(tmp_path, 200, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = FrameCache(tmp_path, "made", PARAMETERS)
    assert len(list(cache.folder.glob("??/*.frames"))) == 5
    assert not list(cache.folder.glob("??/.*"))


def test_what_a_killed_process_left_is_swept_once_it_is_old(tmp_path, frames):
    cache = FrameCache(tmp_path, "made", PARAMETERS)
    cache.put("a", "1-2", frames)
    folder = entry(cache).parent
    for name, age in ((".x.frames.tmp-1", 120), (".y.frames.tmp-2", 10)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    FrameCache(tmp_path, "made", PARAMETERS).put("a", "1-2", frames)
    assert [path.name for path in folder.glob(".*")] == [".y.frames.tmp-2"]


def test_a_parameter_that_has_no_text_is_an_error(tmp_path):
    for value in (object(), float("nan")):
        with pytest.raises(DataError, match="a parameter is not JSON"):
            FrameCache(tmp_path, "made", {"value": value})


def test_names_of_any_kind_stay_inside_the_folder(tmp_path, frames):
    cache = FrameCache(tmp_path, "../../x y", PARAMETERS)
    for name in ("../../evil", "a\nb", "é" * 300, "/abs"):
        cache.put(name, "1-2", frames)
        assert np.array_equal(cache.get(name, "1-2"), frames)
    assert cache.folder.parent == tmp_path
    assert len(list(tmp_path.rglob("*.frames"))) == 4


def test_memory_keeps_by_name_and_fingerprint(frames):
    cache = MemoryCache()
    cache.put("a", "1", frames)
    assert cache.get("a", "1") is frames
    assert cache.get("a", "2") is None and cache.get("b", "1") is None
