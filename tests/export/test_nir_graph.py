"""What NIR can say is said rightly: an integrator of its equation repeats our spikes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spikeformer_lt.config import from_dict
from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.inference import CompactModel, compact
from spikeformer_lt.models.nir_graph import NirGraph
from spikeformer_lt.preprocess import Preprocess, Recordings

nir = pytest.importorskip("nir", reason="the extra 'nir' is not installed")

from spikeformer_lt.export.graphs import chains, to_nir  # noqa: E402


def run(graph: Any, current: torch.Tensor) -> torch.Tensor:
    """Integrate a graph in steps of 1: Euler, fire at the threshold, reset; edges add."""
    done: dict[str, torch.Tensor] = {}
    left = dict(graph.nodes)
    while left:
        before = {name: [a for a, b in graph.edges if b == name] for name in left}
        name = next(n for n, froms in before.items() if all(f in done for f in froms))
        node = left.pop(name)
        parts = [done[f] for f in before[name]]
        x = sum(parts[1:], parts[0]) if parts else current
        done[name] = step(node, x)
        if type(node).__name__ == "Output":
            return done[name]
    raise AssertionError("no output")


def step(node: Any, current: torch.Tensor) -> torch.Tensor:
    kind = type(node).__name__
    if kind == "Conv2d":
        weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        padding, stride = ([int(n) for n in np.ravel(v)] for v in (node.padding, node.stride))
        return torch.stack([F.conv2d(x, weight, bias, stride, padding) for x in current])
    if kind == "Affine":
        return current @ torch.from_numpy(node.weight).T + torch.from_numpy(node.bias)
    if kind != "LIF":
        assert kind in ("Input", "Output"), kind
        return current
    part = {n: torch.from_numpy(getattr(node, n)) for n in ("tau", "r", "v_leak", "v_reset")}
    v = part["v_reset"].expand_as(current[0])
    spikes = []
    for x in current:
        v = v + (part["v_leak"] - v + part["r"] * x) / part["tau"]
        fired = v >= torch.from_numpy(node.v_threshold)
        v = torch.where(fired, part["v_reset"], v)
        spikes.append(fired.float())
    return torch.stack(spikes)


def parts_of(graph: Any) -> set[str]:
    """Names of the subgraphs; nir adds doors around those that stand alone."""
    return {name for name in graph.nodes if not name.startswith(("input", "output"))}


def maps_first(rows: torch.Tensor) -> torch.Tensor:
    return rows.permute(0, 1, 4, 2, 3)


def watched(fast: CompactModel, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of every module, in one run; neurons overwrite what they read."""
    seen: dict[str, Any] = {}
    for name, part in fast.net.named_modules():
        part.register_forward_pre_hook(lambda m, args, n=name: seen.__setitem__(n, args[0].clone()))
        part.register_forward_hook(
            lambda m, args, out, n=name: seen.__setitem__(
                n, (seen[n], out[0] if isinstance(out, tuple) else out)
            )
        )
    fast(x)
    return seen


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Spikes, of which some but not all are there; rounding may flip one of a thousand."""
    return 0.02 < wanted.mean() < 0.9 and (found != wanted).double().mean() <= 1e-3


@pytest.mark.parametrize("decay", [True, False])
def test_the_chains_fire_as_the_network_does(decay: bool, net, images, tmp_path: Path) -> None:
    model, _, _ = net(decay_input=decay, patches=0.0)
    fast = compact(model)
    left = to_nir(fast, tmp_path / "a.nir")
    pools = {"conv_pep.stages.2.pool", "conv_pep.stages.3.pool"}
    assert set(left) == pools | {"attention", "mean"}
    graph = nir.read(str(tmp_path / "a.nir"))
    assert parts_of(graph) == {
        *("conv_pep_stages_0", "conv_pep_stages_3", "conv_pep_rpe"),
        *("blocks_0_attn_qkv", "blocks_0_attn_out", "blocks_0_mlp_fc1", "head"),
    }
    x = images(model)
    seen = watched(fast, x)
    still = x[None].expand(model.T, -1, -1, -1, -1)
    stem = run(graph.nodes["conv_pep_stages_0"], still)
    assert same(stem, maps_first(seen["conv_pep.stages.2.act"][1]))
    for place in ("conv_pep.stages.3", "conv_pep.rpe"):
        found = run(graph.nodes[place.replace(".", "_")], maps_first(seen[place][0]))
        assert same(found, maps_first(seen[f"{place}.act"][1])), place
    for place, end in (
        ("blocks.0.attn.qkv", "blocks.0.attn.qkv"),
        ("blocks.0.attn.out", "blocks.0.attn.out"),
        ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2"),
    ):
        found = run(graph.nodes[place.replace(".", "_")], seen[place][0])
        assert same(found, seen[end][1]), place
    found = run(graph.nodes["head"], seen["head"][0])
    torch.testing.assert_close(found, seen["head"][1], rtol=0, atol=1e-5)


def test_the_file_says_how_its_samples_are_prepared(cnn, tmp_path: Path) -> None:
    model, how = cnn("vgg of events"), Recordings((15, 15), 3)
    model.preprocess = Preprocess("off,on", 15, (0.0, 0.0), (1.0, 1.0), tuple("0123456789"), how)
    to_nir(compact(model), tmp_path / "a.nir")
    said = nir.read(str(tmp_path / "a.nir")).metadata["preprocess"]
    assert from_dict(Preprocess, json.loads(said)) == model.preprocess


def test_a_vgg_is_cut_at_its_pools_alone(cnn, images, tmp_path: Path) -> None:
    model = cnn("vgg of events")
    fast = compact(model)
    left = to_nir(fast, tmp_path / "a.nir")
    assert set(left) == {"layers.1", "mean"} and left["layers.1"].startswith("max-pool")
    graph = nir.read(str(tmp_path / "a.nir"))
    seen = watched(fast, images(model))
    for place in ("layers.0", "layers.2"):
        found = run(graph.nodes[place.replace(".", "_")], maps_first(seen[place][0]))
        assert same(found, maps_first(seen[place][1])), place
    assert same(run(graph.nodes["hidden"], seen["hidden"][0]), seen["hidden"][1])


def test_a_residual_block_is_one_graph(cnn, images, tmp_path: Path) -> None:
    model = cnn("resnet of events")
    fast = compact(model)
    left = to_nir(fast, tmp_path / "a.nir")
    assert set(left) == {"mean"}
    graph = nir.read(str(tmp_path / "a.nir"))
    assert parts_of(graph) == {"stem", "blocks_0", "blocks_1", "head"}
    seen = watched(fast, images(model))
    for place in ("stem", "blocks.0", "blocks.1"):
        x, wanted = map(maps_first, seen[place])
        part = graph.nodes[place.replace(".", "_")]
        assert same(run(part, x), wanted), place
        assert same(NirGraph(part, 1.0)(x), wanted), place  # it comes back as it went


def test_what_does_not_map_is_left_with_its_reason(net, tmp_path: Path) -> None:
    made, left = chains(compact(net(activation="heaviside")[0]))
    assert not any(name.startswith("conv_pep") for name in made) and "blocks_0_mlp_fc1" in made
    assert left["conv_pep.stages.0"].startswith("Heaviside has no neuron of NIR")
    assert "gather" in left["patch"]
    with pytest.raises(ExportError, match="no part of this network maps to NIR: .*soft reset"):
        to_nir(compact(net(v_reset=None)[0]), tmp_path / "a.nir")
    made, left = chains(compact(net(pool_before_act=True)[0]))
    assert left["conv_pep.stages.2"].startswith("max-pool before the neuron")
    assert not list(tmp_path.iterdir())
