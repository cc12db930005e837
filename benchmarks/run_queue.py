"""Keep long runs going on idle cores: a queue of commands that save, stop and go on.

python benchmarks/run_queue.py run FOLDER       # until every row is done; SIGTERM stops it
python benchmarks/run_queue.py stop FOLDER      # ask all runs to save and end; check that they did
python benchmarks/run_queue.py status FOLDER    # print the state of every run and update the queue
python benchmarks/run_queue.py keep FOLDER      # save long runs that stopped beside the queue

The queue is a CSV file, docs/results/queue.csv unless --queue names another; `run` reads it again
before each start, so that rows can be added meanwhile. FOLDER holds `data`, the data sets, and for
each commit of the queue a clone `code-COMMIT` with its own `.venv`. It receives `runs`, `logs` and
`sessions.csv`. A command names a recipe and its options; in it DATA stands for FOLDER/data, CODE
for the clone and RUNS for FOLDER/runs, where a run that is named must be done first. Each run has
one thread and the lowest priority, or that of --nice, and saves about every ten minutes. Hours are
CPU hours. `keep` writes the newest checkpoint of each run that stopped, and is planned for three
hours or more, to RUN.zip in a folder `queue` beside the queue, and removes those of runs that are
done; `run` goes on from there, on another machine too, where FOLDER has nothing of the run. It must
have the same path there, as runs hold those of their data, and the runs that the command names.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from zipfile import ZIP_LZMA, BadZipFile, ZipFile, ZipInfo

COLUMNS = ("run", "command", "commit", "images/s measured", "hours planned", "hours done", "state")
QUEUE = Path(__file__).resolve().parents[1] / "docs" / "results" / "queue.csv"
HELD = ("waits for code", "cut")  # states that a person sets; all others are found out
CHECKPOINT_S, POLL_S, PATIENCE_S = 600, 0.5, 900
LONG_H = 3.0  # hours from which a run is kept beside the queue
PLANES = 4  # bytes of a number, each kept by itself: those of signs and exponents pack well
USUAL_SPEED = 30.0  # images/s, where none was measured yet
STOPPED = (143, -signal.SIGTERM)
UNREADABLE = (OSError, BadZipFile, KeyError)  # what a file that was kept may raise

Row = dict[str, str]


class Folder:
    """Where the runs live: FOLDER of the command line."""

    def __init__(self, path: Path, nice: int = 19) -> None:
        self.path, self.nice = path.resolve(), str(nice)
        self.runs, self.logs = self.path / "runs", self.path / "logs"
        self.sessions, self.lock = self.path / "sessions.csv", self.path / "queue.pid"
        for folder in (self.runs, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.sessions.exists():
            self.sessions.write_text("run,start,end,cpu_s,status\n")

    def command(self, row: Row) -> list[str]:
        """Words that start or resume a run."""
        code = self.path / f"code-{row['commit']}"
        places = {"DATA": str(self.path / "data"), "RUNS": str(self.runs), "CODE": str(code)}
        pattern = re.compile(rf"^({'|'.join(places)})(?=/|$)")
        words = shlex.split(row["command"])
        recipe, *options = (pattern.sub(lambda at: places[at[1]], word) for word in words)
        python = str(code / ".venv" / "bin" / "python")
        return [
            *("nice", "-n", self.nice, python, "-P", str(code / recipe)),
            *options,
            *("--train.threads", "1", "--train.checkpoint-steps", str(self.checkpoint_steps(row))),
            *("--run.out", str(self.runs / row["run"]), "--run.resume", "auto"),
        ]

    def checkpoint_steps(self, row: Row) -> int:
        """Optimizer steps in ten minutes; a run that has begun keeps its number."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            config = json.loads((self.runs / row["run"] / "config.json").read_text())
            return int(config["train"]["checkpoint_steps"])
        batch = re.search(r"--train\.batch-size[ =](\d+)", row["command"])
        speed = float(row["images/s measured"] or USUAL_SPEED)
        return max(1, round(CHECKPOINT_S * speed / int(batch[1] if batch else 64)))

    def pid(self, run: str) -> int:
        """Process of a run, or 0."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.logs / f"{run}.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return pid if os.fsencode(self.runs / run) in words else 0
        return 0

    def queue(self) -> int:
        """Process that keeps the runs going, or 0."""
        with self.lock.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                return int(lock.read() or 0)
        return 0

    def done(self, run: str) -> bool:
        """Whether a run has ended with a report."""
        return (self.runs / run / "report.json").is_file()

    def state(self, row: Row) -> str:
        """State of a run: what the queue holds back or has done, or what the folder says."""
        run = row["run"]
        if row["state"] in (*HELD, "done"):  # results of other folders are kept in the queue alone
            return row["state"]
        if self.done(run) or self.pid(run):
            return "done" if self.done(run) else "running"
        ends = [one["status"] for one in read_csv(self.sessions) if one["run"] == run]
        if ends and int(ends[-1]) not in (0, *STOPPED):
            return "failed"
        return "stopped" if (self.runs / run / "last").is_dir() else "planned"

    def ready(self, row: Row) -> bool:
        """Whether the clone of a row and the runs that its command names are there."""
        named = re.findall(r"(?<!\S)RUNS/([^/\s]+)", row["command"])
        return all(map(self.done, named)) and (self.path / f"code-{row['commit']}").is_dir()

    def seconds(self, run: str) -> float:
        """CPU seconds of a run in all its sessions, with the one that goes on."""
        total = sum(float(one["cpu_s"]) for one in read_csv(self.sessions) if one["run"] == run)
        pid = self.pid(run)
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        return total

    def start(self, row: Row) -> subprocess.Popen[bytes]:
        """Start or resume a run in a session of its own, which no Ctrl-C reaches."""
        own = {"OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(self.path / "cache")}
        with (self.logs / f"{row['run']}.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(row), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd=self.path, env={**os.environ, **own},
            )  # fmt: skip
        with contextlib.suppress(OSError):  # Linux weighs sessions before processes
            Path(f"/proc/{process.pid}/autogroup").write_text(self.nice)
        (self.logs / f"{row['run']}.pid").write_text(f"{process.pid}\n")
        return process


def read_csv(path: Path) -> list[Row]:
    """Rows of a table; none where there is no file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def there(text: str) -> Path:
    """A path of the command line that must exist."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file or folder")
    return Path(text)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run(folder: Folder, queue: Path, jobs: int) -> int:
    """Keep `jobs` runs going in the order of the queue; 0 where all that could run are done."""
    if folder.queue():
        sys.exit(f"error: another queue runs in {folder.path}")
    lock = folder.lock.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    print(os.getpid(), file=lock, flush=True)
    signals: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, _: signals.append(signum))
    going: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    failed: set[str] = set()
    told = False
    while True:
        for name, (process, begun) in list(going.items()):
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                del going[name]
                spent = usage.ru_utime + usage.ru_stime
                session = (name, round(begun), round(time.time()), round(spent), process.returncode)
                with folder.sessions.open("a") as file:
                    file.write(",".join(map(str, session)) + "\n")
                say(f"{name} ended with status {process.returncode}")
                failed |= set() if folder.done(name) else {name}
        if signals and not told:
            told = True
            for process, _ in going.values():
                process.send_signal(signal.SIGTERM)  # once: a second one ends a run unsaved
        rows = [] if told else read_csv(queue)
        alive = sum(bool(folder.pid(row["run"])) for row in rows)
        for row in rows:
            waits = row["run"] not in failed and folder.state(row) not in (*HELD, "done", "running")
            if alive < jobs and waits and folder.ready(row):
                own, file = folder.runs / row["run"], kept_file(queue, row["run"])
                if file.exists() and not own.exists() and not bring_back(folder, file, own):
                    failed.add(row["run"])
                    continue
                going[row["run"]] = folder.start(row), time.time()
                alive += 1
                say(f"{row['run']} starts")
        if not going and (told or not alive):
            return 1 if failed and not told else 0
        time.sleep(POLL_S)


def kept_file(queue: Path, run: str) -> Path:
    return queue.parent / "queue" / f"{run}.zip"


def keep(folder: Folder, queue: Path) -> int:
    """Write what each long run needs to go on elsewhere; remove what runs that are done needed."""
    if folder.queue():
        sys.exit(f"error: a queue runs in {folder.path}: stop it first")
    for row in read_csv(queue):
        run, file = folder.runs / row["run"], kept_file(queue, row["run"])
        state, newest = folder.state(row), run / "last" / "LATEST"
        if state == "done":
            file.unlink(missing_ok=True)
        long = float(row["hours planned"] or 0) >= LONG_H
        if state != "stopped" or not long or not newest.is_file():
            continue
        own = [one for one in read_csv(folder.sessions) if one["run"] == row["run"]]
        sessions = [",".join(one.values()) for one in own]
        try:
            known = unpacked(file)["sessions"].decode().split() if file.exists() else []
        except UNREADABLE as error:
            say(f"{row['run']}: NOT kept, {file}: {error}")
            continue
        if set(known) - set(sessions):
            say(f"{row['run']}: NOT kept, {file.name} has been trained on elsewhere")
            continue
        checkpoint = newest.with_name(newest.read_text().strip())
        files = {path for path in run.rglob("*") if path.is_file()}
        files = {p for p in files if not p.is_relative_to(newest.parent)} | {newest}
        files |= {path for path in checkpoint.rglob("*") if path.is_file()}
        data = {path.relative_to(run).as_posix(): path.read_bytes() for path in files}
        data["sessions"] = "".join(f"{line}\n" for line in sessions).encode()
        file.parent.mkdir(exist_ok=True)
        new = file.with_suffix(".tmp")
        with ZipFile(new, "w", ZIP_LZMA) as kept:
            for name, plane in sorted(product(data, range(PLANES))):
                info = ZipInfo(f"{name}/{plane}")  # of one date: equal runs have equal bytes
                kept.writestr(info, data[name][plane::PLANES], ZIP_LZMA)
        new.replace(file)
        say(f"{row['run']}: kept, {file.stat().st_size:,} bytes")
    return 0


def unpacked(file: Path) -> dict[str, bytearray]:
    """Contents by name of a file that :func:`keep` wrote."""
    data = {}
    with ZipFile(file) as kept:
        for name in {name.rpartition("/")[0] for name in kept.namelist()}:
            if name.startswith("/") or ".." in name.split("/"):
                raise BadZipFile(f"{name} lies outside")
            planes = [kept.read(f"{name}/{plane}") for plane in range(PLANES)]
            data[name] = bytearray(sum(map(len, planes)))
            for plane, content in enumerate(planes):
                data[name][plane::PLANES] = content
    return data


def bring_back(folder: Folder, file: Path, run: Path) -> bool:
    """Lay out a run that :func:`keep` wrote; False, and a word, for a file that is none."""
    try:
        data = unpacked(file)
        sessions = data.pop("sessions").decode().splitlines(keepends=True)
        new = run.with_name(f"{run.name}.tmp")
        shutil.rmtree(new, ignore_errors=True)
        for name, content in data.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
        new.replace(run)
    except UNREADABLE as error:
        say(f"{run.name} does not start: {file}: {error}")
        return False
    known = folder.sessions.read_text().splitlines(keepends=True)
    with folder.sessions.open("a") as table:
        table.writelines(line for line in sessions if line not in known)
    say(f"{run.name} goes on from {file}")
    return True


def stop(folder: Folder) -> int:
    """Ask all runs to save and end; 1 where one did not."""
    begun = time.time()
    names = [path.stem for path in folder.logs.glob("*.pid") if folder.pid(path.stem)]
    queue = folder.queue()
    for pid in [queue] if queue else filter(None, map(folder.pid, names)):
        os.kill(pid, signal.SIGTERM)  # a queue passes it on
    while (folder.queue() or any(map(folder.pid, names))) and time.time() < begun + PATIENCE_S:
        time.sleep(0.2)
    lost = 0
    for name in names:
        files = (folder.runs / name / "last").rglob("*")
        saved = max((file.stat().st_mtime for file in files), default=0.0)
        safe = not folder.pid(name) and (folder.done(name) or saved >= begun - 1)
        lost += not safe
        say(f"{name}: {'saved' if safe else 'NOT saved'}")
    return int(lost > 0)


def status(folder: Folder, queue: Path) -> int:
    """Print the state of every run, and write what is known of it into the queue."""
    rows, here = read_csv(queue), {one["run"] for one in read_csv(folder.sessions)}
    print(f"{'run':34} {'state':14} {'epoch':>16} {'images/s':>8} {'hours':>13} {'val %':>6}")
    for row in rows:
        path = folder.runs / row["run"]
        row["state"] = folder.state(row)
        if row["state"] == "planned" and kept_file(queue, row["run"]).exists():
            row["state"] = "stopped"
        text = (path / "log.txt").read_text() if (path / "log.txt").exists() else ""
        speeds = re.findall(r"(\d+) images/s", text)
        row["images/s measured"] = max(speeds, key=int, default=row["images/s measured"])
        if row["run"] in here or folder.pid(row["run"]):  # no run that was copied into the folder
            row["hours done"] = f"{folder.seconds(row['run']) / 3600:.2f}"
        epochs = re.findall(r"(\S+) epoch (\d+/\d+)", text)
        values = [one["val_accuracy"] for one in read_csv(path / "summary.csv")]
        best = max((float(value) for value in values if value), default=None)
        print(
            f"{row['run']:34} {row['state']:14} {' '.join(epochs[-1]) if epochs else '':>16} "
            f"{row['images/s measured']:>8} {row['hours done']:>5} of {row['hours planned']:>4} "
            f"{'' if best is None else format(best, '6.2f')}"
        )
    new = queue.with_name(f"{queue.name}.tmp")
    with new.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    new.replace(queue)
    return 0


def main() -> int:
    """Do what the command line says."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=("run", "stop", "status", "keep"))
    parser.add_argument("folder", type=there)
    parser.add_argument("--queue", type=there, default=QUEUE)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--nice", type=int, default=19, choices=range(20), metavar="0...19")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs} starts nothing: 1 or more")
    folder = Folder(given.folder, given.nice)
    if given.what == "run":
        return run(folder, given.queue, given.jobs)
    if given.what == "keep":
        return keep(folder, given.queue)
    return stop(folder) if given.what == "stop" else status(folder, given.queue)


if __name__ == "__main__":
    sys.exit(main())
