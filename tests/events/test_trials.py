from __future__ import annotations

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.formats import read_trials
from spikeformer_lt.events.split import Sample

CSV = "class,startTime_usec,endTime_usec\r\n1,100,200\r\n2,200,300\r\n2,350,400\r\n"


@pytest.fixture
def home(tmp_path):
    for name in ("user01_led", "user24_natural_light"):
        (tmp_path / f"{name}.aedat").touch()
        (tmp_path / f"{name}_labels.csv").write_text(CSV)
    (tmp_path / "trials_to_train.txt").write_text("user01_led.aedat\n\n")
    (tmp_path / "trials_to_test.txt").write_text("user24_natural_light.aedat")
    return tmp_path


def test_stretches_have_their_file_times_class_from_0_and_person(home):
    parts = read_trials(home, 11)
    name = "user01_led.aedat"
    assert parts["train"] == [
        Sample(name, 100, 200, 0, "1"),
        Sample(name, 200, 300, 1, "1"),
        Sample(name, 350, 400, 1, "1"),
    ]  # fmt: skip
    assert [s.group for s in parts["test"]] == ["24"] * 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("12,100,200", "line 2: '12,100,200' is no class"),
        ("0,100,200", "is no class"),
        ("1,200,200", "later end"),
        ("1,300,200", "later end"),
        ("1,-5,200", "is no class"),
        ("1,1e3,2e3", "is no class"),
        ("1,2", "is no class"),
        ("=cmd(),1,2", "is no class"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(home, line, words):
    (home / "user01_led_labels.csv").write_text(f"class,start,end\n{line}\n")
    with pytest.raises(DataError, match=r"user01_led_labels\.csv") as caught:
        read_trials(home, 11)
    assert words in str(caught.value)


def test_missing_files_and_names_that_lead_elsewhere_are_refused(home):
    (home / "user24_natural_light.aedat").unlink()
    with pytest.raises(DataError, match=r"user24.*is missing; trials_to_test\.txt lists it"):
        read_trials(home, 11)
    (home / "user01_led_labels.csv").unlink()
    with pytest.raises(DataError, match=r"cannot read .*user01_led_labels\.csv"):
        read_trials(home, 11)
    for name in ("../user01_led.aedat", "/etc/passwd", "user01_led.aedat.exe", "led.aedat"):
        (home / "trials_to_train.txt").write_text(name)
        with pytest.raises(DataError, match=r"trials_to_train\.txt'?, line 1"):
            read_trials(home, 11)
    (home / "trials_to_train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*trials_to_train"):
        read_trials(home, 11)
