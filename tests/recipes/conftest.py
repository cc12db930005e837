"""Runs of recipes: by a server that forks, and one whole run that several tests look at."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
    "-P -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no"
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

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.running = folder, 0, False
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("recipe_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        )

    def start(
        self,
        recipe: str | Path,
        *argv: object,
        signals: Sequence[tuple[str, int, int]] = (),
        file_limit: int | None = None,
        fork_jobs: bool = False,
        cwd: Path = ROOT,
    ) -> int:
        """Start a recipe of ours, or the one at a path; returns its pid."""
        if self.running:
            self.wait()
        self.count += 1
        path = recipe if isinstance(recipe, Path) else ROOT / "recipes" / f"{recipe}.py"
        argv = last_of_each(map(str, argv))
        self.files = [self.folder / f"{self.count}.{name}" for name in ("out", "err")]
        job = {
            "argv": [str(path), *argv],
            **{name: str(file) for name, file in zip(("out", "err"), self.files, strict=True)},
            "cwd": str(cwd),
            "signals": list(signals),
            "file_limit": file_limit,
            "fork_jobs": fork_jobs,
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        self.running = True
        return int(self._answer())

    def wait(self) -> Ended:
        """Wait for what `start` started."""
        code = int(self._answer())
        self.running = False
        return Ended(code, *(file.read_text("utf-8") for file in self.files))

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
        }

    def close(self) -> None:
        """End the server."""
        if self.running:
            self.wait()
        self.server.communicate("end\n", timeout=60)

    def _answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipes]:
    server = Recipes(tmp_path_factory.mktemp("recipes"))
    yield server
    server.close()


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
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Finished:
    """A run that is started as the README says, through accelerate, in a process of its own.

    It is made once for all workers of pytest-xdist; no test changes it.
    """
    if worker_id == "master":
        return finished_run(tmp_path_factory.mktemp("finished") / "run")
    folder = tmp_path_factory.getbasetemp().parent / "finished"
    with FileLock(f"{folder}.lock"):
        if not (folder / "said.json").is_file():
            folder.mkdir(exist_ok=True)
            run = finished_run(folder / "run")
            (folder / "said.json").write_text(json.dumps([run.options, run.out, run.err]))
    options, out, err = json.loads((folder / "said.json").read_text())
    return Finished(folder / "run", tuple(options), out, err)


def finished_run(out: Path) -> Finished:
    """Start it, and wait."""
    # Enough of a training that no layer is dead and the accuracy is not that of a constant answer.
    more = "--train.batch-size 8 --multisp.epochs 8 --model.v-threshold 0.2 --train.optim.lr 0.01"
    options = tuple(last_of_each((*Recipes.small, *shlex.split(more), "--run.out", str(out))))
    ended = subprocess.run(
        [sys.executable, *LAUNCH, str(ROOT / "recipes" / "multisp_cifar.py"), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=out.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return Finished(out, options, ended.stdout, ended.stderr)
