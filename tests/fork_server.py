"""Starts Python from a process that has imported everything already: a fork each, no start-up.

Reads one JSON object a line: ``argv`` (as Python's: a script, -m and a module or -c and code, and
their options), ``out`` and ``err`` (files), ``cwd``, ``env`` (changes), ``session``: whether the
child leads a process group of its own, ``signals``, a list of [method, n, signum]: the child
signals itself after the n-th call of that method, ``file_limit``: bytes after which a file is too
large, or null, and ``fork_jobs``: whether runs that a comparison or accelerate starts are forks as
well, not processes of their own. Answers with the child's pid; its exit status goes to
FOLDER/<pid>.status.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
import resource
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.commands.launch as launch
import timm.data
import timm.optim
import timm.scheduler  # noqa: F401
import torch
from matplotlib import pyplot
from sklearn.datasets import load_digits

import spikeformer_lt.reports.run_page
import spikeformer_lt.tickets.surgery
import spikeformer_lt.training.experiment  # noqa: F401
from spikeformer_lt.config import parse
from spikeformer_lt.registry import create_model, list_datasets, list_searches
from spikeformer_lt.tickets.configs import MultiSpConfig
from spikeformer_lt.training import jobs
from spikeformer_lt.training.options import DataConfig, ModelConfig, RunConfig, TrainConfig


def signal_after(method: str, nth: int, signum: int) -> None:
    """Wrap a method, given as module:Class.method, so that its n-th call ends with a signal."""
    module, _, path = method.partition(":")
    owner, _, name = path.partition(".")
    cls = getattr(importlib.import_module(module), owner)
    inner, calls = getattr(cls, name), 0

    @functools.wraps(inner)
    def wrapper(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        result = inner(*args, **kwargs)
        if calls == nth:
            os.kill(os.getpid(), signum)
        return result

    setattr(cls, name, wrapper)


class Forked:
    """Stands for subprocess.Popen where a comparison or accelerate starts runs: no start-up."""

    def __init__(
        self, command: list[str], *, env: dict[str, str], stdout: Any = None, **_: object
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            logging.getLogger("spikeformer_lt").handlers.clear()
            os.environ.update(env)
            for stream in (1, 2) if stdout else ():
                os.dup2(stdout.fileno(), stream)
            end(be(command[1:]))

    def poll(self) -> int | None:
        return self._waited(os.WNOHANG)

    def wait(self) -> int | None:
        return self._waited(0)

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _waited(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def end(status: int) -> None:
    """End a fork without what its parent would do at its own end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(job: dict) -> int:
    """Be the recipe; return its exit status."""
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
    if job["session"]:
        os.setsid()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.stdin.close()
    if job["fork_jobs"]:
        jobs.subprocess = launch.subprocess = SimpleNamespace(
            **{**vars(subprocess), "Popen": Forked}
        )
    for method, nth, signum in job["signals"]:
        signal_after(method, nth, signum)
    if job["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"],) * 2)
    return be(job["argv"])


def be(argv: list[str]) -> int:
    """Run a script, -m and a module or -c and code, with options; return the exit status."""
    sys.argv = argv
    try:
        if argv[0] == "-c":
            sys.argv = ["-c", *argv[2:]]
            exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
        elif argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(argv[0]).parent)
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def warm() -> None:
    """Do once what each run would do again: imports, compiled kernels, read docstrings."""
    torch.set_num_threads(1)  # a kernel that has once had threads cannot be forked
    list_datasets(), list_searches()
    load_digits()
    model = create_model("spikformer_toy", image_size=16, embed_dim=16, T=2)
    model(torch.rand(2, 3, 16, 16)).mean().backward()
    with torch.no_grad():
        model.eval()(torch.rand(2, 3, 16, 16))
    for group in (DataConfig, ModelConfig, RunConfig, TrainConfig, MultiSpConfig):
        parse(group, [])
    pyplot.figure().savefig(os.devnull, format="png")


def main(folder: Path) -> None:
    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                status = str(os.waitstatus_to_exitcode(ended[1]))
                part = folder / f"{ended[0]}.part"
                part.write_text(status)
                part.rename(folder / f"{ended[0]}.status")

    warm()
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        if line == "end\n":  # an end of file may never come: forks of the tests hold the pipe, too
            return
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            end(run(json.loads(line)))
        print(pid, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
