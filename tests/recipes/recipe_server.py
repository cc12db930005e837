"""Starts recipes from a process that has imported everything already: a fork each, no start-up.

Reads one JSON list of recipe arguments a line; answers with the child's pid, then its exit status.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import accelerate  # noqa: F401
import timm.data
import timm.optim
import timm.scheduler  # noqa: F401
import torch

import spikeformer_lt.reports.run_report
import spikeformer_lt.training.experiment  # noqa: F401


def main() -> None:
    torch.set_num_threads(1)
    recipe = sys.argv[1]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            out = os.open(
                os.devnull if len(sys.argv) < 3 else sys.argv[2],
                os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            )
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.argv = [recipe, *json.loads(line)]
            try:
                runpy.run_path(recipe, run_name="__main__")
            except SystemExit as stop:
                os._exit(stop.code if isinstance(stop.code, int) else 1)
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
