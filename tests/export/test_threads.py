"""Threads that share a network get the logits that one thread gets."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from spikeformer_lt.export.inference import compact
from spikeformer_lt.export.streaming import Stream
from spikeformer_lt.export.synapses import DerivedCache, FoldedLinear
from spikeformer_lt.layers.patches import PatchSelect

THREADS, CALLS = 8, 20


def run_together(calls: list[Any]) -> list[Any]:
    """Results of all calls, each in a thread of its own that begins when all are ready."""
    found: list[Any] = [None] * len(calls)
    ready = threading.Barrier(len(calls))

    def work(i: int) -> None:
        torch.set_num_threads(1)
        ready.wait()
        found[i] = calls[i]()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("name", ["rescaled", "resnet of events"])
def test_threads_with_other_batch_sizes_get_the_same_bits(name: str, net, cnn, images) -> None:
    """More networks, plain and compact, share threads in layers/test_state.py."""
    torch.set_num_threads(1)
    model = net()[0] if name == "rescaled" else cnn(name)
    if name == "rescaled":
        model.set_patch(PatchSelect(model.patch.score, 0.4, rescale=True))
    run = compact(model)
    inputs = [images(model, 1 + i % 5) for i in range(THREADS)]
    with torch.no_grad():
        wanted = [run(x) for x in inputs]
    assert all(logits.std() > 1e-4 for logits in wanted)

    def calls(i: int) -> int:
        with torch.no_grad():
            return sum(not torch.equal(run(inputs[i]), wanted[i]) for _ in range(CALLS))

    assert run_together([lambda i=i: calls(i) for i in range(THREADS)]) == [0] * THREADS


def test_streams_of_many_threads_share_a_network(net, images) -> None:
    model, _, _ = net(in_channels=2, patches=0.0)
    run = compact(model)
    clips = [images(model, 1 + i % 3) for i in range(THREADS)]
    wanted = [run(clip) for clip in clips]

    def stream(clip: torch.Tensor) -> torch.Tensor:
        one = Stream(run)
        return torch.cat([one.push(clip[:, t]) for t in range(model.T)], 1)

    found = run_together([lambda clip=clip: stream(clip) for clip in clips])
    for logits, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_cache_gives_each_thread_the_value_it_asked_for() -> None:
    cache, source = DerivedCache(), torch.zeros(1)

    def ask(key: int) -> int:
        return sum(
            cache.derive("x", (source,), lambda: (key, torch.ones(key)), key)[0] != key
            for _ in range(2000)
        )

    assert run_together([lambda key=key: ask(key) for key in range(THREADS)]) == [0] * THREADS


def test_ordered_weights_are_those_of_the_calls_own_rows() -> None:
    layer = FoldedLinear(torch.randn(64, 48), torch.randn(64))
    inputs = [torch.randn(rows, 48) for rows in (1, 2, 7, 40, 41, 100, 300, 1000)]
    wanted = [layer(x) for x in inputs]

    def multiply(i: int) -> bool:
        return all(torch.allclose(layer(inputs[i]), wanted[i], atol=1e-4) for _ in range(100))

    assert all(run_together([lambda i=i: multiply(i) for i in range(len(inputs))]))
