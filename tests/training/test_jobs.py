"""Jobs: finished ones are kept, a failure is named, the others go on."""

from __future__ import annotations

import collections
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spikeformer_lt import Ticket
from spikeformer_lt.errors import ConfigError, SpikeformerError
from spikeformer_lt.training import jobs as module
from spikeformer_lt.training.jobs import Claims, Job, run_jobs, submit_jobs

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


@pytest.fixture
def elsewhere(monkeypatch):
    """Lets the next runner believe that it is on another machine, where time passes at once."""

    def move(name, stale=0.0):
        monkeypatch.setattr(module, "_machine", lambda: name)
        monkeypatch.setattr(module, "BEAT_S", 0.0)
        monkeypatch.setattr(module, "STALE_S", stale)

    return move


def test_a_run_has_one_runner_until_it_is_given_back(tmp_path):
    job = Job("a", 0, tmp_path / "runs" / "a", ("x",))
    first, second = Claims([job]), Claims([job])
    assert first.take(job) and not second.take(job) and not first.take(job)
    first.end(job, "released")
    assert second.take(job) and not first.take(job)
    second.end(job, "failed", 3)
    assert first.failure(job) == 3 and not first.take(job)
    later = Claims([job])  # the comparison is started again
    assert later.failure(job) == 0 and later.take(job)
    later.end(job, "done")
    assert not first.take(job) and Claims([job]).take(job)  # its report was removed


def test_of_many_runners_each_run_has_one(tmp_path):
    jobs = [Job("a", seed, tmp_path / f"a-{seed}", ("x",)) for seed in range(40)]
    taken, start = collections.Counter(), threading.Barrier(8)

    def runner():
        claims = Claims(jobs)
        start.wait()
        taken.update(job.seed for job in jobs if claims.take(job))

    threads = [threading.Thread(target=runner) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == dict.fromkeys(range(40), 1)


def test_a_runner_that_is_gone_is_followed_at_once_on_its_own_machine_alone(tmp_path, elsewhere):
    job = Job("a", 0, tmp_path / "a", ("x",))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for machine, free in (("here", True), ("there", False)):
        elsewhere(machine, stale=1000.0)
        (tmp_path / ".a.claim-7").write_text(f"running here {gone.pid} host token")
        assert Claims([job]).take(job) == free
        (tmp_path / ".a.claim-8").unlink(missing_ok=True)


def test_a_silent_runner_is_followed_and_learns_that_it_was(tmp_path, elsewhere):
    job = Job("a", 0, tmp_path / "a", ("x",))
    elsewhere("one")
    first = Claims([job])
    assert first.take(job) and first.beat() == []
    elsewhere("two", stale=0.3)
    second = Claims([job])
    until = time.monotonic() + 0.6
    beats = 0
    while time.monotonic() < until:  # two clocks may differ by any time: only change counts
        beats += 1
        os.utime(tmp_path / ".a.claim-1", (beats, beats))
        assert not second.take(job)
    while not second.take(job):
        assert time.monotonic() < until + 30
    assert time.monotonic() >= until + 0.2
    assert first.beat() == [job] and first.beat() == [] == second.beat()
    first.end(job, "released")  # it has nothing to give back
    assert not Claims([job]).take(job)


RUNNER = """
import sys
from pathlib import Path
from spikeformer_lt.training import jobs
jobs.BEAT_S = 0.2
script, folder = sys.argv[1], Path(sys.argv[2])
runs = [jobs.Job("a", n, folder / f"a-{n}", (script, str(n))) for n in range(8)]
jobs.run_jobs(runs, shared=True)
print("all", sum(run.report.exists() for run in runs))
"""
SLOW_JOB = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--run.out") + 1])
out.mkdir(parents=True, exist_ok=True)
with open(out.parent / "begun", "a") as log:
    log.write(sys.argv[1] + " ")
time.sleep(60 if sys.argv[1] == "0" and not (out / "second").exists() else 0.1)
(out / "report.json").write_text("{}")
"""


def test_two_runners_divide_the_runs_and_one_that_is_killed_loses_nothing(forks, tmp_path):
    (tmp_path / "job.py").write_text(SLOW_JOB)
    first = forks.start("-c", RUNNER, tmp_path / "job.py", tmp_path)
    wait_for(tmp_path / "begun")
    second = forks.start("-c", RUNNER, tmp_path / "job.py", tmp_path)
    for n in range(1, 8):  # the first run lasts a minute: it is passed over
        wait_for(tmp_path / f"a-{n}" / "report.json")
    assert not (tmp_path / "a-0" / "report.json").exists()
    (tmp_path / "a-0" / "second").touch()
    os.kill(first.pid, signal.SIGKILL)
    assert second.communicate(timeout=60)[0] == "all 8\n"
    begun = collections.Counter((tmp_path / "begun").read_text().split())
    assert begun == {**dict.fromkeys(map(str, range(1, 8)), 1), "0": 2}


def wait_for(path, seconds=120):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)


SBATCH = """#!PYTHON
# A cluster of one node: the tasks of an array one after the other, again where that is asked for.
import os, pathlib, re, subprocess, sys
home, script = pathlib.Path(sys.argv[0]).parent, sys.argv[1]
if len(sys.argv) == 2:
    subprocess.Popen([sys.argv[0], script, "run"], start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job 7")
    sys.exit()
tasks = re.search(r"--array=0-([0-9]+)", open(script).read())
for task in range(int(tasks[1]) + 1):
    env = dict(os.environ, SLURM_JOB_ID=str(900 + task), SLURM_ARRAY_JOB_ID="7",
               SLURM_ARRAY_TASK_ID=str(task), SLURM_JOB_NODELIST="node0", SLURM_NTASKS="1")
    again = True
    while again:
        subprocess.run(["bash", script], env=env)
        again = (home / "requeued").exists()
        (home / "requeued").unlink(missing_ok=True)
        with open(home / "ends", "a") as log:
            log.write("again " if again else "end ")
"""
SLURM = {
    "srun": "while [[ $1 == -* ]]; do shift $([[ $1 == -*=* || $1 == --unbuffered ]] && echo 1 || "
    'echo 2); done; echo $$ >HOME/task; exec "$@" >>HOME/said 2>&1',
    "scontrol": "[ $1 = requeue ] && touch HOME/requeued",
    "sacct": "echo 'JobID|State|NodeList'",
    "scancel": "exit 0",
}
PREEMPTED = """
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--run.out") + 1])
out.mkdir(parents=True, exist_ok=True)
saved, came = out / "saved", []
signal.signal(signal.SIGTERM, lambda signum, frame: came.append(signum))
steps = int(saved.read_text()) if saved.exists() else 0
(out / "ready").touch()
while steps == 0 and sys.argv[1] == "long":
    time.sleep(0.02)
    if came:
        saved.write_text("7")
        sys.exit(143)
(out / "report.json").write_text(str(steps))
"""


class NeverStopped:
    """Stands for a request to stop in a thread, where no signal can be caught."""

    requested = signum = 0

    def __init__(self, signals=()):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of stubs of Slurm's commands, which are found first."""
    pytest.importorskip("submitit")
    home = tmp_path / "slurm"
    home.mkdir()
    (home / "sbatch").write_text(SBATCH.replace("PYTHON", sys.executable))
    for name, text in SLURM.items():
        (home / name).write_text(f"#!/bin/bash\n{text}\n".replace("HOME", str(home)))
    for path in home.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "StopRequest", NeverStopped)
    return home


def preempt(slurm, jobs, begun):
    """Submit jobs and, as Slurm warns before it preempts, signal the first when a file is there."""
    done = []
    thread = threading.Thread(target=lambda: done.append(submit_jobs(jobs)), daemon=True)
    thread.start()
    wait_for(begun, 200)
    os.kill(int((slurm / "task").read_text()), signal.SIGUSR2)
    thread.join(250)
    assert done == [None]
    assert (slurm / "ends").read_text().split()[:2] == ["again", "end"]
    submit_jobs(jobs)  # all are finished: nothing is submitted


@pytest.mark.slow
def test_slurm_runs_what_it_is_given_and_requeues_what_it_preempts(slurm, tmp_path):
    """Against a stub of Slurm's commands: a preempted run saves, is queued again and goes on."""
    runs = tmp_path / "runs"
    (tmp_path / "job.py").write_text(PREEMPTED)
    jobs = [Job(way, 0, runs / way, (str(tmp_path / "job.py"), way)) for way in ("long", "short")]
    preempt(slurm, jobs, runs / "long" / "ready")
    assert [job.report.read_text() for job in jobs] == ["7", "0"]


@pytest.mark.slow
def test_a_training_that_slurm_preempts_ends_at_the_bits_of_one_that_was_left_alone(
    slurm, tmp_path
):
    small = shlex.split(
        "--data.name digits --data.limit-train 128 --data.limit-test 40 --data.image-size 16 "
        "--model.name spikformer_toy --model.embed-dim 16 --model.T 2 --train.batch-size 8 "
        "--train.cpu --train.checkpoint-steps 1 --multisp.epochs 6"
    )
    recipe = str(Path(__file__).resolve().parents[2] / "recipes" / "multisp_cifar.py")
    job, alone = (Job(n, 0, tmp_path / "runs" / n, (recipe, *small)) for n in ("queued", "alone"))
    preempt(slurm, [job, alone], job.folder / "last" / "LATEST")  # the first of the two
    assert "resumed joint at epoch" in Path(f"{job.folder}.out").read_text()
    one, other = (Ticket.load(each.folder / "ticket") for each in (alone, job))
    assert one.mask == other.mask
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    one, other = ((each.folder / "summary.csv").read_text() for each in (alone, job))
    assert one == other


@pytest.mark.slow
def test_submitits_local_executor_runs_jobs_and_names_a_failure(script, tmp_path):
    pytest.importorskip("submitit")
    jobs = [Job("a", seed, tmp_path / f"a-{seed}", (script, "--x", "1")) for seed in (0, 1)]
    submit_jobs(jobs, options=("cluster=local",))
    assert all(job.report.exists() for job in jobs)
    bad = Job("bad", 7, tmp_path / "bad", (script, "fail"))
    with pytest.raises(SpikeformerError, match=r"1 of 1 runs failed; the first, bad seed 7; see"):
        submit_jobs([bad], options=("cluster=local",))
    assert "it broke" in (tmp_path / "bad.out").read_text()


def test_wrong_options_for_slurm_are_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    jobs = [Job("a", 0, tmp_path / "a", ("x",))]
    monkeypatch.setenv("PATH", os.path.dirname(shutil.which("bash")))
    with pytest.raises(ConfigError, match="slurm='': .*srun"):
        submit_jobs(jobs)
    with pytest.raises(ConfigError, match="slurm='cluster=local colour=red'"):
        submit_jobs(jobs, options=("cluster=local", "colour=red"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'spikeformer_lt\[cluster\]'"):
        submit_jobs(jobs)
