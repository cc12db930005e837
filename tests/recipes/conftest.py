"""Runs of recipes: by a server that forks, and one whole run that several tests look at."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from spikeformer_lt.config import last_of_each

ROOT = Path(__file__).resolve().parents[2]
SMALL = shlex.split(
    "--data.limit-train 64 --data.limit-test 40 --data.image-size 16 --model.name spikformer_toy "
    "--model.embed-dim 16 --model.T 2 --multisp.epochs 1 --multisp.stem-epochs 1 --train.cpu"
)
LAUNCH = shlex.split(
    "-c 'from accelerate.commands.launch import main; main()' --num_processes 1 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no"
)


@dataclass(frozen=True)
class Ended:
    """What a user sees of a recipe that has ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error is."""
        assert self.code == 2, (self.code, self.err)
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


class Recipes:
    """Runs recipes one after another, each in a process of its own."""

    small = ("--data.name", "digits", *SMALL)
    small_anywhere = tuple(SMALL)

    def __init__(self, forks: Any) -> None:
        self.forks, self.child = forks, None

    def start(self, recipe: str | Path, *argv: object, **how: Any) -> int:
        """Start a recipe of ours, or the one at a path, as `forks.start`; returns its pid."""
        if self.child is not None:
            self.wait()
        path = recipe if isinstance(recipe, Path) else ROOT / "recipes" / f"{recipe}.py"
        self.child = self.forks.start(path, *last_of_each(map(str, argv)), **how)
        self.files = self.child.files
        return self.child.pid

    def wait(self) -> Ended:
        """Wait for what `start` started."""
        child, self.child = self.child, None
        return Ended(child.wait(3000), *(file.read_text("utf-8") for file in self.files))

    def run(self, recipe: str | Path, *argv: object, **kwargs: Any) -> Ended:
        """Start a recipe and wait for it."""
        self.start(recipe, *argv, **kwargs)
        return self.wait()

    def help_of(self, recipe: str) -> dict[str, str]:
        """What --help says of each option: name -> metavar, words, default."""
        ended = self.run(recipe, "--help")
        assert (ended.code, ended.err) == (0, "")
        plain = re.sub(r"\x1b\[[0-9;]*m|[│╭╰╮╯─]", " ", ended.out)
        starts = list(re.finditer(r"^ *--([\w.-]+)", plain, re.MULTILINE))
        ends = [at.start() for at in starts[1:]] + [len(plain)]
        return {
            at[1].replace("-", "_"): " ".join(plain[at.end() : end].split())
            for at, end in zip(starts, ends, strict=True)
            if re.search(r"\((default:|required\))", plain[at.end() : end])  # not of every program
        }


@pytest.fixture(scope="session")
def recipes(forks: Any) -> Recipes:
    return Recipes(forks)


@dataclass(frozen=True)
class Finished:
    """A finished run, the command that made it, and what it printed."""

    path: Path
    options: tuple[str, ...]
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.path / "report.json").read_text())


@pytest.fixture(scope="session")
def finished(forks: Any, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Finished:
    """A run that is started as the README says, through accelerate.

    It is made once for all workers of pytest-xdist; no test changes it.
    """
    if worker_id == "master":
        return finished_run(forks, tmp_path_factory.mktemp("finished") / "run")
    folder = tmp_path_factory.getbasetemp().parent / "finished"
    with FileLock(f"{folder}.lock"):
        if not (folder / "said.json").is_file():
            folder.mkdir(exist_ok=True)
            run = finished_run(forks, folder / "run")
            (folder / "said.json").write_text(json.dumps([run.options, run.out, run.err]))
    options, out, err = json.loads((folder / "said.json").read_text())
    return Finished(folder / "run", tuple(options), out, err)


def finished_run(forks: Any, out: Path) -> Finished:
    """Start it, and wait."""
    # Enough of a training that no layer is dead and the accuracy is not that of a constant answer.
    more = "--train.batch-size 8 --multisp.epochs 8 --model.v-threshold 0.2 --train.optim.lr 0.01"
    options = tuple(last_of_each((*Recipes.small, *shlex.split(more), "--run.out", str(out))))
    recipe = ROOT / "recipes" / "multisp_cifar.py"
    child = forks.start(*LAUNCH, recipe, *options, cwd=out.parent, fork_jobs=True)
    said = child.communicate()
    assert child.returncode == 0, said[1]
    return Finished(out, options, *said)
