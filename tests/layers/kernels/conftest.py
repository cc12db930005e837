"""LIF layers of every kind, run by torch and by the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from spikeformer_lt.layers.inputs import NeuronConfig

# Between them, each option once each way; every further combination would be compiled anew.
PARAMS = {
    "hard, detached": NeuronConfig(v_reset=-0.2),
    "soft, through reset": NeuronConfig(
        tau=4 / 3,
        v_reset=None,
        decay_input=False,
        detach_reset=False,
        surrogate="atan",
        alpha=2.0,
    ),
}


@pytest.fixture(params=list(PARAMS))
def params(request: pytest.FixtureRequest) -> NeuronConfig:
    """Give the constants of a layer."""
    return PARAMS[request.param]


@pytest.fixture
def by_both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """Give a function that runs another by torch, then by the kernels."""

    def run(function: Callable[[], Any]) -> tuple[Any, Any]:
        results = []
        for mode in ("torch", "numba"):
            monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", mode)
            results.append(function())
        return results[0], results[1]

    return run
