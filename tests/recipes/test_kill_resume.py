"""kill -9 at random moments of a run, across its phases: every resume ends at the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spikeformer_lt.ticket import Ticket

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "--data.name", "digits", "--data.limit-train", "128", "--data.limit-test", "40",
    "--data.mixup", "0.5", "--model.name", "spikformer_toy", "--data.image-size", "16",
    "--model.embed-dim", "16", "--model.T", "2", "--train.batch-size", "16",
    "--train.checkpoint-steps", "1", "--train.ema-decay", "0.9", "--train.cpu",
    "--multisp.schedule", "sequential", "--multisp.stem", "finetune", "--multisp.dense-epochs", "2",
    "--multisp.stem-epochs", "2", "--multisp.epochs", "2", "--multisp.weights.method", "both",
    "--multisp.patches.score", "gumbel", "--run.resume", "auto",
]  # fmt: skip


class Server:
    def __init__(self, log: Path) -> None:
        script = Path(__file__).with_name("recipe_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(ROOT / "recipes/multisp_cifar.py"), str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, out: Path) -> int:
        self.process.stdin.write(json.dumps([*OPTIONS, "--run.out", str(out)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


def final(out: Path) -> tuple[dict[str, bytes], dict]:
    ticket = Ticket.load(out / "ticket")
    report = json.loads((out / "report.json").read_text())
    for changing in ("seconds", "run_id"):
        report.pop(changing)
    return {k: v.numpy().tobytes() for k, v in ticket.tensors.items()}, report


def kill_loop(folder: Path, kills: int) -> list[str]:
    """Kill `kills` times; returns where each kill fell (the phase of the last checkpoint)."""
    server = Server(folder / "out.log")
    try:
        start = time.monotonic()
        server.start(folder / "whole")
        assert server.status() == 0, (folder / "out.log").read_text()[-3000:]
        length = time.monotonic() - start
        expected = final(folder / "whole")
        draw = random.Random(0)
        where: list[str] = []
        attempt = 0
        while len(where) < kills:
            attempt += 1
            out = folder / f"killed-{attempt}"
            while not (out / "report.json").exists() and len(where) < kills:
                pid = server.start(out)
                time.sleep(draw.uniform(0.05, 0.6 * length))
                finished = (out / "report.json").exists()
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    finished = True
                code = server.status()
                if code == -signal.SIGKILL and not finished:
                    phases = sorted(p.name for p in (out / "phases").glob("*"))
                    where.append("+".join(phases) or "start")
                else:
                    assert code in (0, -signal.SIGKILL), (folder / "out.log").read_text()[-3000:]
            server.start(out)
            assert server.status() == 0, (folder / "out.log").read_text()[-3000:]
            assert final(out) == expected
        return where
    finally:
        server.close()


@pytest.mark.recipe
def test_four_kills_resume_to_the_same_bits(tmp_path):
    assert len(kill_loop(tmp_path, 4)) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_resume_to_the_same_bits(tmp_path):
    where = kill_loop(tmp_path, 50)
    assert len(where) == 50
    assert len(set(where)) >= 3, where  # they fell into different phases
    print({place: where.count(place) for place in sorted(set(where))})
