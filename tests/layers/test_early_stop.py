"""Tokens that stop before blocks, on every architecture whose tokens can leave."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, ExportError
from spikeformer_lt.export import Stream, compact
from spikeformer_lt.layers import SpikingMLP, SpikingSelfAttention
from spikeformer_lt.layers.attention import EncoderBlock
from spikeformer_lt.layers.patches import STOPS, PatchSelect, make_score, selections, through
from spikeformer_lt.registry import create_model
from spikeformer_lt.reports.ledger import build_ledger
from spikeformer_lt.tickets.levels import PatchConfig
from spikeformer_lt.tickets.surgery import set_patches

SMALL: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "image_size": 16}
NETWORKS = {
    "spikformer_toy": SMALL, "spikingformer_toy": SMALL, "bestformer_toy": SMALL,
    "sdt_toy": SMALL,
    "qkformer_toy": {**SMALL, "depths": (1, 1, 2)},
}  # fmt: skip
WIDE: dict[str, Any] = {**SMALL, "image_size": 64, "depths": (2, 1)}
CONVOLVING = {"sdt3_toy": WIDE}  # blocks that convolve before their attention
T = 3


def made(name: str, awaken: Any, steps: int = T) -> Any:
    torch.manual_seed(0)
    model = create_model(name, T=steps, **(NETWORKS | CONVOLVING)[name]).double()
    awaken(model, lambda net: net(pictures(name)))
    return model.eval()


def pictures(name: str = "") -> Tensor:
    side = CONVOLVING.get(name, SMALL)["image_size"]
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("tp", name) for name in NETWORKS), *((kind, "sdt_toy") for kind in STOPS if kind != "tp")],
)
def test_tokens_that_stop_leave_every_block_as_they_came(kind: str, name: str, awaken: Any) -> None:
    model = made(name, awaken)
    plain, state = model(pictures()), set(model.state_dict())
    set_patches(model, PatchConfig(0.0, kind, "stop"))
    assert selections(model) == [] and torch.equal(model(pictures()), plain)
    blocks = model.encoder_blocks()
    shares = tuple(0.0 for _ in blocks[1:])
    set_patches(model, PatchConfig(0.5, kind, "stop", (*shares, 0.0)))
    assert torch.equal(model(pictures()), plain), "all go on"
    set_patches(model, PatchConfig(0.5, kind, "stop", (0.5, *shares)))
    seen: dict[str, Any] = {}
    blocks[0].stop.register_forward_hook(
        lambda m, args, out: seen.update(before=args[0], index=out[0])
    )
    blocks[0].register_forward_hook(lambda m, args, out: seen.update(kept=args[0], ran=out))
    following = blocks[1]
    following.register_forward_pre_hook(lambda m, args: seen.update(after=args[0]))
    assert not torch.equal(model(pictures()), plain)
    before, index, ran = seen["before"], seen["index"], seen["ran"]
    assert ran.shape[2] == before.shape[2] // 2 and set(model.state_dict()) == state
    if name != "qkformer_toy":  # its second block reads embedded tokens
        stopped = torch.ones(before.shape[1:3], dtype=torch.bool).scatter_(1, index, False)
        where = stopped.expand(T, -1, -1)
        assert torch.equal(seen["after"][where], before.expand(T, -1, -1, -1)[where])
        assert torch.equal(seen["after"][~where], ran.flatten(0, 2))
        alone = blocks[0](seen["kept"], T)
        assert torch.equal(alone, ran), "the block saw the tokens that go on alone"


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("kind", STOPS)
def test_tokens_stop_behind_the_convolutions_of_a_block(
    kind: str, inner: bool, awaken: Any
) -> None:
    """SDT v3: all are scored as they come and convolved; some go on to attention and MLP."""
    model = made("sdt3_toy", awaken)
    plain, blocks = model(pictures("sdt3_toy")), model.encoder_blocks()
    assert len(blocks) == 3
    which = 0 if inner else 2
    set_patches(model, PatchConfig(0.5, kind, "stop", (0.0, 0.0, 0.0)))
    assert torch.equal(model(pictures("sdt3_toy")), plain), "all go on"
    shares = tuple(0.5 if i == which else 0.0 for i in range(3))
    set_patches(model, PatchConfig(0.5, kind, "stop", shares))
    seen: dict[str, Any] = {}
    block = blocks[which]
    block.stop.register_forward_hook(lambda m, args, out: seen.update(before=args[0], index=out[0]))
    block.register_forward_hook(lambda m, args, out: seen.update(given=args[0], out=out))
    block.branches[1].register_forward_pre_hook(lambda m, args: seen.update(kept=args[0]))
    assert not torch.equal(model(pictures("sdt3_toy")), plain)
    before, index = seen["before"], seen["index"]
    assert torch.equal(before, seen["given"]) and index.shape == (4, 8)
    rows = before.unflatten(2, block.grid)
    convolved = (rows + block.branches[0](rows, T)).flatten(2, 3)
    stopped = torch.ones(4, 16, dtype=torch.bool).scatter_(1, index, False)
    assert torch.equal(seen["out"][:, stopped], convolved[:, stopped])
    kept = convolved[:, ~stopped].unflatten(1, (4, 1, 8))
    assert torch.equal(seen["kept"], kept), "attention and MLP see those that go on alone"
    kept = kept + block.branches[1](kept, T)
    kept = kept + block.branches[2](kept, T)
    assert torch.equal(seen["out"][:, ~stopped], kept.flatten(1, 3))


def test_a_static_input_stops_as_the_same_token_at_every_step(awaken: Any) -> None:
    torch.manual_seed(0)
    block = EncoderBlock(SpikingSelfAttention(8, 2), SpikingMLP(8, 16)).double().eval()
    once = (torch.rand(1, 2, 16, 8) < 0.5).double()
    awaken(block, lambda net: net(once, T))
    block.stop = PatchSelect(make_score("tp", 8, 2, 2), 0.75)
    images = torch.rand(1, 2, 3, 8, 8)
    out = through(block, once, T, images)
    index = block.stop(once, once, images, T)[0]
    assert out.shape == (T, 2, 16, 8) and index.shape == (2, 4)
    stopped = torch.ones(2, 16, dtype=torch.bool).scatter_(1, index, False).expand(T, -1, -1)
    assert torch.equal(out[stopped], once.expand(T, -1, -1, -1)[stopped])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tp", "qkformer_toy"),
        ("tp-code", "sdt_toy"),
        *((kind, "sdt3_toy") for kind in ("tp", "tp-code")),
    ],
)
def test_one_step_is_defined(kind: str, name: str, awaken: Any) -> None:
    model = made(name, awaken, 1)
    set_patches(model, PatchConfig(0.5, kind, "stop"))
    assert model(pictures(name)).isfinite().all()


def test_the_published_code_compares_with_a_sum_over_channels() -> None:
    """Written as it is: a convolution with ones of all channels, over nine."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.rand(4, 2, 16, 6, generator=g, dtype=torch.float64)
    images = torch.zeros(4, 2, 3, 8, 8)
    mean = tokens.mean(0).transpose(1, 2).unflatten(2, (4, 4))
    ones = torch.ones(6, 6, 3, 3, dtype=torch.float64) / 9
    around = nn.functional.conv2d(mean, ones, padding=1)
    spatial = -nn.functional.cosine_similarity(mean, around, dim=1).flatten(1)
    level = tokens.mean(3)
    temporal = (level[1:] - level[:-1]).abs().mean(0)
    expected = temporal.softmax(1) + spatial.softmax(1)
    found = make_score("tp-code", 6, 2, 2)(tokens, tokens, images, 4)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    corrected = make_score("tp", 6, 2, 2)(tokens, tokens, images, 4)
    assert not torch.allclose(found, corrected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [*NETWORKS, *CONVOLVING])
def test_operations_of_the_blocks_fall_by_the_share_that_stops(name: str, awaken: Any) -> None:
    model = made(name, awaken)
    whole = build_ledger(model, [pictures(name)])
    set_patches(model, PatchConfig(0.5, "tp", "stop"))
    part = build_ledger(model, [pictures(name)])
    assert whole["sparsity"]["patch"] == 0 and part["sparsity"]["patch"] == 0.5
    inside = {m for block in model.encoder_blocks() for m in block.modules()}
    linear = {n: m in inside for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert sum(linear.values()) == len(linear) - 1 > 6, "all but the head"
    for layer, half in linear.items():
        share = part["layers"][layer]["macs_dense"] / whole["layers"][layer]["macs_dense"]
        assert share == (0.5 if half else 1), layer
    assert part["sops"] < whole["sops"] and part["macs"] < whole["macs"]
    set_patches(model, PatchConfig(0.5, "tp", "stop", (0.0, *[0.5] * (len(selections(model)) - 1))))
    share = 0.5 * (len(selections(model)) - 1) / len(selections(model))
    assert build_ledger(model, [pictures(name)])["sparsity"]["patch"] == pytest.approx(share)


@pytest.mark.parametrize("name", [*NETWORKS, *CONVOLVING])
def test_the_compact_form_lets_the_same_tokens_stop(name: str, awaken: Any) -> None:
    model = made(name, awaken)
    set_patches(model, PatchConfig(0.5, "tp", "stop"))
    assert torch.allclose(compact(model)(pictures(name)), model(pictures(name)), rtol=0, atol=1e-9)


def test_frames_are_kept_until_all_steps_are_known(awaken: Any) -> None:
    model = made("spikformer_toy", awaken)
    set_patches(model, PatchConfig(0.5, "tp", "stop"))
    stream = Stream(model)
    given = [stream.push(pictures()) for _ in range(T)]
    assert [len(out[0]) for out in given] == [0, 0, T]
    assert torch.allclose(given[-1], model(pictures()), rtol=0, atol=1e-12)
    for name in ("qkformer_toy", "sdt3_toy"):
        inner = made(name, awaken)
        set_patches(inner, PatchConfig(0.5, "tp", "stop"))
        with pytest.raises(ExportError, match="tokens stop inside of the stem"):
            Stream(inner)


def test_gradients_reach_stopped_and_running_tokens(awaken: Any) -> None:
    model = made("spikingformer_toy", awaken).train()
    set_patches(model, PatchConfig(0.5, "tp", "stop"))
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.recompute = True
    for net in (model, twin):
        net(pictures()).square().sum().backward()
    for (key, mine), (_, again) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert mine.grad.abs().sum() > 0 or key.endswith("linear.bias"), key
        assert torch.allclose(mine.grad, again.grad, rtol=1e-9, atol=1e-12), key


def test_random_tokens_are_others_in_every_block(awaken: Any) -> None:
    model = made("spikformer_toy", awaken)
    set_patches(model, PatchConfig(0.5, "random", "stop"))
    kept: list[Tensor] = []
    for block in model.blocks:
        block.stop.register_forward_hook(lambda m, args, out: kept.append(out[0]))
    model(pictures())
    model(pictures())
    assert torch.equal(kept[0], kept[2]) and not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0][0], kept[0][1]), "and in every image"


def test_what_cannot_stop_is_refused() -> None:
    model = create_model("spikformer_toy", **SMALL)
    gumbel = PatchSelect(make_score("gumbel", 32, 10, 2), 0.5)
    with pytest.raises(ConfigError, match="Gumbel in token space chooses no tokens that stop"):
        model.set_stops([gumbel, gumbel])
    with pytest.raises(ConfigError, match="1 shares of tokens that stop, for 2 blocks"):
        model.set_stops([PatchSelect(make_score("tp", 32, 10, 2), 0.5)])
    model.blocks[0].attn = nn.Identity()
    with pytest.raises(ConfigError, match="block 0 reads the neighbours of every token"):
        set_patches(model, PatchConfig(0.5, "tp", "stop"))
    eroding = create_model("sdt_toy", dvs_mode=True, **SMALL)
    convolving = create_model("sdt2_toy", **WIDE)
    with pytest.raises(ConfigError, match="MetaSpikeFormer with its convolutions reads"):
        set_patches(convolving, PatchConfig(0.5, "tp", "stop"))
    with pytest.raises(ConfigError, match="dvs_mode"):
        set_patches(eroding, PatchConfig(0.5, "tp", "stop"))
    for wrong, said in (
        ({"score": "qk", "mode": "stop"}, r"patches.score='qk' .*one of rate, l2"),
        ({"space": "pixel", "mode": "stop"}, "patches.space='pixel'"),
        ({"blocks": (0.5,)}, "patches.blocks"),
        ({"mode": "stop", "blocks": (0.5, 1.0)}, "patches.blocks"),
        ({"mode": "early"}, "patches.mode='early'"),
    ):
        with pytest.raises(ConfigError, match=said):
            PatchConfig(**wrong)
