"""Torch and the kernels run on one OpenMP where that can be arranged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.runtime import cpu_count, share_openmp, threads_chosen

_KERNEL = """
import torch
from spikeformer_lt.layers.kernels import dispatch
torch.set_num_threads(2)
dispatch.lif(torch.rand(4, 1 << 16), None, 4, dispatch.NeuronConfig())
torch.rand(512, 512) @ torch.rand(512, 512)
import numba
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
print(numba.threading_layer(), len(loaded))
"""


def run(first: str) -> list[str]:
    command = [sys.executable, "-c", f"import {first}{_KERNEL}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP of torch and numba on Linux")
def test_imported_before_torch_there_is_one_runtime() -> None:
    layer, after_torch = run("torch")
    if layer != "omp" or after_torch != "2":
        pytest.skip(f"threads of numba here: {layer}, with {after_torch} GNU OpenMP")
    assert run("spikeformer_lt") == ["omp", "1"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "passive passive"),
        ({"OMP_WAIT_POLICY": "active"}, "OMP_WAIT_POLICY=active active"),
        ({"GOMP_SPINCOUNT": "5"}, "GOMP_SPINCOUNT=5 None"),
    ],
)
def test_threads_wait_passively_unless_the_environment_says_how(
    given: dict[str, str], said: str
) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import os, spikeformer_lt.runtime as r; print(r.WAITING, os.getenv('OMP_WAIT_POLICY'))"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=env | given, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == said


def test_a_number_of_threads_is_chosen_by_a_variable_or_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert not threads_chosen(cpu_count())
    assert threads_chosen(cpu_count() + 1)
    monkeypatch.setenv("MKL_NUM_THREADS", str(cpu_count()))
    assert threads_chosen(cpu_count())


def test_what_was_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401 - the reason that is given below

    said = share_openmp()
    assert said in ("own (torch was imported first)", "own (not Linux)")
    monkeypatch.setenv("SPIKEFORMER_OPENMP", "own")
    assert share_openmp() == "own (SPIKEFORMER_OPENMP)"
    monkeypatch.setenv("SPIKEFORMER_OPENMP", "mine")
    with pytest.raises(ConfigError, match="SPIKEFORMER_OPENMP='mine'.*share or own"):
        share_openmp()
