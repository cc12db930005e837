"""Runs searches of the contract in forks of a process that has imported everything already.

Reads one JSON object a line: ``case``, ``network``, ``folder`` and ``kill``: null, or [phase,
steps]: the fork kills itself (SIGKILL) after so many optimizer steps that it makes in that phase,
counted from 0. Answers with the exit status of the fork, which leaves ``ticket`` in the folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

torch.set_num_threads(1)  # a kernel that has once had threads cannot be forked


def load(name: str) -> ModuleType:
    """A file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Killer:
    """Stands for a stop request, which the trainer asks for after every step; wraps its fit."""

    def __init__(self, phase: int, steps: int) -> None:
        self.phase, self.left, self.now = phase, steps, -1
        self.fit: Any = None

    def __call__(self, model: Any, phase: Any) -> Any:
        self.now += phase.epochs > 0
        return self.fit(model, phase)

    @property
    def signum(self) -> int:
        """Nothing is asked for: the end comes without a word."""
        self.left -= self.now == self.phase
        if self.now == self.phase and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


def run(job: dict[str, Any], bench: Any, contract: ModuleType, make: Any) -> int:
    """Be the search; return its exit status."""
    killer = Killer(*(job["kill"] or (-2, 0)))
    trainer = bench.trainer(Path(job["folder"]), stop=killer, checkpoint_steps=1, ema_decay=0.5)
    killer.fit = trainer.fit
    ticket = contract.search_of(job["case"], trainer.batch).find(make(), killer)
    ticket.save(Path(job["folder"]) / "ticket")
    trainer.run.close()
    return 0


def main() -> None:
    fixtures, contract = load("conftest"), load("test_contract")
    bench = fixtures.Bench()
    for make in fixtures.MODELS.values():  # numba and its kernels are loaded once, not by each fork
        model = make()
        model(torch.rand(2, 3, 16, 16)).mean().backward()
        with torch.no_grad():
            model.eval()(torch.rand(2, 3, 16, 16))
    for line in sys.stdin:
        if line == "end\n":  # an end of file may never come: forks of the tests hold the pipe, too
            return
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = run(job, bench, contract, fixtures.MODELS[job["network"]])
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
