from __future__ import annotations

import numpy as np
import pytest

from spikeformer_lt.events.frame import count_numba, count_numpy


@pytest.mark.parametrize("count", [0, 1, 17, 5000])
def test_the_kernel_equals_numpy_on_strided_and_contiguous_columns(files, count):
    events = files.some_events(count, 20, 30, seed=count)
    edges = np.sort(np.random.default_rng(count).integers(0, count + 1, 6))
    edges[0] = 0
    for copy in (lambda column: column, np.ascontiguousarray):
        columns = [copy(events[name]) for name in ("x", "y", "p")]
        ours, theirs = (np.zeros((5, 2, 20, 30), np.int32) for _ in range(2))
        assert count_numba(*columns, edges, ours) == -1
        assert count_numpy(*columns, edges, theirs) == -1
        assert np.array_equal(ours, theirs) and ours.sum() == edges[-1]


@pytest.mark.parametrize(("field", "value"), [("x", 30), ("y", 20), ("p", 2)])
def test_the_first_event_off_the_frame_is_named_and_nothing_is_written_for_it(files, field, value):
    events = files.some_events(50, 20, 30)
    events[field][[20, 40]] = value
    frames = np.zeros((1, 2, 20, 30), np.int32)
    edges = np.array([0, 50])
    assert count_numba(events["x"], events["y"], events["p"], edges, frames) == 20
    assert frames.sum() == 20


def test_edges_beyond_the_events_are_an_error_of_ours(files):
    events = files.some_events(5)
    with pytest.raises(AssertionError):
        count_numba(
            events["x"], events["y"], events["p"],
            np.array([0, 6]), np.zeros((1, 2, 128, 128), np.int32),
        )  # fmt: skip
