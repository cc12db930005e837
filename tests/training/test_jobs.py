"""Jobs: finished ones are kept, a failure is named, the others go on."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace

import pytest

from spikeformer_lt.errors import ConfigError, SpikeformerError
from spikeformer_lt.training.jobs import Job, run_jobs

SCRIPT = """
import os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--run.out") + 1])
out.mkdir(parents=True, exist_ok=True)
print("threads", os.environ.get("OMP_NUM_THREADS"))
if "fail" in sys.argv:
    sys.exit("it broke")
(out / "report.json").write_text(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(SCRIPT)
    return str(path)


def test_jobs_run_with_their_own_directory_and_resume(script, tmp_path):
    jobs = [Job("a", seed, tmp_path / f"a-{seed}", (script, "--x", "1")) for seed in (0, 1, 2)]
    run_jobs(jobs, at_once=2)
    for job in jobs:
        assert job.report.read_text().endswith(f"--run.out {job.folder} --run.resume auto")
    assert "threads" in (tmp_path / "a-0.out").read_text()


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("1000", 4), ("", 4), ("many", 4)])
def test_threads_are_shared_out_and_fewer_may_be_asked_for(
    script, tmp_path, monkeypatch, asked, threads
):
    monkeypatch.setattr("spikeformer_lt.training.jobs.cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    run_jobs([Job("a", 0, tmp_path / "a", (script,))], at_once=2)
    assert f"threads {threads}\n" in (tmp_path / "a.out").read_text()


def test_a_job_alone_chooses_its_threads_unless_they_are_asked_for(script, tmp_path, monkeypatch):
    monkeypatch.setattr("spikeformer_lt.training.jobs.cpu_count", lambda: 8)
    for asked, threads in (("", "None"), ("3", "3")):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        if not asked:
            monkeypatch.delenv("OMP_NUM_THREADS")
        run_jobs([Job("a", 0, tmp_path / threads, (script,))])
        assert f"threads {threads}\n" in (tmp_path / f"{threads}.out").read_text()


def test_finished_jobs_are_not_run_again(script, tmp_path):
    job = Job("a", 0, tmp_path / "a", (script,))
    job.folder.mkdir()
    job.report.write_text("kept")
    run_jobs([job])
    assert job.report.read_text() == "kept"


@pytest.mark.fault(61)
def test_a_finished_run_of_other_options_is_not_taken_for_this_one(script, tmp_path):
    job = Job("a", 0, tmp_path / "a", (script, "--x", "1", "--y"))
    job.folder.mkdir()
    job.report.write_text("kept")
    made = f"{script} --y --x 1 --run.out {job.folder} --run.resume auto"
    (job.folder / "env.json").write_text(json.dumps({"command": made}))
    run_jobs([job])
    other = replace(job, command=(script, "--x", "2", "--y"))
    with pytest.raises(ConfigError, match=r"finished with other options: --y --x 1 -> --x 2 --y;"):
        run_jobs([other])
    (job.folder / "env.json").write_text(json.dumps({"command": "a quotation ' that does not end"}))
    run_jobs([other])
    assert job.report.read_text() == "kept"


def test_a_failed_job_is_named_after_the_others_have_finished(script, tmp_path):
    bad = Job("bad", 7, tmp_path / "bad", (script, "fail"))
    good = Job("good", 0, tmp_path / "good", (script,))
    with pytest.raises(
        SpikeformerError, match=r"1 of 2 runs failed; the first, bad seed 7.*it broke"
    ):
        run_jobs([bad, good])
    assert good.report.exists()
    assert "it broke" in (tmp_path / "bad.out").read_text()
    assert sys.executable


STOPPED = """
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--run.out") + 1])
out.mkdir(parents=True, exist_ok=True)
came = []
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda signum, frame: came.append(signum))
(out / "ready").touch()
until = time.monotonic() + 60
while not came and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.5)  # saving; a second signal would come now
(out / "signals").write_text(" ".join(str(int(signum)) for signum in came))
sys.exit(143)
"""
COMPARISON = """
import sys
from pathlib import Path
from spikeformer_lt.errors import Interrupted
from spikeformer_lt.training.jobs import Job, run_jobs
script, folder = sys.argv[1], Path(sys.argv[2])
try:
    run_jobs([Job("a", seed, folder / f"a-{seed}", (script,)) for seed in range(3)], at_once=2)
except Interrupted as stop:
    print(stop)
    sys.exit(128 + stop.signum)
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.fault(5)
def test_a_signal_to_the_whole_group_reaches_each_run_once_and_is_waited_for(
    forks, tmp_path, signum, code
):
    """As a terminal's Ctrl-C does: two signals would make a run stop without a save."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    process = forks.start("-c", COMPARISON, tmp_path / "stopped.py", tmp_path, session=True)
    ready = [tmp_path / f"a-{seed}" / "ready" for seed in (0, 1)]
    until = time.monotonic() + 60
    while not all(path.exists() for path in ready):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signum)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == (
        "3 of 3 runs are not finished; they are saved: start the comparison again to go on\n"
    )
    for seed in (0, 1):
        assert (tmp_path / f"a-{seed}" / "signals").read_text() == str(int(signal.SIGTERM))
    assert not (tmp_path / "a-2").exists()


LEFT = """
import pathlib, sys, time
from spikeformer_lt.training.run import take_lock
out = pathlib.Path(sys.argv[1])
out.mkdir()
lock = take_lock(out)
print("held", flush=True)
time.sleep(1)
if "finish" in sys.argv:
    (out / "report.json").write_text("by the one before")
"""


@pytest.mark.parametrize("end", ["finish", "die"])
def test_a_run_that_a_killed_comparison_left_behind_is_waited_for(forks, script, tmp_path, end):
    left = forks.start("-c", LEFT, tmp_path / "a", end)
    assert left.readline() == "held\n"
    job = Job("a", 0, tmp_path / "a", (script,))
    run_jobs([job])
    assert left.wait(20) == 0
    assert (job.report.read_text() == "by the one before") == (end == "finish")
    assert (tmp_path / "a.out").exists() == (end == "die")
