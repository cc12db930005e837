from __future__ import annotations

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.__main__ import main


@pytest.fixture
def folder(files, tmp_path):
    for i in range(3):
        files.write_npy(tmp_path / "cat" / f"{i}.npy", files.some_events(50 + i, seed=i))
    return tmp_path


def test_a_clean_folder_is_0_a_fault_1_and_wrong_input_2(folder, capsys):
    assert main(["check", str(folder), "--sensor", "128x128"]) == 0
    assert "no faults" in capsys.readouterr().out
    assert main(["check", str(folder), "--sensor", "64x64"]) == 1
    out = capsys.readouterr().out
    assert "coordinates:" in out and "must be in [0, 64)" in out
    for wrong in (
        [str(folder / "gone")],
        [str(folder), "--sensor", "0"],
        [str(folder), "--data", "x"],
    ):
        assert main(["check", *wrong]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
    with pytest.raises(DataError):
        main(["check", str(folder / "gone"), "--debug"])
    with pytest.raises(SystemExit, match="2"):
        main(["check"])


def test_json_columns_and_unit_are_options(folder, capsys):
    rows = np.array([[0, 1, 2, 1], [7, 3, 4, 0]], np.int32)
    np.save(folder / "cat" / "9.npy", rows)
    for i in range(3):
        (folder / "cat" / f"{i}.npy").unlink()
    assert main(["check", str(folder), "--columns", "t_us,x,y,p", "--unit", "ms", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["recordings"]
    assert (told["duration_us"], told["kept"], told["on"], told["class"]) == (7000, 2, 1, "cat")


def test_the_callers_logging_stays_as_it_was(folder):
    log = logging.getLogger("spikeformer_lt")
    level = log.level
    main(["check", str(folder)])
    main(["check", str(folder / "gone")])
    assert log.level == level


@pytest.mark.recipe
def test_it_runs_as_a_user_types_it(folder):
    (folder / "cat" / "0.npy").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "spikeformer_lt.events", "check", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "unreadable: 1" in done.stdout and "0.npy' is empty" in done.stdout
    assert done.stderr == ""
