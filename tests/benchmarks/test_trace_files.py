"""A forward crosses few files and makes few calls: what is decided once is not decided again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.layers.kernels.simd import BYTES
from spikeformer_lt.layers.neuron import LIF

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "trace_files.py"
CALLS = 600 if BYTES == 64 else 615  # AVX2: 8 channels are whole vectors, for Winograd


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_files", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("make", "shape", "files", "calls"),
    [
        (lambda: create_model("spikformer_digits").eval(), (8, 3, 16, 16), 15, CALLS),
        (LIF, (4, 8, 1024), 4, 20),
    ],
    ids=["digits forward", "LIF"],
)
@torch.no_grad()
def test_a_forward_crosses_few_files_and_makes_few_calls(
    tool: ModuleType, make: Callable[[], torch.nn.Module], shape: tuple, files: int, calls: int
) -> None:
    module, x, tracer = make(), torch.rand(shape), tool.Tracer()
    module(x)
    tracer.call(module, x)
    assert 0 < len(tracer.files) <= files, sorted(tracer.files)
    assert 0 < tracer.calls <= calls
