"""Linear maps by the events of their inputs are those of all inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.export.synapses import FoldedLinear
from spikeformer_lt.layers.kernels import dispatch, events


def whole(rows: int, channels: int, rate: float, most: int, dtype: Any = torch.float64) -> Tensor:
    """Rows of whole numbers, of which a share `rate` is not 0."""
    fired = torch.rand(rows, channels) < rate
    return (fired * torch.randint(1, most + 1, fired.shape)).to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 255, 256, 300]),
    channels=st.sampled_from([1, 7, 8, 40, 432, 433, 866, 1433]),
    made=st.sampled_from([1, 31, 32, 50, 96]),
    rate=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    most=st.sampled_from([1, 2, 9]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)
def test_any_rows_give_the_dense_product(
    rows: int, channels: int, made: int, rate: float, most: int, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    x, weight = whole(rows, channels, rate, most), torch.randn(made, channels).double()
    bias = torch.randn(made).double()
    found = events.Panels.of(weight, bias)(x, most)
    wanted = F.linear(x, weight, bias)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * channels * most)
    single = events.Panels.of(weight.float(), bias.float())(x.float(), most)
    torch.testing.assert_close(single.double(), wanted, rtol=0, atol=2e-6 * channels * most)


@pytest.mark.parametrize("odd", [0.5, 1.25, 3.0, -1.0, float("nan")])
@pytest.mark.parametrize("place", [(0, 0), (299, 438), (257, 432)])
def test_values_that_are_no_events_are_refused(odd: float, place: tuple[int, int]) -> None:
    """A hook may have changed spikes: then the product is dense, and a replay ends."""
    torch.manual_seed(0)
    layer = FoldedLinear(torch.randn(64, 439), torch.randn(64), whole=True)
    panels, x = events.Panels.of(layer.weight, layer.bias), whole(300, 439, 0.1, 2, torch.float32)
    assert panels(x, 2) is not None
    with dispatch.Tape() as tape:
        panels(x, 2)
    x[place] = odd
    assert panels(x, 2) is None
    run, check = tape.steps
    run()
    with pytest.raises(dispatch.ReplayError, match="whole numbers"):
        check()


def test_few_events_of_large_rows_are_listed_and_their_sums_do_not_matter_elsewhere() -> None:
    width = 512
    assert 64 * 128 * width == events.LEAST
    found = {
        (rows, rate): events.suits(whole(rows, width, rate, 1, torch.float32), 128)
        for rows in (63, 64, 1000)
        for rate in (0.1, 0.25, 0.4)
    }
    assert found == {(r, rate): r >= 64 and rate < events.RATE for r, rate in found}
    assert not events.suits(3 * whole(64, width, 0.2, 1, torch.float32), 128)  # events, not places


def test_a_replay_ends_where_another_way_is_faster() -> None:
    torch.manual_seed(0)
    layer = FoldedLinear(torch.randn(256, 128), torch.randn(256), whole=True)
    x = whole(256, 128, 0.1, 1, torch.float32)

    def recorded() -> tuple[dispatch.Tape, Tensor | None]:
        with dispatch.Tape() as tape, torch.no_grad():
            return tape, layer.events(x, 1)

    few, out = recorded()
    x.copy_(x.flip(0))
    again = F.linear(x, layer.weight, layer.bias)
    for step in few.steps:
        step()
    torch.testing.assert_close(out, again, rtol=0, atol=1e-5)
    x.copy_(1 - x)
    many, none = recorded()
    assert none is None
    with pytest.raises(dispatch.ReplayError, match="more or fewer events"):
        [step() for step in few.steps]
    x.copy_(1 - x)
    with pytest.raises(dispatch.ReplayError, match="more or fewer events"):
        [step() for step in many.steps]
