"""`make gpu`: its command, its time limits, what it skips, and all of it at tiny sizes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks" / "gpu.py"
SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("epoch 1", flush=True)
time.sleep(60)
"""
STAYS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """Give the script as a module."""
    spec = importlib.util.spec_from_file_location("spikeformer_lt_benchmarks_gpu", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look the module up
    spec.loader.exec_module(module)
    return module


def options(tmp_path: Path, pretend: bool = False) -> argparse.Namespace:
    return argparse.Namespace(out=tmp_path, data=tmp_path / "data", pretend=pretend)


def test_make_installs_nothing_and_keeps_the_callers_path(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH: $*"\n')
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "gpu", f"PY={python}", "MINUTES=2", "DATA=/d"]
    env = {**os.environ, "PYTHONPATH": "/a:/b"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "/a:/b: benchmarks/gpu.py --minutes 2 --data /d\n"


def test_the_checkout_does_not_stand_where_other_packages_are_looked_for(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the root on the path, `datasets` would be found there, without being a package."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}/elsewhere")
    env = gpu.environment(tmp_path)
    code = (
        "import os, sys, spikeformer_lt, spikeformer_lt.models.spiking_vgg as room\n"
        "print([os.path.realpath(m.__file__) for m in (spikeformer_lt, room)])\n"
        "print(sys.path[1], [p for p in sys.path if os.path.isfile(p + '/models/spikformer.py')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    files = [str(ROOT / "spikeformer_lt/__init__.py"), str(ROOT / "models/spiking_vgg.py")]
    assert done.stdout == f"{files}\n/elsewhere []\n"


@pytest.mark.parametrize(
    ("code", "resumes", "outcome"),
    [
        ("print('fine')", False, "done in"),
        ("raise SystemExit(3)", False, "failed: exit status 3"),
        ("raise SystemExit(143)", True, "failed: exit status 143"),
        (SAVES, True, "saved after"),
        (SAVES, False, "failed: not done in"),
        (STAYS, True, "failed: not done in"),
    ],
)
def test_a_part_ends_in_its_time(
    code: str, resumes: bool, outcome: str, gpu: ModuleType, tmp_path: Path
) -> None:
    begin = time.monotonic()
    part = gpu.Part("part", ["-c", code], 1.0, resumes=resumes)
    found = gpu.run(part, 1.5, tmp_path, dict(os.environ), grace=0.5)
    assert found.startswith(outcome), found
    assert time.monotonic() - begin < 10
    printed = (tmp_path / "part.log").read_text()
    assert (
        printed == "epoch 1\n"
        if code is SAVES
        else bool(printed) == (code in (STAYS, "print('fine')"))
    )
    if code is STAYS:  # what it started has ended, too
        stat = Path(f"/proc/{printed.strip()}/stat")
        until = time.monotonic() + 5  # a killed process that is running ends at its next turn
        while stat.exists() and stat.read_text().split()[2] != "Z":
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("script", ["peers.py", "triton_clock.py"])
def test_a_script_finds_its_neighbours(script: str, gpu: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
    subprocess.run(command, env=gpu.environment(tmp_path), check=True, capture_output=True)


def test_what_cannot_run_or_is_done_is_skipped_with_the_reason(
    gpu: ModuleType, tmp_path: Path
) -> None:
    tests, kernels, peers, dense, multisp = gpu.plan(options(tmp_path), {"tests"})
    assert "benchmarks/triton_clock.py" in kernels.command and not kernels.skip
    assert "tests/export/test_cuda.py" in tests.command and "passed.json" in tests.skip
    assert "--device=cuda" in peers.command and not peers.skip
    assert dense.skip.startswith("no CIFAR-10") and multisp.skip == dense.skip
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "report.json").write_text("{}")
    *_, dense, multisp = gpu.plan(options(tmp_path), set())
    assert dense.skip.startswith("finished") and not multisp.skip


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(FILE), "--out", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: torch sees no CUDA device; --pretend")


@pytest.mark.parametrize(
    ("outcome", "taken"), [("failed: exit status 1 after 3 s", False), ("done in 3 s", True)]
)
def test_the_table_of_kernels_that_failed_here_is_not_taken(
    outcome: str, taken: bool, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "triton.json").write_text("{}")  # of earlier sources
    seen: dict[str, bool] = {}

    def run(part: Any, seconds: float, out: Path, env: dict[str, str]) -> str:
        seen[part.name] = "SPIKEFORMER_TRITON" in env
        return outcome

    probe = subprocess.CompletedProcess([], 0, "2.13.0|a GPU", "")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *args, **options: probe)
    monkeypatch.setattr(gpu.signal, "signal", lambda *args: None)
    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--data", str(tmp_path)])
    monkeypatch.delenv("SPIKEFORMER_TRITON", raising=False)
    gpu.main()
    assert seen == {"tests": False, "kernels": False, "peers": taken}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_parts_run_and_training_goes_on_in_the_next_call(tmp_path: Path) -> None:
    command = [sys.executable, str(FILE), "--pretend", "--minutes", "12", "--out", str(tmp_path)]
    found = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[-5:]))
    words = [{name: text.split()[0] for name, text in outcomes.items()} for outcomes in found]
    training = {"dense": "saved", "multisp": "saved"}
    assert words[0] == {"tests": "done", "kernels": "done", "peers": "done", **training}
    assert words[1] == {name: "skipped:" for name in ("tests", "kernels", "peers")} | training
    assert "ours dense" in (tmp_path / "peers.log").read_text()
    for name in training:
        log = (tmp_path / f"{name}.log").read_text()
        assert "resumed" in log and "images/s" in log
        assert (tmp_path / name / "summary.csv").read_text().count("\n") > 2


@pytest.mark.parametrize("cpu", [False, True])
def test_make_installs_from_pytorchs_cpu_index_where_it_is_asked_to(
    cpu: bool, tmp_path: Path
) -> None:
    """The recipe is run with a Python that notes what it is asked for."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    python.chmod(0o755)
    words = [f"VENV={tmp_path}", f"PYTHON={sys.executable}", *["CPU=1"] * cpu]
    subprocess.run(["make", "install", *words], cwd=ROOT, check=True, capture_output=True)
    asked = (tmp_path / "asked").read_text()
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert f"--constraint {tmp_path}/constraints.txt" in asked and (index in asked) == cpu
    lines = (ROOT / "constraints.txt").read_text()
    local = lines.replace("torch===2.13.0", "torch===2.13.0+cpu")
    local = local.replace("torchvision===0.28.0", "torchvision===0.28.0+cpu")
    assert (tmp_path / "constraints.txt").read_text() == (local if cpu else lines) != ""
    assert len(list(tmp_path.glob(".installed-cpu-*" if cpu else ".installed-[0-9]*"))) == 1


def test_make_docs_installs_nothing_beside_what_make_install_did(tmp_path: Path) -> None:
    """The constraints of the checkout would put a torch for CUDA in the place of CPU=1's."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    python.chmod(0o755)
    words = [f"VENV={tmp_path}", f"PYTHON={sys.executable}", "CPU=1"]
    subprocess.run(["make", "docs", *words], cwd=ROOT, check=True, capture_output=True)
    asked = (tmp_path / "asked").read_text()
    assert asked.count("--constraint") == asked.count(f"--constraint {tmp_path}/") == 1
    assert "mkdocs build" in asked
