"""Runs one search of the contract, for the fork server: search_fork.py CASE NETWORK FOLDER [PHASE].

A case is one of the contract's, or "all levels" of MultiSp on a family.

Leaves ``ticket`` in the folder; with a phase, counted from 0, it kills itself (SIGKILL) after two
optimizer steps of it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


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

    def __init__(self, phase: int) -> None:
        self.phase, self.left, self.now = phase, 2, -1
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


if __name__ == "__main__":
    case, network, folder, *kill = sys.argv[1:]
    fixtures, contract = load("conftest"), load("test_contract")
    killer = Killer(int(kill[0]) if kill else -2)
    options = {"checkpoint_steps": 1, "ema_decay": 0.5}
    trainer = fixtures.Bench().trainer(Path(folder), stop=killer, **options)
    killer.fit = trainer.fit
    if network in contract.FAMILIES:
        make = fixtures.Make(contract.NETWORKS[network][:2])
    else:
        make = fixtures.MODELS[network]
    levels = case == "all levels"
    search = contract.all_levels(network) if levels else contract.search_of(case, trainer.batch)
    ticket = search.find(make(), killer)
    ticket.save(Path(folder) / "ticket")
    trainer.run.close()
