"""Runs of one Python process, one after another, do not disturb each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import hashlib, json, shlex, sys
from pathlib import Path
from spikeformer_lt import Ticket
from spikeformer_lt.config import parse
from spikeformer_lt.recipes import imp_cifar

def run(seed, out):
    options = "--data.name digits --data.limit-train 64 --data.limit-test 40 --data.image-size 16 "
    options += "--model.name spikformer_toy --model.embed-dim 16 --model.T 2 --epochs 1 "
    options += "--model.v-threshold 0.2 --train.cpu --imp.rounds 2 --imp.epochs 1 "
    options += f"--train.seed {seed} --run.out {out}"
    imp_cifar.main(parse(imp_cifar.ImpCifar, shlex.split(options)))
    tensors = Ticket.load(Path(out) / "trained").tensors
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    report = json.loads((Path(out) / "report.json").read_text())
    return digest.hexdigest(), report["test_accuracy"], report["firing_rate"]

found = [run(seed, f"{sys.argv[1]}/{i}") for i, seed in enumerate(map(int, sys.argv[2:]))]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_run_is_the_same_whatever_ran_before_it_in_the_process(tmp_path: Path) -> None:
    def results(name: str, *seeds: int) -> list[list[object]]:
        command = [sys.executable, "-c", CODE, str(tmp_path / name), *map(str, seeds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found: list[list[object]] = json.loads(done.stdout.splitlines()[-1])
        return found

    first, second, again = results("three", 0, 1, 0)
    assert again == first and second[0] != first[0]
    assert results("alone", 1) == [second]
