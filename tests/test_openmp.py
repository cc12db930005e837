"""Torch and the kernels run on one OpenMP where that can be arranged."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.runtime import share_openmp

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


def test_what_was_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401 - the reason that is given below

    said = share_openmp()
    assert said in ("own (torch was imported first)", "own (not Linux)")
    monkeypatch.setenv("SPIKEFORMER_OPENMP", "own")
    assert share_openmp() == "own (SPIKEFORMER_OPENMP)"
    monkeypatch.setenv("SPIKEFORMER_OPENMP", "mine")
    with pytest.raises(ConfigError, match="SPIKEFORMER_OPENMP='mine'.*share or own"):
        share_openmp()
