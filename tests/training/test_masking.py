"""Removed weights stay exactly 0, whatever the optimizer does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import MaskError
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.mask import Mask
from spikeformer_lt.training.optim import Ema
from spikeformer_lt.training.phase import Hooks, Masked, Progress, Rewired

BEGIN = Progress(0, 0, 10, 1)
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
}


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 6)


def mask_of(model: nn.Linear, sparsity: float, seed: int = 0) -> Mask:
    drawn = Mask.from_scores({"weight": model.weight.detach().abs()}, sparsity)
    return Mask.random_like(drawn, seed) if seed else drawn


def step(model, hooks, optimizer, update=1, ema=None):
    optimizer.zero_grad()
    model(torch.randn(16, 8)).square().sum().backward()
    hooks.after_backward(model, optimizer, Progress(0, update - 1, 10, 1))
    norm = model.weight.grad.clone()
    optimizer.step()
    hooks.after_step(model, update, ema)
    return norm


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_removed_weights_are_zero_after_every_step(kind):
    model = net()
    mask = mask_of(model, 0.6)
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, Hooks(()), optimizer)  # moments from a dense step are there before the mask is
    hooks = Hooks([Masked(mask)])
    hooks.start(model, 10, 1)
    ema = Ema(model, 0.5)
    for update in range(1, 6):
        grad = step(model, hooks, optimizer, update, ema)
        assert bool((grad[~mask["weight"]] == 0).all())
        for held in (model.weight, ema.weights()["weight"]):
            assert bool((held[~mask["weight"]] == 0).all())
            assert bool((held[mask["weight"]] != 0).all())


def test_a_kept_weight_that_passes_zero_is_not_frozen():
    model = net()
    with torch.no_grad():
        model.weight[0, 0] = 0.0
    hooks = Hooks([Masked(Mask({"weight": torch.ones(6, 8, dtype=torch.bool)}))])
    hooks.start(model, 10, 1)
    step(model, hooks, OPTIMIZERS["SGD"](model.parameters()))
    assert model.weight[0, 0] != 0


def test_a_nan_gradient_stays_one_for_the_guard():
    model = net()
    hooks = Hooks([Masked(mask_of(model, 0.5))])
    hooks.start(model, 10, 1)
    model.weight.grad = torch.full_like(model.weight, float("nan"))
    hooks.after_backward(model, OPTIMIZERS["SGD"](model.parameters()), Progress(0, 0, 1, 1))
    assert bool(model.weight.grad.isnan().all())


def test_a_foreign_mask_is_refused_at_the_start():
    with pytest.raises(MaskError, match="other"):
        Masked(Mask({"other": torch.ones(3)})).start(net(), 1, 1)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_weight_that_returns_starts_at_zero_with_fresh_moments(kind):
    model = net()
    optimizer, ema = OPTIMIZERS[kind](model.parameters()), Ema(model, 0.5)
    hook = Rewired(Mask({"weight": torch.ones(6, 8, dtype=torch.bool)}))
    hooks = Hooks([hook])
    hooks.start(model, 10, 1)
    step(model, hooks, optimizer, 1, ema)
    first, second = mask_of(model, 0.5, seed=1), mask_of(model, 0.5, seed=2)
    hook.change(first, model, optimizer)
    step(model, hooks, optimizer, 2, ema)
    hook.change(second, model, optimizer)
    back = second["weight"] & ~first["weight"]
    assert bool(back.any())
    assert bool((model.weight[back] == 0).all())
    for moment in optimizer.state[model.weight].values():
        if moment.shape == model.weight.shape:
            assert bool((moment[back] == 0).all())
            assert bool((moment[~second["weight"]] == 0).all())
    step(model, hooks, optimizer, 3, ema)
    assert bool((ema.weights()["weight"][~second["weight"]] == 0).all())
    restored = Rewired(first)
    restored.load(hook.tensors(), hook.state())
    assert restored.mask == second


def test_lists_are_made_once_a_mask_and_a_step_by_them_is_the_dense_one(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(dispatch, "_mode", "numba")
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "always")
    found = []
    for lists in (False, True):
        torch.manual_seed(0)
        model = create_model("spikformer_toy", image_size=16, depth=1).double()
        scores = {
            n: w.detach().abs() for n, w in model.blocks.named_parameters("blocks") if w.dim() > 1
        }
        hook = Rewired(Mask.from_scores(scores, 0.8))
        hooks = Hooks([hook])
        hooks.start(model, 10, 1)
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        x = torch.rand(2, 3, 16, 16).double()
        for update in range(3):
            optimizer.zero_grad()
            kept = hooks.kept(model, BEGIN) if lists else {}
            with dispatch.kept_weights(kept):
                model(x).square().sum().backward()
            used = [own for own in kept.values() if own.lists or own._joined]
            assert len(used) == (4 if lists else 0)  # q, k and v are listed together
            used = [own._joined[1] if own._joined else own for own in kept.values()]
            assert all(own.chosen == (True, True, True) for own in used)
            assert not any(hasattr(w, "kept") for w in model.parameters())
            again = hooks.kept(model, BEGIN)
            assert all(again[weight] is own for weight, own in kept.items())
            hooks.after_backward(model, optimizer, BEGIN)
            optimizer.step()
            hooks.after_step(model, update + 1, None)
            told = "of 6: forward 6, inputs' gradient 6, weights' gradient 6"
            assert (told in caplog.text) == lists
            if update == 1:
                hook.change(Mask.random_like(hook.mask, 1), model, optimizer)
                assert not any(own is again[w] for w, own in hooks.kept(model, BEGIN).items())
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-9)
    rank = [Mask.from_scores({n: f[n].abs() for n in scores}, 0.9) for f in found]
    assert rank[0] == rank[1]
