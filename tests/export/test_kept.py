"""What is made of tensors is made again when they change, wherever torch puts them."""

from __future__ import annotations

import copy
import pickle

import torch

from spikeformer_lt.export.synapses import DerivedCache


def test_values_follow_their_tensors() -> None:
    kept, made, a = DerivedCache(), [], torch.zeros(3)

    def make() -> int:
        made.append(0)
        return len(made)

    assert kept.derive("x", (a,), make) == kept.derive("x", (a,), make) == 1
    a.add_(1)
    assert kept.derive("x", (a,), make) == 2
    assert kept.derive("x", (a,), make, key=7) == 3
    same_memory = a.view(3)
    assert same_memory.data_ptr() == a.data_ptr()
    assert kept.derive("x", (same_memory,), make, key=7) == 4
    assert kept.derive("y", (a,), make) == 5
    assert kept.derive("x", (same_memory,), make, key=7) == 4, "each name has its own"
    kept.clear()
    assert kept.derive("x", (same_memory,), make, key=7) == 6


def test_a_tensor_that_is_gone_is_not_taken_for_its_successor() -> None:
    kept = DerivedCache()
    for value in range(20):  # torch gives the same address again
        x = torch.full((4096,), float(value))
        assert kept.derive("x", (x,), lambda x=x: float(x[0])) == value  # type: ignore[misc]
        del x


def test_copies_are_empty() -> None:
    kept, x = DerivedCache(), torch.zeros(1)
    kept.derive("x", (x,), lambda: 1)
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert other.derive("x", (x,), lambda: 2) == 2
    assert kept.derive("x", (x,), lambda: 3) == 1
