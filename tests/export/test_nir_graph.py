"""What NIR can say is said rightly: an integrator of its equation repeats our spikes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.compact import compact

nir = pytest.importorskip("nir", reason="the extra 'nir' is not installed")

from spikeformer_lt.export.nir_graph import chains, to_nir  # noqa: E402


def run(graph, current: torch.Tensor) -> torch.Tensor:
    """Integrate a chain in steps of 1: Euler, fire at the threshold, reset."""
    follows, place = dict(graph.edges), "input"
    while place in follows:
        place = follows[place]
        node = graph.nodes[place]
        kind = type(node).__name__
        if kind == "Conv2d":
            weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
            padding = [int(p) for p in np.ravel(node.padding)]
            current = torch.stack([F.conv2d(x, weight, bias, padding=padding) for x in current])
        elif kind == "Affine":
            weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
            current = current @ weight.T + bias
        elif kind == "LIF":
            part = {n: torch.from_numpy(getattr(node, n)) for n in ("tau", "r", "v_leak")}
            v = torch.from_numpy(node.v_reset).expand_as(current[0])
            spikes = []
            for x in current:
                v = v + (part["v_leak"] - v + part["r"] * x) / part["tau"]
                fired = v >= torch.from_numpy(node.v_threshold)
                v = torch.where(fired, torch.from_numpy(node.v_reset), v)
                spikes.append(fired.float())
            current = torch.stack(spikes)
    return current


@pytest.mark.parametrize("decay", [True, False])
def test_the_chains_fire_as_the_network_does(decay: bool, net, images, tmp_path: Path) -> None:
    model, _, _ = net(decay_input=decay, patches=0.0)
    fast = compact(model)
    left = to_nir(fast, tmp_path / "a.nir")
    assert set(left) == {"conv_pep.stages.2", "attention"}
    graph = nir.read(str(tmp_path / "a.nir"))
    seen = {}
    parts = {"conv_pep": fast.net.conv_pep.stages[2].act, "mlp": fast.net.blocks[0].mlp}
    for name, part in parts.items():
        part.register_forward_hook(lambda m, a, out, n=name: seen.__setitem__(n, (a[0], out)))
    x = images(model)
    fast(x)
    stem = run(graph.nodes["conv_pep"], x[None].expand(model.T, -1, -1, -1, -1))
    wanted = seen["conv_pep"][1].permute(0, 1, 4, 2, 3)
    assert 0.02 < wanted.mean() < 0.7
    assert (stem != wanted).double().mean() <= 1e-3
    tokens, wanted = seen["mlp"]
    found = run(graph.nodes["blocks_0_mlp"], tokens)
    assert wanted.mean() > 0.02 and (found != wanted).double().mean() <= 1e-3


def test_what_does_not_map_is_left_with_its_reason(net, tmp_path: Path) -> None:
    made, left = chains(compact(net(activation="heaviside")[0]))
    assert list(made) == ["blocks_0_mlp"]
    assert left["conv_pep.stages.0"].startswith("Heaviside has no neuron of NIR")
    assert "gather" in left["patch"]
    with pytest.raises(ExportError, match="no part of this network maps to NIR: .*soft reset"):
        to_nir(compact(net(v_reset=None)[0]), tmp_path / "a.nir")
    assert not list(tmp_path.iterdir())
