"""Two processes on the CPU: one network, one ticket, each sample once; a lost one is named."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt import Ticket
from spikeformer_lt.reports.finished import open_run
from spikeformer_lt.tickets.surgery import model_from_ticket
from spikeformer_lt.training.checkpoint import CheckpointStore
from spikeformer_lt.training.evaluate import PREDICTIONS, evaluate, read_predictions

pytestmark = pytest.mark.recipe

ROOT = Path(__file__).resolve().parents[2]
MULTISP = ROOT / "recipes" / "multisp_cifar.py"
SMALL = shlex.split(
    "--data.name digits --data.limit-train 64 --data.limit-test 41 --data.image-size 16 "
    "--model.name spikformer_toy --model.embed-dim 16 --model.T 2 --model.v-threshold 0.2 "
    "--train.cpu --train.batch-size 8 --train.optim.lr 0.01"
)
WATCHED = """
import gc, json, runpy, sys
from torch import initial_seed
from torch.nn.parallel import DistributedDataParallel
from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.ranks import digest
from spikeformer_lt.training.trainer import PhaseRun

save, end, own = Experiment.save_ticket, PhaseRun._end_epoch, []

def noted(self, speed):
    fired = [sum(map(float, self.watch._sums.values())), sum(self.watch._counts.values())]
    own.append([*self.sums.tolist(), self.at.seen, *fired, initial_seed()])
    return end(self, speed)

def shown(self, ticket):
    ticket = save(self, ticket)
    world, rank = self.trainer.world, self.trainer.rank
    loader = eval_loader(self.data.test, 16, rank=rank, world_size=world)
    seen = [int(i) for _, _, indices in loader for i in indices]
    wrappers = sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
    print("SEEN", json.dumps({"rank": rank, "mask": ticket.mask.sha256, "seen": seen, "own": own,
                              "weights": digest(ticket.tensors), "wrappers": wrappers}))
    return ticket

Experiment.save_ticket, PhaseRun._end_epoch = shown, noted
sys.argv[0] = RECIPE
runpy.run_path(RECIPE, run_name="__main__")
"""


class Ranks:
    """Two ranks of a recipe, forked from the recipe server."""

    def __init__(self, recipes: Any, folder: Path, recipe: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fork = Path(__file__).with_name("rank_fork.py")
        recipes.start(fork, folder, 2, port, recipe, *SMALL, *options, cwd=folder)
        self.recipes, self.folder, self.said = recipes, folder, recipes.files[0]
        self.pids = [int(pid) for pid in self.line(0, 60).split()]

    def line(self, number: int, timeout: float) -> str:
        """A line of the forking process: the pids, then the exit statuses."""
        until = time.monotonic() + timeout
        while self.lines < number + 1:
            assert time.monotonic() < until, self.err(0)
            time.sleep(0.02)
        return self.said.read_text().splitlines()[number]

    @property
    def lines(self) -> int:
        return self.said.read_text().count("\n") if self.said.exists() else 0

    def err(self, rank: int) -> str:
        path = self.folder / f"{rank}.err"
        return path.read_text() if path.exists() else ""

    def out(self, rank: int) -> str:
        return (self.folder / f"{rank}.out").read_text()

    def end(self, timeout: float) -> list[int]:
        return [int(status) for status in self.line(1, timeout).split()]

    def wait_for(self, path: Path, timeout: float = 60) -> None:
        until = time.monotonic() + timeout
        while not path.exists():
            assert time.monotonic() < until and self.lines < 2, self.err(0)
            time.sleep(0.05)

    def close(self) -> None:
        for pid in self.pids if self.lines < 2 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.recipes.child is not None:  # starting the next ones has waited for these
            self.recipes.wait()


Start = Callable[..., Ranks]


@pytest.fixture
def start(recipes: Any) -> Iterator[Start]:
    """Start ranks, and end those that a test left."""
    started: list[Ranks] = []

    def run(folder: Path, recipe: Path, *options: str) -> Ranks:
        started.append(Ranks(recipes, folder, recipe, *options))
        return started[-1]

    yield run
    for ranks in started:
        ranks.close()


@pytest.fixture
def long_run(start: Start, tmp_path: Path) -> Ranks:
    """Two ranks amid a training that would take hours."""
    options = ("--multisp.epochs", "100000", "--train.timeout-s", "10")  # a busy machine needs some
    ranks = start(tmp_path / "ranks", MULTISP, *options, "--run.out", str(tmp_path / "run"))
    ranks.wait_for(tmp_path / "run" / "summary.csv")
    return ranks


def test_two_ranks_make_one_ticket_and_count_each_sample_once(start: Start, tmp_path: Path) -> None:
    recipe = tmp_path / "watched.py"
    recipe.write_text(WATCHED.replace("RECIPE", repr(str(MULTISP))))
    out = tmp_path / "run"
    ranks = start(tmp_path / "ranks", recipe, "--multisp.epochs", "3", "--run.out", str(out))
    assert ranks.end(100) == [0, 0], ranks.err(0) + ranks.err(1)
    said = seen(ranks)
    assert [one["rank"] for one in said] == [0, 1]
    assert said[0]["mask"] == said[1]["mask"] == Ticket.load(out / "ticket").mask.sha256
    assert said[0]["weights"] == said[1]["weights"]
    # One model-sized bucket a phase would stay with a wrapper.
    assert [one["wrappers"] for one in said] == [0, 0]
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(said[0]["own"]) == len(said[1]["own"])
    for row, *ranks_own in zip(rows, said[0]["own"], said[1]["own"], strict=True):
        loss, right, images, fired, neurons, _ = (
            sum(pair) for pair in zip(*ranks_own, strict=True)
        )
        assert images == 64 and float(row["train_accuracy"]) == pytest.approx(100 * right / images)
        assert float(row["train_loss"]) == pytest.approx(loss / images * 8)
        assert float(row["firing_rate"]) == pytest.approx(fired / neurons)
        assert ranks_own[0][-1] != ranks_own[1][-1], "the noise of two ranks is the same"
    # Without duplicates, and nothing is left out, though 41 is no multiple of 2.
    assert sorted(said[0]["seen"] + said[1]["seen"]) == list(range(41))
    assert abs(len(said[0]["seen"]) - len(said[1]["seen"])) <= 16
    report = json.loads((out / "report.json").read_text())
    assert report["test_count"] == 41 == sum(map(sum, report["confusion"]))
    assert (out / "firing.csv").read_text().startswith("phase,epoch,conv_pep.stages.0.act,")
    # One process counts the same.
    run = open_run(out, model_from_ticket)
    alone = evaluate(run.model, run.splits.test, run.splits, Alone(), batch_size=16)
    assert (alone.count, alone.accuracy) == (41, report["test_accuracy"])
    assert alone.confusion.tolist() == report["confusion"]
    saved, _ = read_predictions(out / PREDICTIONS)
    for column in ("index", "label", "predicted"):
        assert torch.equal(getattr(saved, column), getattr(alone.predictions, column))
    # Batches of other sizes may take other kernels.
    assert torch.allclose(saved.logits, alone.predictions.logits, atol=1e-5)
    assert json.loads((out / "env.json").read_text())["world_size"] == 2


@pytest.mark.slow
def test_a_static_graph_makes_the_same_ticket(start: Start, tmp_path: Path) -> None:
    recipe = tmp_path / "watched.py"
    told = "def told(self, *given, made=DistributedDataParallel.__init__, **more):\n"
    told += "    made(self, *given, **more)\n    print('STATIC', self.static_graph)\n"
    told += "DistributedDataParallel.__init__ = told\n"
    text = WATCHED.replace("RECIPE", repr(str(MULTISP)))
    recipe.write_text(text.replace("sys.argv[0] =", f"{told}sys.argv[0] ="))
    found = []
    for name, options in (("as it comes", ()), ("static", ("--train.static-graph",))):
        out = ("--run.out", str(tmp_path / name))
        ranks = start(tmp_path / f"{name} ranks", recipe, "--multisp.epochs", "2", *options, *out)
        assert ranks.end(100) == [0, 0], ranks.err(0) + ranks.err(1)
        assert f"STATIC {name == 'static'}" in ranks.out(0)
        found.append([(one["mask"], one["weights"]) for one in seen(ranks)])
    assert found[0] == found[1]


def seen(ranks: Ranks) -> list[dict[str, Any]]:
    """What each rank said of its ticket and of the samples that it had to evaluate."""
    return [
        json.loads(line.removeprefix("SEEN "))
        for rank in (0, 1)
        for line in ranks.out(rank).splitlines()
        if line.startswith("SEEN ")
    ]


@pytest.mark.parametrize(
    "line",
    [
        "imp_cifar --imp.sparsity 0.6 --imp.rounds 1 --imp.epochs 1 --epochs 1",
        pytest.param(
            "early_bird_cifar --early-bird.kind channels --early-bird.epochs 1 --epochs 1",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "sparse_training_cifar --method snip --sparsity 0.6 --epochs 1", marks=pytest.mark.slow
        ),
        pytest.param(
            "sparse_training_cifar --method grasp --sparsity 0.6 --epochs 1", marks=pytest.mark.slow
        ),
        "sparse_training_cifar --method rigl --sparsity 0.6 --epochs 2 --every 2",
    ],
)
def test_every_kind_of_search_ends_with_one_mask_on_all_ranks(
    start: Start, tmp_path: Path, line: str
) -> None:
    name, *options = line.split()
    recipe, out = tmp_path / "watched.py", tmp_path / "run"
    recipe.write_text(WATCHED.replace("RECIPE", repr(str(ROOT / "recipes" / f"{name}.py"))))
    ranks = start(tmp_path / "ranks", recipe, *options, "--run.out", str(out))
    assert ranks.end(100) == [0, 0], ranks.err(0) + ranks.err(1)
    one, other = seen(ranks)
    mask = Ticket.load(out / "ticket").mask
    assert one["mask"] == other["mask"] == mask.sha256 and mask.sparsity > 0.3
    assert one["weights"] == other["weights"]
    rates = (out / "firing.csv").read_text().splitlines()
    assert len(rates) == len((out / "summary.csv").read_text().splitlines()) > 1


REFUSED = """
import runpy, sys
from spikeformer_lt.errors import CheckpointError
from spikeformer_lt.training import checkpoint

def refuse(*content):
    raise CheckpointError("no room")

checkpoint.write_checkpoint = refuse
sys.argv[0] = RECIPE
runpy.run_path(RECIPE, run_name="__main__")
"""


@pytest.mark.slow
def test_a_save_that_is_refused_ends_both_ranks_within_the_next_epoch(
    start: Start, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "refused.py", tmp_path / "run"
    recipe.write_text(REFUSED.replace("RECIPE", repr(str(MULTISP))))
    ranks = start(tmp_path / "ranks", recipe, "--multisp.epochs", "9", "--run.out", str(out))
    assert ranks.end(100) == [2, 2], ranks.err(0) + ranks.err(1)
    assert "no room" in ranks.err(0) and "rank 0: no room" in ranks.err(1)
    # The first epoch's save: the row of the second one is never written.
    assert len((out / "summary.csv").read_text().splitlines()) == 2


class Alone:
    """What evaluation asks of an accelerator, for one process on the CPU."""

    device, process_index, num_processes = torch.device("cpu"), 0, 1

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


def test_a_killed_rank_is_named_and_the_run_goes_on_after_it(
    long_run: Ranks, tmp_path: Path
) -> None:
    os.kill(long_run.pids[1], signal.SIGKILL)
    begun = time.monotonic()
    assert long_run.end(30) == [2, -signal.SIGKILL]
    assert time.monotonic() - begun < 20
    error = long_run.err(0).splitlines()[-1]
    assert error.startswith(f"error: rank 1 (process {long_run.pids[1]} on ")
    assert "died" in error and "--run.resume auto" in error
    assert "Traceback" not in long_run.err(0)


def test_a_rank_that_hangs_is_named_within_the_time_out(long_run: Ranks) -> None:
    os.kill(long_run.pids[1], signal.SIGSTOP)
    until = time.monotonic() + 40
    while "error: " not in long_run.err(0):
        assert time.monotonic() < until, long_run.err(0)
        time.sleep(0.1)
    assert f"rank 1 (process {long_run.pids[1]} on " in long_run.err(0)
    assert "is stopped" in long_run.err(0)
    os.kill(long_run.pids[1], signal.SIGKILL)
    assert long_run.end(20)[0] == 2


def test_a_signal_to_one_rank_stops_both_after_the_same_step(
    long_run: Ranks, tmp_path: Path
) -> None:
    os.kill(long_run.pids[1], signal.SIGTERM)
    assert long_run.end(30) == [143, 143], long_run.err(0) + long_run.err(1)
    stopped = [
        [line for line in long_run.err(rank).splitlines() if line.startswith("stopped: ")]
        for rank in (0, 1)
    ]
    assert len(stopped[0]) == 1 and stopped[0] == stopped[1]
    assert list((tmp_path / "run" / "last").iterdir())


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@contextlib.contextmanager
def torchrun(
    folder: Path, *options: object, ranks: int = 2, said: str = "said"
) -> Iterator[subprocess.Popen[bytes]]:
    """Ranks of torchrun, with its options before and those of the recipe behind the recipe."""
    launch = shlex.split(f"-P -m torch.distributed.run --nproc_per_node {ranks}")
    with (folder / said).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *launch, *map(str, options)], stdout=log, stderr=log,
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        yield process
    finally:
        for pid in (*descendants(process.pid), process.pid) if process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for_save(run: Path, process: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + 400
    while not (run / "last" / "LATEST").exists():
        assert time.monotonic() < until and process.poll() is None, said.read_text()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.fault(5)
def test_a_signal_to_the_whole_tree_of_torchrun_saves_once(tmp_path: Path) -> None:
    options = [*SMALL, "--multisp.epochs", "100000", "--run.out", tmp_path / "run"]
    with torchrun(tmp_path, "--standalone", MULTISP, *options) as process:
        wait_for_save(tmp_path / "run", process, tmp_path / "said")
        for pid in (*descendants(process.pid), process.pid):
            os.kill(pid, signal.SIGTERM)
        process.wait(60)
    text = (tmp_path / "said").read_text()
    assert text.count("saving after this step") == 2, text  # one a rank
    places = set(re.findall(r"stopped at (.*); everything is saved", text))
    position = CheckpointStore(tmp_path / "run" / "last").load().state["position"]
    epoch, step = position["epoch"], position["step"]
    where = f"epoch {epoch + 1} step {step}" if step else f"the end of epoch {epoch}"
    assert places == {f"joint {where}"}, text


STUBS = {  # of two nodes that are this machine
    "sbatch": "export SLURM_JOB_ID=7 SLURM_JOB_NAME=multisp SLURM_NNODES=2\n"
    'export SLURM_JOB_NODELIST="n[0-1]"\nexec bash "$1"',
    "srun": '"$@" & first=$!; "$@" & wait $! && wait $first',
    "scontrol": "echo 127.0.0.1; echo 127.0.0.1",
}


@pytest.mark.slow
def test_the_script_for_slurm_saves_when_its_tree_is_signalled_and_goes_on(tmp_path: Path) -> None:
    """That of docs/processes.md on two nodes of one rank, by stubs of Slurm's commands."""
    page = (ROOT / "docs" / "processes.md").read_text()
    (text,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH --job-name=multisp\n.*?)```", page, re.S)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = [*SMALL, "--multisp.epochs 30 --train.checkpoint-steps 1 --train.timeout-s 60"]
    for theirs, ours in (
        ("--data.name cifar10 --data.root /data --train.mixed-precision bf16", " ".join(small)),
        ("--nproc_per_node 4", "--nproc_per_node 1"), (":29500", f":{port}"),
        ("/shared", str(tmp_path)),
    ):  # fmt: skip
        assert text.count(theirs) == 1
        text = text.replace(theirs, ours)
    (tmp_path / "multisp.sbatch").write_text(text)
    for name, line in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = tmp_path / "runs" / "multisp-multisp"
    for turn in ("first", "again"):
        with (tmp_path / turn).open("w") as log:
            command = [tmp_path / "sbatch", tmp_path / "multisp.sbatch"]
            job = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=env)
        try:
            if turn == "first":
                wait_for_save(run, job, tmp_path / turn)
                tree = [job.pid, *descendants(job.pid)]
                for pid in tree:
                    os.kill(pid, signal.SIGTERM)
                assert job.wait(60) == -signal.SIGTERM
                until = time.monotonic() + 60
                while not all(map(ended, tree[1:])):
                    assert time.monotonic() < until, (tmp_path / turn).read_text()
                    time.sleep(0.1)
            assert turn == "first" or job.wait(300) == 0, (tmp_path / turn).read_text()
        finally:
            for pid in (*descendants(job.pid), job.pid) if job.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
    first, again = ((tmp_path / turn).read_text() for turn in ("first", "again"))
    assert first.count("saving after this step") == 2 and "everything is saved" in first, first
    assert "resumed joint at epoch" in again and (run / "report.json").is_file()


def ended(pid: int) -> bool:
    """Whether a process is gone, or is only waited for by nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_torchrun_starts_ranks_again_that_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Elastic restart: a rank is killed, all are started anew and resume by themselves."""
    found = []
    for name in ("alone", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        options = [*SMALL, "--multisp.epochs", "12", "--train.checkpoint-steps", "1"]
        options += ["--train.timeout-s", "20", "--run.out", folder / "run", "--run.resume", "auto"]
        restarts = ["--standalone", "--max-restarts", "1"]
        with torchrun(folder, *restarts, MULTISP, *options) as process:
            if name == "killed":
                wait_for_save(folder / "run", process, folder / "said")
                os.kill(descendants(process.pid)[-1], signal.SIGKILL)
            assert process.wait(900) == 0, (folder / "said").read_text()
        assert ("resumed joint at epoch" in (folder / "said").read_text()) == (name == "killed")
        found.append((Ticket.load(folder / "run" / "ticket"), folder / "run" / "summary.csv"))
    (one, rows), (other, again) = found
    assert one.mask == other.mask and rows.read_text() == again.read_text()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


MEETING = """
import os, signal, sys, time
from pathlib import Path
import torch
from accelerate import Accelerator
from spikeformer_lt.training import process_group
again = Path("died").exists()
if again and os.environ["RANK"] == "1":
    time.sleep(3)  # the first rank finds the address of the one that died
Accelerator(cpu=True, kwargs_handlers=[process_group(60)])
torch.distributed.all_reduce(torch.ones(1))
print("met after", os.environ["TORCHELASTIC_RESTART_COUNT"], "restarts", flush=True)
if not again and sys.argv[1] == "dies":
    Path("died").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if not again:
    time.sleep(100)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_nodes_that_count_their_restarts_otherwise_meet_again(tmp_path: Path) -> None:
    """Two launchers as on two machines: only the one whose rank dies counts a restart."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"--rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "meeting.py").write_text(MEETING)
    options = [*place.split(), "--nnodes", "2", "--max-restarts", "1", tmp_path / "meeting.py"]
    with (
        torchrun(tmp_path, *options, "dies", ranks=1, said="dies") as one,
        torchrun(tmp_path, *options, "lives", ranks=1, said="lives") as other,
    ):
        ended = one.wait(200), other.wait(200)
    told = [(tmp_path / name).read_text() for name in ("dies", "lives")]
    assert ended == (0, 0), told
    counts = [re.findall(r"met after (\d) restarts", text) for text in told]
    assert counts == [["0", "1"], ["0", "0"]], told


def test_two_processes_that_became_one_are_told_of(forks: Any, tmp_path: Path) -> None:
    """A run is started by what the launcher starts it with."""
    command = shlex.split(
        "-m accelerate.commands.launch --num_processes 2 --cpu --num_machines 1 "
        "--mixed_precision no --dynamo_backend no"
    )
    (tmp_path / "told.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    given = json.loads(forks.start(*command, tmp_path / "told.py", cwd=tmp_path).communicate()[0])
    options = [*SMALL, "--multisp.epochs", "1", "--run.out", tmp_path / "run"]
    ended = forks.start(MULTISP, *options, cwd=tmp_path, env=given)
    text = "".join(ended.communicate())
    assert ended.returncode == 0, text
    assert "x 1 processes" in text
    assert "asked for several processes and started one" in text and "torchrun" in text
