"""The compact network on a CUDA device is the one on the CPU, and that one the trained network.

The first parametrisation runs everywhere, so that what a GPU would run is known to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt import load_exported
from spikeformer_lt.errors import DataError
from spikeformer_lt.export import export_ticket
from spikeformer_lt.export.api import spike_mismatch
from spikeformer_lt.export.graphs import to_pt2
from spikeformer_lt.export.inference import compact
from spikeformer_lt.export.streaming import Stream

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
on_both = pytest.mark.parametrize("device", ["cpu", CUDA])
CHOICES: list[dict[str, object] | str] = [
    {},
    {"activation": "heaviside", "residual": "or", "score": "l2"},
    {"in_channels": 2, "score": "attention", "linear_bias": False},
    {"activation": "sign", "score": "tp", "pool_before_act": True},
    {"v_reset": None, "decay_input": False, "patches": 0.0},
    "vgg of events",
    "resnet",
]


@pytest.fixture
def made(net, cnn) -> Any:
    """Give the function that makes a CNN by its name, or a Spikformer by its options."""
    return lambda choice: cnn(choice) if isinstance(choice, str) else net(**choice)[0]


@on_both
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_float64_logits_are_those_of_the_cpu(device: str, choice, made, images) -> None:
    model = made(choice).double()
    x = images(model).double()
    with torch.no_grad():
        wanted = model(x)
    assert wanted.std() > 1e-4
    before = compact(model).to(device)(x.to(device))
    after = compact(model.to(device))(x.to(device))
    for found in (before, after):
        assert found.device.type == device
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-9)
    assert max(spike_mismatch(model, x.to(device)).values(), default=0) == 0


@on_both
@pytest.mark.parametrize("choice", CHOICES[:4], ids=str)
def test_float32_spikes_differ_in_less_than_one_of_a_thousand(
    device: str, choice, made, images
) -> None:
    model = made(choice).to(device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        rates = spike_mismatch(model, images(model, 8).to(device))
    assert rates and max(rates.values()) <= 1e-3


@on_both
def test_an_export_moves_to_the_device(device: str, net, images, tmp_path: Path) -> None:
    model, _, ticket = net()
    export_ticket(ticket, tmp_path / "out")
    x = images(model)
    fast = load_exported(tmp_path / "out").to(device)
    wanted = load_exported(tmp_path / "out")(x)
    found = fast(x.to(device))
    assert found.device.type == device
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)
    again = fast.to("cpu")(x)
    torch.testing.assert_close(again, wanted, rtol=0, atol=1e-6)


@on_both
@pytest.mark.parametrize("choice", [{"patches": 0.0}, {"patches": 0.4}, "vgg of events"], ids=str)
def test_streams_run_where_the_network_is(device: str, choice, net, cnn, images) -> None:
    model = cnn(choice) if isinstance(choice, str) else net(in_channels=2, **choice)[0]
    fast = compact(model.double()).to(device)
    clip = images(model.cpu()).double().to(device)
    stream = Stream(fast)
    found = torch.cat([stream.push(clip[:, t]) for t in range(model.T)], 1)
    torch.testing.assert_close(found, fast(clip), rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", [CUDA])  # test_graphs.py exports the same on the CPU
def test_a_program_runs_on_the_device(device: str, net, images, tmp_path: Path) -> None:
    model, _, _ = net(activation="heaviside")
    fast = compact(model.double())
    to_pt2(fast, tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2")
    from torch.export.passes import move_to_device_pass

    program = move_to_device_pass(program, device)
    x = images(model, 5).double()
    found = program.module()(x.to(device))
    torch.testing.assert_close(found.cpu(), fast(x), rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("choice", CHOICES[:2], ids=str)
def test_a_cuda_graph_gives_the_logits_of_the_call(choice, made, images) -> None:
    model = made(choice)
    network, x = compact(model.cuda()), images(model).cuda()
    replay = network.graphed(x)
    for batch in (x, x.flip(0), x):
        assert torch.equal(replay(batch), network(batch))
    with pytest.raises(DataError, match="record another"):
        replay(x[:1])
    with pytest.raises(DataError, match="input holds nan"):
        replay(torch.full_like(x, float("nan")))
