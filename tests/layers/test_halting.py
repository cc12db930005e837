"""Tokens and images that halt, on every architecture whose tokens can run apart."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.export import Stream, compact
from spikeformer_lt.layers.halting import HaltingNeuron
from spikeformer_lt.layers.patches import PatchSelect, StagedSelect, make_score, penalties
from spikeformer_lt.registry import create_model
from spikeformer_lt.reports.energy import Energy
from spikeformer_lt.reports.ledger import build_ledger, count_operations

SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0, "image_size": 16}
NETWORKS = {
    "spikformer_toy": {**SMALL, "depth": 3}, "spikformer_dvs_toy": SMALL,
    "spikingformer_toy": SMALL, "sdt_toy": SMALL,
    "qkformer_toy": {**SMALL, "depths": (1, 2), "attention": "qk"},
    "maxformer_toy": {**SMALL, "depths": (1, 2), "mixers": (3,)},
}  # fmt: skip
T, B, EPS = 3, 5, 0.01


def pictures(model: Any) -> Tensor:
    frames = (T,) if model.in_channels == 2 else ()
    size = B, *frames, model.in_channels, 16, 16
    return torch.rand(*size, generator=torch.Generator().manual_seed(0)).double()


def made(name: str, awaken: Any, bias: float | None = None, **options: Any) -> Any:
    """A network that fires; with a `bias` its tokens halt, sooner where channel 0 is large."""
    torch.manual_seed(0)
    model: Any = create_model(name, **{"T": T, **NETWORKS[name], **options}).double()
    awaken(model, lambda net: net(pictures(net)))
    if bias is not None:
        halts = [HaltingNeuron(EPS, 0.5 / len(model.blocks)).double() for _ in model.blocks]
        for i, halt in enumerate(halts):
            nn.init.constant_(halt.bias, bias - 0.1 * i)
        model.set_halting(halts)
    return model.eval()


def seen(model: Any, quiet: bool = True) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits, and at each call of a halting neuron the tokens and those of them that run."""
    calls: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.halt.register_forward_hook(lambda m, args, out: calls.append((args[0], out[0])))
        for block in model.blocks
    ]
    with torch.set_grad_enabled(not quiet):
        logits = model(pictures(model))
    for hook in hooks:
        hook.remove()
    return logits.detach(), calls


def runs(model: Any) -> Tensor:
    """Which tokens run, ``[L, T, B, N]``, of the form that computes all of them."""
    return torch.stack([running for _, running in seen(model, quiet=False)[1]]).detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_halts_is_left_out_and_nothing_else_changes(name: str, awaken: Any) -> None:
    plain = made(name, awaken)
    with torch.no_grad():
        whole = plain(pictures(plain))
        never = made(name, awaken, -40.0)
        assert torch.allclose(never(pictures(never)), whole, rtol=0, atol=1e-12)
        assert build_ledger(never, [pictures(never)])["sparsity"]["halting"] == 0
    assert torch.allclose(never(pictures(never)), whole, rtol=0, atol=1e-12), "with gradients"
    model = made(name, awaken, -2.0)
    masked, folded = seen(model, quiet=False)
    stepped, calls = seen(model)
    assert torch.allclose(stepped, masked, rtol=0, atol=1e-12)
    assert not torch.allclose(stepped, whole, rtol=0, atol=1e-3)
    depth, share = len(model.blocks), runs(model)
    assert 0.1 < float(share.mean()) < 0.95
    assert bool((share[:, 1:] <= share[:, :-1]).all() and (share[1:] <= share[:-1]).all())
    by_step = [torch.stack([calls[t * depth + i][1][0] for t in range(T)]) for i in range(depth)]
    assert torch.equal(torch.stack(by_step), share), "the decisions of both forms"
    for i in range(depth - 1):
        halted = share[i] == 0
        before = folded[i][0].expand(T, -1, -1, -1)
        assert torch.equal(folded[i + 1][0][halted], before[halted])
        for t in range(T):
            (here, _), (after, _) = calls[t * depth + i], calls[t * depth + i + 1]
            assert torch.equal(after[0][halted[t]], here[0][halted[t]])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_ledger_counts_what_runs(name: str, awaken: Any) -> None:
    """By hand: the tokens and steps that run, their products, and the spikes that enter them."""
    model = made(name, awaken, -2.0)
    share, images = runs(model), pictures(model)
    found = build_ledger(model, [images])
    assert found["sparsity"]["halting"] == pytest.approx(1 - float(share.mean()), abs=1e-12)
    assert found["steps"] == T
    read: dict[str, Tensor] = {}
    linears = {f"blocks.{i}.mlp.{n}": getattr(block.mlp, n).linear
               for i, block in enumerate(model.blocks) for n in ("fc1", "fc2")}  # fmt: skip
    for key, layer in linears.items():
        layer.register_forward_hook(lambda m, args, out, k=key: read.__setitem__(k, args[0]))
    model(images)
    for key, layer in linears.items():
        running = share[int(key.split(".")[1])]
        fan_out = (layer.weight != 0).sum(0).double()
        entry = found["layers"][f"{key}.linear"]
        macs = running.sum() * layer.weight.numel() / B
        assert (
            entry["macs"]
            == entry["macs_t_fold"]
            == entry["macs_dense"]
            == pytest.approx(float(macs))
        )
        values = read[key].expand(T, -1, -1, -1).abs() * running[..., None] @ fan_out
        assert entry["sops"] in (0, pytest.approx(float(values.detach().sum()) / B)), key
    assert sum(found["layers"][f"{key}.linear"]["sops"] for key in linears) > 0
    stem = [key for key in found["layers"] if key.startswith("stem.")]
    model.set_halting()
    dense = build_ledger(model, [images])
    assert all(found["layers"][key] == dense["layers"][key] for key in stem)
    assert found["macs"] < dense["macs"] and "halting" not in dense["sparsity"]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_export_halts_alike_whatever_the_batch(name: str, awaken: Any) -> None:
    model = made(name, awaken, -2.0)
    for confidence in (0.0, 0.15):
        model.confidence = confidence
        images, small = pictures(model), compact(model)
        with torch.no_grad():
            whole = model(images)
            for net in (model, small):
                assert torch.allclose(net(images), whole, rtol=0, atol=1e-9)
                parts = [net(part) for part in images.split([1, 3, 1])]
                assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-9)
    model.confidence = 0.0
    counts = []
    for net in (model, small.net):
        _, calls = seen(net)
        counts.append(torch.stack([running for _, running in calls]))
    assert torch.equal(*counts)


@pytest.mark.parametrize("name", ["spikformer_dvs_toy", "sdt_toy"])
def test_frames_one_by_one_halt_as_the_clip(name: str, awaken: Any) -> None:
    model = made(name, awaken, -2.0)
    images, stream = pictures(model), Stream(model)
    frames = images.unbind(1) if images.ndim == 5 else [images] * T
    given = torch.cat([stream.push(frame) for frame in frames], 1)
    with torch.no_grad():
        assert torch.allclose(given, model(images), rtol=0, atol=1e-12)


def fire(u: Tensor) -> Tensor:
    smooth = torch.sigmoid(4 * u)
    return (u >= 0).double() + (smooth - smooth.detach())


def lif(x: Tensor, threshold: float = 1.0) -> Tensor:
    v, spikes = torch.zeros_like(x[0]), []
    for now in x:
        h = v + (now - v) / 2
        spikes.append(fire(h - threshold))
        v = h * (1 - spikes[-1].detach())
    return torch.stack(spikes)


def current(unit: Any, x: Tensor) -> Tensor:
    linear, norm = unit.linear, unit.norm
    rows = F.linear(x, linear.weight, linear.bias)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (rows - norm.running_mean) * scale + norm.bias


def plain(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the cost of a Spikformer, in products of zeros and ones alone."""
    scores, cost = [], 0.0
    for block in model.blocks:
        halt, attn = block.halt, block.attn
        scores.append(1 / (1 + torch.exp(-halt.gain * tokens[..., 0] - halt.bias)))
        total = torch.stack([sum(s[: t + 1].sum(0) for s in scores) for t in range(T)])
        runs = 1 - fire(total - (1 - EPS))
        cost = cost + halt.weight * runs.mean()
        q, k, v = (lif(current(u, tokens)).unflatten(-1, (2, -1)) for u in (attn.q, attn.k, attn.v))
        seen = torch.einsum("tbnhd,tbmhd,tbm->tbhnm", q, k, runs)
        own = torch.einsum("tbnhd,tbnhd,tbn,nm->tbhnm", q, k, 1 - runs, torch.eye(16).double())
        summed = torch.einsum("tbhnm,tbmhd->tbnhd", seen + own, v).flatten(-2) * attn.scale
        new = tokens + lif(current(attn.proj, lif(summed, 0.5)))
        new = new + lif(current(block.mlp.fc2, lif(current(block.mlp.fc1, new))))
        tokens = runs[..., None] * new + (1 - runs[..., None]) * tokens
    return model.head(tokens.mean(2)), cost


def test_gradients_are_those_of_a_plain_formulation(awaken: Any) -> None:
    model = made("spikformer_toy", awaken, -2.0)
    images = pictures(model)
    with penalties() as added:
        logits = model(images)
    tokens, _ = model.stem_tokens(model.time_first(images))
    expected, cost = plain(model, tokens)
    assert torch.allclose(logits, expected.transpose(0, 1), rtol=1e-9, atol=1e-12)
    assert torch.allclose(sum(added), cost, rtol=1e-12) and len(added) == 3
    assert float(cost.detach()) == pytest.approx(0.5 * float(runs(model).mean()))
    leaves = {n: p for n, p in model.named_parameters() if not n.endswith("linear.bias")}
    target = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    mine = torch.autograd.grad((logits * target).sum() + sum(added), leaves.values())
    other = torch.autograd.grad((expected.transpose(0, 1) * target).sum() + cost, leaves.values())
    for key, one, two in zip(leaves, mine, other, strict=True):
        assert torch.allclose(one, two, rtol=1e-7, atol=1e-11), key
        assert ".halt." not in key or one.abs().sum() > 1e-6, key


def test_a_block_computed_again_gives_the_same_gradients(awaken: Any) -> None:
    model = made("spikingformer_toy", awaken, -2.0).train()
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.recompute = True
    for net in (model, twin):
        net(pictures(net)).square().sum().backward()
    for (key, one), two in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("name", ["spikformer_toy", "sdt_toy"])
def test_one_step_is_defined(name: str, awaken: Any) -> None:
    model = made(name, awaken, -0.5, T=1)
    masked, _ = seen(model, quiet=False)
    stepped, calls = seen(model)
    assert torch.allclose(stepped, masked, rtol=0, atol=1e-12) and stepped.shape[1] == 1
    scores = [
        torch.sigmoid(tokens[0, ..., 0] - 0.5 - 0.1 * i) for i, (tokens, _) in enumerate(calls)
    ]
    for i, (_, running) in enumerate(calls):
        assert torch.equal(running[0] > 0, sum(scores[: i + 1]) < 1 - EPS)


STOPPING = {
    "images": ("spikformer_toy", {}), "frames": ("spikformer_dvs_toy", {}),
    "stateless stem": ("spikingformer_toy", {"activation": "heaviside"}),
    "selected patches": ("maxformer_toy", {}), "gains of steps": ("bestformer_toy", SMALL),
    "convolutions": ("sdt2_toy", {"image_size": 16, "widths": (4, 8, 8), "embed_dim": 16}),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPPING)
def test_an_image_stops_when_it_is_sure(case: str, awaken: Any) -> None:
    name, options = STOPPING[case]
    torch.manual_seed(0)
    model: Any = create_model(name, **{"T": T, **NETWORKS.get(name, {}), **options}).double()
    awaken(model, lambda net: net(pictures(net)))
    model.eval()
    if case == "selected patches":
        model.set_patch(PatchSelect(make_score("rate", 16, 10, 2), 0.5))
    nn.init.normal_(model.head.weight, std=3.0)
    images = pictures(model)
    with torch.no_grad():
        whole = model(images)
        means = whole.cumsum(1) / torch.arange(1, T + 1)[:, None]
        known = means.softmax(2).amax(2)
        level = float(known[:, :-1].median())
        model.set_halting(confidence=level)
        expected, steps = whole.clone(), []
        for i in range(B):
            sure = [t for t in range(T) if known[i, t] >= level]
            steps.append((sure or [T - 1])[0] + 1)
            expected[i, steps[-1] :] = means[i, steps[-1] - 1]
        assert len(set(steps)) > 1
        heads, stems = [], []
        hooks = [
            model.head.register_forward_hook(lambda m, args, out: heads.append(out.shape[-2])),
            model.stem.register_forward_hook(lambda m, args, out: stems.append(args[1])),
        ]
        assert torch.allclose(model(images), expected, rtol=0, atol=1e-12)
        assert heads == [sum(s > t for s in steps) for t in range(max(steps))]
        once = case in ("stateless stem", "selected patches")
        assert stems == ([T] if once else [1] * max(steps))
        for hook in hooks:
            hook.remove()
        assert torch.allclose(compact(model)(images), expected, rtol=0, atol=1e-9)
        found = build_ledger(model, [images])
        assert found["steps"] == pytest.approx(sum(steps) / B)
        assert found["sparsity"]["halting"] == pytest.approx(1 - sum(steps) / B / T)
        stopped = {n: m for n, m in found["layers"].items() if n.startswith("blocks.")}
        energy = Energy.of(count_operations(model, [images], T))
        model.set_halting()
        dense = build_ledger(model, [images])
        for key, layer in stopped.items():
            share = layer["macs_t_fold"] / dense["layers"][key]["macs_t_fold"]
            assert share == pytest.approx(sum(steps) / B / T), key
        first = Energy.of(count_operations(model, [images], T)).layers[0]
        if images.ndim == 4:  # one step of an image, whatever the steps
            assert energy.layers[0].formula_macs == pytest.approx(first.formula_macs)
    assert torch.allclose(model.train()(images), model(images)), "training runs all steps"


def test_what_cannot_halt_is_refused() -> None:
    for name, why in (
        ("bestformer_toy", "neurons between pairs of tokens"),
        ("sdt2_toy", "with its convolutions"),
        ("sdt3_toy", "neighbours of every token, so that none can halt"),
    ):  # fmt: skip
        model = create_model(name)
        with pytest.raises(ConfigError, match=why):
            model.set_halting([HaltingNeuron() for _ in model.blocks])
    with pytest.raises(ConfigError, match="dvs_mode"):
        create_model("sdt_toy", dvs_mode=True).set_halting([HaltingNeuron(), HaltingNeuron()])
    model = create_model("spikformer_toy", depth=1)
    half = PatchSelect(make_score("tp", 32, 10, 2), 0.5)
    for way in (lambda: model.set_stops([half]),
                lambda: model.set_stages({0: StagedSelect(32, 64, 0.5)})):  # fmt: skip
        model.set_halting()
        way()
        for asked in ({"halts": [HaltingNeuron()]}, {"confidence": 0.5}):
            with pytest.raises(ConfigError, match="no others stop or leave before blocks"):
                model.set_halting(**asked)
        model.set_patch(None)
        model.set_halting([HaltingNeuron()])
        with pytest.raises(ConfigError, match="tokens halt in the blocks"):
            way()
    with pytest.raises(ConfigError, match="tokens halt in the blocks"):
        model.set_patch(PatchSelect(make_score("rate", 32, 10, 2), 0.5, rescale=True))
    with pytest.raises(ConfigError, match="one for each of 1 blocks"):
        model.set_halting([HaltingNeuron(), HaltingNeuron()])
    with pytest.raises(ConfigError, match=r"halting\.eps=1"):
        HaltingNeuron(1.0)
    with pytest.raises(ConfigError, match=r"halting\.confidence=0\.5"):
        create_model("spikformer_toy", num_classes=0).set_halting(confidence=0.5)


@pytest.mark.parametrize("rest", [-0.4, 0.3])
@pytest.mark.parametrize("name", ["spikformer_toy", "spikingformer_toy", "sdt_toy"])
def test_neurons_of_every_group_start_from_rest(name: str, rest: float, awaken: Any) -> None:
    """In the first step images of which as many tokens run are computed one group after another."""
    model = made(name, awaken, -2.0, v_reset=rest)
    assert 0.1 < float(runs(model).mean()) < 0.95
    masked, stepped = seen(model, quiet=False)[0], seen(model)[0]
    assert torch.allclose(stepped, masked, rtol=0, atol=1e-12)
