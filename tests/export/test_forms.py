"""Gains are found exactly where weights are binary."""

from __future__ import annotations

import numpy as np
import torch

from spikeformer_lt.export.file import binary_gains, contexts_of, digest_of, from_signs


def test_gains_of_a_layer_and_of_filters() -> None:
    signs = torch.randn(4, 3, 3, 3).sign()
    kept = torch.rand(signs.shape) < 0.5
    layer = torch.where(kept, signs * 0.3, 0.0)
    assert binary_gains(layer, kept).tolist() == [torch.tensor(0.3).item()]
    gains = torch.tensor([0.1, 0.2, 0.3, 0.4])
    filters = torch.where(kept, signs * gains.view(4, 1, 1, 1), 0.0)
    assert torch.equal(binary_gains(filters, kept), gains)
    for weight, found in ((layer, layer.abs().max().view(1)), (filters, gains)):
        room = np.empty(108, np.float32)
        from_signs(kept, weight[kept] < 0, found, room)
        assert torch.equal(torch.from_numpy(room).view(4, 3, 3, 3), weight)


def test_no_gain_is_found_where_there_is_none() -> None:
    weight = torch.randn(4, 3, 3, 3)
    every = torch.ones_like(weight, dtype=torch.bool)
    assert binary_gains(weight, every) is None
    assert binary_gains(torch.ones(5), torch.ones(5, dtype=torch.bool)) is None
    one = torch.ones(3, 2)
    one[1, 1] = 0.5
    assert binary_gains(one, torch.ones(3, 2, dtype=torch.bool)) is None


def test_one_weight_a_filter_is_stored_as_it_is() -> None:
    weight = torch.randn(6, 1)
    assert binary_gains(weight, torch.ones(6, 1, dtype=torch.bool)) is None


def test_nothing_kept_is_binary_with_gain_zero() -> None:
    kept = torch.zeros(3, 4, dtype=torch.bool)
    assert binary_gains(torch.zeros(3, 4), kept).tolist() == [0.0]


def test_contexts_cover_a_tensor() -> None:
    shape = [4, 3, 2, 2]
    for code, axis in (("out", 0), ("in", 1)):
        stride, count = contexts_of(code, shape)
        place = torch.arange(48)
        found = (place // stride) % count
        wanted = torch.unravel_index(place, shape)[axis]
        assert torch.equal(found, wanted)


def test_the_digest_sees_shape_dtype_values_and_mask() -> None:
    x = torch.arange(6.0)
    kept = torch.ones(6, dtype=torch.bool)
    same = [digest_of(x, None), digest_of(x.view(2, 3), None), digest_of(x.double(), None)]
    same += [digest_of(x, kept), digest_of(x + 1, None)]
    assert len(set(same)) == 5 and {len(one) for one in same} == {8}
