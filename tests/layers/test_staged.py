"""Selectors before blocks: policies in training, tokens that leave in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers import SpikingSelfAttention
from spikeformer_lt.layers.patches import StagedSelect, penalties, selections
from spikeformer_lt.registry import create_model
from spikeformer_lt.reports.ledger import build_ledger
from spikeformer_lt.tickets.base import prunable
from spikeformer_lt.tickets.configs import PruneConfig
from spikeformer_lt.tickets.levels import PatchConfig
from spikeformer_lt.tickets.multisp import encoder_weights
from spikeformer_lt.tickets.surgery import set_patches

T = 3
STAGED = PatchConfig(0.3, "gumbel", "stages")


def pictures(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()


def made(awaken: Any, config: PatchConfig = STAGED, name: str = "spikformer_toy") -> Any:
    torch.manual_seed(0)
    model = create_model(name, T=T, embed_dim=16, num_heads=2, depth=4).double()
    awaken(model, lambda net: net(pictures()))
    set_patches(model, config)
    return model.double().eval()


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        model = create_model("spikformer_cifar")
        plain = sum(p.numel() for p in model.parameters())
        set_patches(model, STAGED)
    assert sum(p.numel() for p in model.parameters()) == plain + 3 * 74_306
    assert set(prunable(model, PruneConfig())) == set(
        prunable(create_model("spikformer_cifar"), PruneConfig())
    )
    assert not any("select" in name for name in encoder_weights(model))


@pytest.mark.parametrize(
    ("sparsity", "counts"), [(0.3, [44, 31, 21]), (0.1, [57, 51, 46]), (0.5, [32, 16, 8])]
)
def test_tokens_leave_in_stages(sparsity: float, counts: list[int], awaken: Any) -> None:
    """The counts of SparseSpikformer, int(N rho^i) of the first N."""
    model = made(awaken, PatchConfig(sparsity, "gumbel", "stages"), "spikingformer_toy")
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    logits = model(pictures())
    assert [x.shape[2] for x in seen] == [64, *counts]
    assert torch.equal(logits, model(pictures())) and logits.isfinite().all()
    removed = build_ledger(model, [pictures()])["sparsity"]["patch"]
    assert removed == pytest.approx(1 - (64 + sum(counts)) / 4 / 64)  # the mean over four blocks
    scores = model.blocks[1].select.net(model.stem_tokens(model.time_first(pictures()))[0].mean(0))
    assert scores.exp().sum(-1).allclose(torch.ones(2, 64).double())


def test_a_masked_key_is_seen_by_its_own_token_alone(awaken: Any) -> None:
    torch.manual_seed(0)
    attn = SpikingSelfAttention(8, 2, scale=1.0, current=True).double().eval()
    tokens = (torch.rand(T, 2, 6, 8) < 0.5).double()
    awaken(attn, lambda net: net(tokens, T))
    policy = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 1]]).double().requires_grad_()
    whole = attn.masked(tokens, T, torch.ones(2, 6).double())
    assert torch.equal(whole, attn(tokens, T))
    q, k, v = (unit(tokens, T).unflatten(-1, (2, 4)).transpose(2, 3)
               for unit in (attn.q, attn.k, attn.v))  # fmt: skip
    mask = policy[:, None, None, :] + (1 - policy[:, None, None, :]) * torch.eye(6).double()
    summed = ((q @ k.transpose(-2, -1)) * mask) @ v * attn.scale
    expected = attn.proj(attn.attn_act(summed.transpose(2, 3).flatten(-2), T), T)
    out = attn.masked(tokens, T, policy)
    assert torch.equal(out, expected) and not torch.equal(out, whole)
    (mine,) = torch.autograd.grad(out.sum(), policy, retain_graph=True)
    (other,) = torch.autograd.grad(expected.sum(), policy)
    assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12) and mine.abs().sum() > 0


def test_training_draws_policies_and_pays_for_their_ratio(awaken: Any) -> None:
    model = made(awaken).train()
    policies: list[Tensor] = []
    for select in selections(model):
        select.register_forward_hook(lambda m, args, out: policies.append(out[1]))
    torch.manual_seed(1)
    with penalties() as added:
        logits = model(pictures())
    assert len(added) == len(policies) == 3
    for policy, before in zip(policies[1:], policies, strict=False):
        assert set(policy.unique().tolist()) <= {0.0, 1.0} and bool((policy <= before).all())
    gaps = [(p.mean(1) - 0.7**i).square().mean() for i, p in enumerate(policies, 1)]
    assert torch.allclose(sum(added), 2.0 * sum(gaps) / 3)
    (logits.square().sum() + sum(added)).backward()
    for select in selections(model):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in select.parameters())
    copy.deepcopy(model)  # nothing of a call stays on the model
    assert model.eval()(pictures()).isfinite().all()
    with penalties() as quiet:
        model(pictures())
    assert quiet == []


def test_what_has_no_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="stage 2 is before none of 2 blocks"):
        set_patches(create_model("spikformer_toy"), STAGED)
    for name, kind in (("sdt_toy", "SpikeDrivenTransformer"), ("bestformer_toy", "Bestformer")):
        with pytest.raises(ConfigError, match=f"{kind} has another"):
            create_model(name).set_stages({0: StagedSelect(32, 64, 0.5)})
    for wrong, said in (
        ({"score": "rate"}, r"patches\.score='rate'"), ({"stages": (2, 1)}, r"patches\.stages"),
        ({"space": "pixel"}, r"patches\.space"), ({"rescale": True}, r"patches\.rescale"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            PatchConfig(0.3, **{"score": "gumbel", "mode": "stages", **wrong})
