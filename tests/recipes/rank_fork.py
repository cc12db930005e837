"""Starts N ranks of one recipe by fork, as torchrun would by spawn; the recipe server runs it.

rank_fork.py FOLDER N PORT RECIPE [OPTIONS ...]: prints the ranks' pids at once; each rank writes
FOLDER/<rank>.out and .err; at the end prints their exit statuses (negative: the signal).
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch


def be(rank: int, folder: Path, world: int, port: str, argv: list[str]) -> int:
    """Be one rank; return its exit status."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), stream)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    torch.set_num_threads(1)
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


if __name__ == "__main__":
    folder, world, port, *argv = sys.argv[1:]
    pids = []
    for rank in range(int(world)):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = be(rank, Path(folder), int(world), port, argv)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    print(*pids, flush=True)
    ended = {}
    while len(ended) < len(pids):  # whoever ends first is reaped first, as a launcher does
        pid, status = os.wait()
        ended[pid] = os.waitstatus_to_exitcode(status)
    print(*(ended[pid] for pid in pids), flush=True)
