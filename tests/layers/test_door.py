"""What a model lets in."""

from __future__ import annotations

import re

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.layers.inputs import time_first

T = 3
OPTIONS = {"T": T, "in_channels": 2, "image_size": (4, 6), "dtype": torch.float32}


def test_frames_come_time_first_without_a_copy() -> None:
    x = torch.rand(5, T, 2, 4, 6)
    out = time_first(x, **OPTIONS)
    assert torch.equal(out, x.permute(1, 0, 2, 3, 4))
    assert out.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(("once", "steps"), [(True, 1), (False, T)])
def test_a_static_image_stands_for_every_step(once: bool, steps: int) -> None:
    x = torch.rand(5, 2, 4, 6)
    out = time_first(x, **OPTIONS, compute_once=once)
    assert out.shape == (steps, 5, 2, 4, 6)
    assert all(torch.equal(step, x) for step in out)


def test_mixed_precision_lets_other_floats_in_but_no_doubles() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert time_first(torch.rand(1, 2, 4, 6).bfloat16(), **OPTIONS).dtype == torch.bfloat16
        with pytest.raises(ConfigError, match="float64"):
            time_first(torch.rand(1, 2, 4, 6).double(), **OPTIONS)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 2, 4, 6, dtype=torch.uint8), "uint8 is not floating point"),
        (torch.rand(1, 2, 4, 6).half(), "float16 is not the model's torch.float32"),
        (torch.rand(1, 2, 6, 4), r"\[1, 2, 6, 4\] is neither images \[B, 2, 4, 6\]"),
        (torch.rand(1, 3, 4, 6), r"nor frames \[B, T=3, 2, 4, 6\]"),
        (torch.rand(2, 4, 6), "neither images"),
        (torch.rand(1, 2, 2, 4, 6), "expected T=3 at dimension 1.*got 2"),
    ],
)
def test_anything_else_is_refused_by_name(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        time_first(x, **OPTIONS)
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.fault(95)
def test_a_value_that_no_image_has_is_refused_at_inference(bad: float, dtype: torch.dtype) -> None:
    model = create_model("spikformer_toy", image_size=16, T=2).to(dtype).eval()
    x = torch.zeros(2, 3, 16, 16, dtype=dtype)
    x[1, 2, 7, 0] = bad
    with pytest.raises(DataError, match=r"input holds .* at \[1, 2, 7, 0\] of \[2, 3, 16, 16\]"):
        model(x)
    x[1, 2, 7, 0] = 9e5
    assert model(x).isfinite().all()
