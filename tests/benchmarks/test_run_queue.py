"""benchmarks/run_queue.py with a recipe that prints, counts epochs and honours SIGTERM."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "run_queue.py"
COLUMNS = ("run", "command", "commit", "images/s measured", "hours planned", "hours done", "state")
RECIPE = """
import argparse, json, os, pathlib, signal, sys, time

parser = argparse.ArgumentParser()
for name in ("epochs", "data.root", "kind", "ticket", "train.threads", "train.checkpoint-steps",
             "train.batch-size", "run.out", "run.resume"):
    parser.add_argument("--" + name)
given = vars(parser.parse_args())
assert (given["train.threads"], given["run.resume"]) == ("1", "auto")
assert os.environ["OMP_NUM_THREADS"] == "1" and os.nice(0) == 19
out = pathlib.Path(given["run.out"])
out.mkdir(exist_ok=True)
steps = int(given["train.checkpoint_steps"])
(out / "config.json").write_text(json.dumps({"train": {"checkpoint_steps": steps}}))
(out / "options.json").write_text(json.dumps(given))
if given["kind"] == "fails":
    sys.exit(2)
saved = out / "last" / "ckpt-1" / "epoch"
done = int(saved.read_text()) if saved.exists() else 0

def stop(signum, frame):
    if given["kind"] != "forgets":
        saved.parent.mkdir(exist_ok=True, parents=True)
        saved.write_text(str(done))
        (out / "last" / "LATEST").write_text("ckpt-1")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
while done < int(given["epochs"]):
    time.sleep(0.05)
    done += 1
    with (out / "log.txt").open("a") as log:
        log.write(f"joint epoch {done}/{given['epochs']}  40 images/s\\n")
    rows = "".join(f"joint,{i},{10 + i}\\n" for i in range(1, done + 1))
    (out / "summary.csv").write_text("phase,epoch,val_accuracy\\n" + rows)
(out / "report.json").write_text("{}")
"""


class Queue:
    """A folder with one clone, and a queue of commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "queue.csv"
        python = folder / "code-abc1234" / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        (folder / "code-abc1234" / "recipe.py").write_text(RECIPE)
        self.started: list[subprocess.Popen[str]] = []

    def write(self, **commands: str) -> None:
        """Write rows of run and command; "waits:" before a command holds it back."""
        with self.file.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for run, command in commands.items():
                state = "waits for code" if command.startswith("waits:") else "planned"
                words = f"recipe.py --data.root DATA/cifar {command.removeprefix('waits:')}"
                hours = "3.0" if run.startswith("long") else "1.0"
                table.writerow([run, words, "abc1234", "", hours, "", state])

    def start(self, what: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), what, str(self.folder), "--queue", str(self.file),
             *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def call(self, what: str, *options: str) -> tuple[int, str]:
        process = self.start(what, *options)
        text = process.communicate(timeout=250)[0]
        return process.returncode, text

    def states(self) -> dict[str, str]:
        assert self.call("status")[0] == 0
        return {row["run"]: row["state"] for row in csv.DictReader(self.file.open())}

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 250
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path)
    yield made
    for file in (tmp_path / "logs").glob("*.pid"):
        pid = int(file.read_text())
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and os.fsencode(tmp_path) in command.read_bytes():
            os.kill(pid, signal.SIGKILL)
    for process in made.started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", ["run", "stop", "status"])
@pytest.mark.parametrize("lost", ["folder", "queue"])
def test_a_folder_or_a_queue_that_is_not_there_is_named_and_not_made(
    what: str, lost: str, queue: Queue
) -> None:
    queue.write(first="--epochs 1")
    given = queue.folder, queue.file
    if lost == "folder":
        queue.folder = queue.folder / "nowhere"
    else:
        queue.file = queue.folder / "nowhere"
    code, told = queue.call(what)
    assert code == 2 and told.endswith("nowhere: there is no such file or folder\n")
    assert not (given[0] / "nowhere").exists() and "planned" in given[1].read_text()


def test_no_jobs_at_all_are_refused(queue: Queue) -> None:
    queue.write(a="--epochs 1")
    code, told = queue.call("run", "--jobs", "0")
    assert code == 2 and "--jobs 0 starts nothing" in told and not queue.path("a").exists()


def test_rows_run_in_order_and_one_that_needs_another_waits_for_it(queue: Queue) -> None:
    queue.write(
        second="--epochs 2 --ticket RUNS/first/ticket", first="--epochs 3 --train.batch-size 32",
        third="--epochs 1 --kind fails", never="waits:--epochs 1",
    )  # fmt: skip
    code, text = queue.call("run", "--jobs", "1")
    assert code == 1, text  # third failed
    starts = [line.split()[1] for line in text.splitlines() if line.endswith(" starts")]
    assert starts == ["first", "second", "third"], text
    options = (queue.path("second") / "options.json").read_text()
    assert f'"ticket": "{queue.path("first")}/ticket"' in options
    assert f'"data.root": "{queue.folder}/data/cifar"' in options
    assert '"train.checkpoint_steps": "562"' in (queue.path("first") / "options.json").read_text()
    assert queue.states() == {
        "second": "done", "first": "done", "third": "failed", "never": "waits for code"
    }  # fmt: skip
    row = next(row for row in csv.DictReader(queue.file.open()) if row["run"] == "first")
    assert row["images/s measured"] == "40" and float(row["hours done"]) < 0.01
    assert "3/3" in queue.call("status")[1]


def test_stop_lets_all_save_and_a_new_queue_goes_on_where_they_were(queue: Queue) -> None:
    queue.write(a="--epochs 100000", b="--epochs 100000", c="--epochs 1")
    running = queue.start("run")
    until(lambda: all((queue.path(name) / "summary.csv").exists() for name in "ab"))
    assert queue.states() == {"a": "running", "b": "running", "c": "planned"}
    assert "another queue runs" in queue.call("run")[1]
    code, text = queue.call("stop")
    assert code == 0 and "a: saved" in text and "b: saved" in text, text
    assert running.wait(1) == 0  # stop waits for the queue, too
    assert queue.states() == {"a": "stopped", "b": "stopped", "c": "planned"}
    reached = int((queue.path("a") / "last" / "ckpt-1" / "epoch").read_text())
    assert reached > 0
    queue.write(a=f"--epochs {reached + 1}", b="--epochs 1")
    assert queue.call("run")[0] == 0
    epochs = (queue.path("a") / "log.txt").read_text().splitlines()
    assert len(epochs) == reached + 1 and queue.states() == {"a": "done", "b": "done"}


def test_a_run_that_does_not_save_is_told_of(queue: Queue) -> None:
    queue.write(a="--epochs 100000 --kind forgets")
    queue.start("run")
    until(lambda: (queue.path("a") / "summary.csv").exists())
    code, text = queue.call("stop")
    assert code == 1 and "a: NOT saved" in text


def test_runs_that_lost_their_queue_are_stopped_and_counted(queue: Queue) -> None:
    queue.write(a="--epochs 100000")
    lost = queue.start("run")
    until(lambda: (queue.path("a") / "summary.csv").exists())
    lost.kill()
    lost.wait()
    assert queue.states() == {"a": "running"}
    code, text = queue.call("stop")
    assert code == 0 and "a: saved" in text


def test_a_long_run_that_is_kept_goes_on_on_another_machine(queue: Queue, tmp_path: Path) -> None:
    queue.write(long="--epochs 100000", short="--epochs 100000")
    queue.start("run")
    until(lambda: all((queue.path(run) / "summary.csv").exists() for run in ("long", "short")))
    assert queue.call("stop")[0] == 0
    older = queue.path("long") / "last" / "ckpt-0" / "epoch"
    older.parent.mkdir()
    older.write_text("0")
    code, text = queue.call("keep")
    assert code == 0 and "long: kept" in text and "short" not in text
    kept = tmp_path / "queue" / "long.zip"
    once, sessions = kept.read_bytes(), tmp_path / "sessions.csv"
    assert queue.call("keep")[0] == 0 and kept.read_bytes() == once
    lines = sessions.read_text()
    sessions.write_text("run,start,end,cpu_s,status\nlong,1,2,1,143\n")  # another machine's
    assert "long: NOT kept" in queue.call("keep")[1] and kept.read_bytes() == once
    sessions.write_text(lines)
    kept.write_text("version https://git-lfs.github.com/spec/v1")
    assert "long: NOT kept" in queue.call("keep")[1]
    kept.write_bytes(once)
    reached = int((queue.path("long") / "last" / "ckpt-1" / "epoch").read_text())
    files = {
        path.relative_to(queue.path("long")).as_posix(): path.read_bytes()
        for path in queue.path("long").rglob("*")
        if path.is_file() and path != older
    }
    shutil.rmtree(tmp_path / "runs")
    sessions.unlink()
    assert queue.states() == {"long": "stopped", "short": "planned"}
    queue.write(long=f"--epochs {reached + 1}")
    code, text = queue.call("run")
    assert code == 0 and "long goes on from" in text, text
    log = (queue.path("long") / "log.txt").read_bytes()
    assert log.startswith(files["log.txt"]) and log.count(b"\n") == reached + 1
    last = queue.path("long") / "last"
    assert {path.name for path in last.iterdir()} == {"LATEST", "ckpt-1"}
    assert (last / "LATEST").read_bytes() == files["last/LATEST"]
    assert (tmp_path / "sessions.csv").read_text().count("long,") == 2
    assert kept.exists() and queue.states() == {"long": "done"}
    assert queue.call("keep") == (0, "") and not kept.exists()


def test_a_kept_run_that_cannot_be_read_stops_no_other(queue: Queue, tmp_path: Path) -> None:
    queue.write(long="--epochs 1", short="--epochs 1")
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "long.zip").write_text("version https://git-lfs.github.com/spec/v1")
    code, text = queue.call("run")
    assert code == 1 and "long does not start" in text and "not a zip file" in text
    assert queue.states() == {"long": "stopped", "short": "done"}
