from __future__ import annotations

import numpy as np
import pytest

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.formats import FORMS, FileReader, form_of
from spikeformer_lt.events.recording import Sensor
from spikeformer_lt.events.split import Sample
from spikeformer_lt.events.validate import validate


def test_every_form_comes_back_event_for_event_and_is_recognised(files, tmp_path):
    events = files.some_events(200, span_us=100_000)
    names = {"npy": "a.npy", "bin": "a.bin", "aedat2": "a.aedat", "aedat31": "b.aedat"}
    for form, name in names.items():
        getattr(files, f"write_{form}")(tmp_path / name, events)
        assert form_of(tmp_path / name) == form
        raw = FileReader(tmp_path, form)(Sample(name))
        assert np.array_equal(validate(raw.events, Sensor(128, 128))[0], events)
    files.write_aedat4(tmp_path / "a.aedat4", events)
    assert form_of(tmp_path / "a.aedat4") == "aedat4"
    assert {*names, "aedat4", "cifar10_dvs"} == set(FORMS)
    (tmp_path / "c.aedat").write_bytes((tmp_path / "a.aedat4").read_bytes())
    assert form_of(tmp_path / "c.aedat") == "aedat4"


def test_upright_pictures_and_stretches_and_milliseconds(files, tmp_path):
    events = files.some_events(200)
    files.write_aedat2(tmp_path / "a.aedat", events)
    turned = FileReader(tmp_path, "cifar10_dvs")(Sample("a.aedat")).events
    assert np.array_equal(turned["x"], 127 - events["y"])
    files.write_aedat31(tmp_path / "b.aedat", events)
    half = FileReader(tmp_path, "aedat31")(Sample("b.aedat", 0, 500_000)).events
    assert np.array_equal(half, events[events["t_us"] < 500_000])
    files.write_npy(tmp_path / "a.npy", events, ticks=1000)
    reader = FileReader(tmp_path, "npy", microseconds_per_tick=1000)
    assert np.array_equal(reader(Sample("a.npy")).events["t_us"], events["t_us"] // 1000 * 1000)


def test_a_fingerprint_changes_with_the_file(files, tmp_path):
    import os

    reader = FileReader(tmp_path, "npy")
    files.write_npy(tmp_path / "a.npy", files.some_events(5))
    first = reader.fingerprint(Sample("a.npy"))
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    assert reader.fingerprint(Sample("a.npy")) != first
    with pytest.raises(DataError, match=r"gone\.npy"):
        reader.fingerprint(Sample("gone.npy"))


def test_what_is_no_recording_is_called_what_it_is(tmp_path):
    (tmp_path / "a.aedat").write_bytes(b"<html>")
    with pytest.raises(DataError, match="not AEDAT 2, 3.1 or 4 but an HTML or XML page"):
        form_of(tmp_path / "a.aedat")
    with pytest.raises(DataError, match="has no name of a recording"):
        form_of(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="did you mean 'aedat4'"):
        FileReader(tmp_path, "aedat")


def test_what_a_reader_depends_on_is_in_its_repr_and_where_it_lies_is_not(tmp_path):
    told = repr(FileReader(tmp_path, "npy", ("t_us", "x", "y", "p"), 1000))
    assert "1000" in told and "'t_us', 'x'" in told and str(tmp_path) not in told
