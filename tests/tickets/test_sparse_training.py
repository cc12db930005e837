"""Dynamic sparse training: what is exchanged, when, and how many are left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import SparseTraining, SparseTrainingConfig
from spikeformer_lt.tickets.sparse_training import Rewiring, exchange
from spikeformer_lt.training.phase import Hooks, Progress


@given(st.integers(2, 40), st.floats(0, 1), st.integers(0, 40), st.integers(0, 100))
def test_an_exchange_keeps_the_count_and_swaps_the_right_ones(size, density, count, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, grow = torch.rand(2, size, generator=generator)
    kept = torch.rand(size, generator=generator) < density
    out = exchange(weight, kept, count, grow)
    assert int(out.sum()) == int(kept.sum())
    swapped = min(count, int(kept.sum()), int((~kept).sum()))
    gone = sorted(kept.nonzero().flatten().tolist(), key=lambda i: float(weight[i]))[:swapped]
    left = set(kept.nonzero().flatten().tolist()) - set(gone)
    free = [i for i in range(size) if i not in left]
    grown = sorted(free, key=lambda i: -float(grow[i]))[:swapped]
    assert set(out.nonzero().flatten().tolist()) == left | set(grown)


def train(preset: str, epochs: int = 4, **options):
    """Ten steps an epoch of a linear map; returns the hook and the masks after each step."""
    torch.manual_seed(0)
    model = nn.Linear(20, 15)
    config = SparseTraining(SparseTrainingConfig(preset, epochs=epochs, every=5, **options)).config
    first = Mask.from_scores({"weight": torch.rand(15, 20)}, config.start_sparsity)
    hook = Rewiring(first, config, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    hooks, masks = Hooks([hook]), [first]
    hooks.start(model, 10, epochs)
    for update in range(10 * epochs):
        optimizer.zero_grad()
        kept = hook.kept(model, Progress(update // 10, update % 10, 10, epochs))
        dense = update in (5, 10, 15, 20, 25, 30) and config.grow != "random"
        assert kept.keys() == (set() if dense else {model.weight})
        (model(torch.randn(8, 20)) - 1).square().mean().backward()
        hooks.after_backward(model, optimizer, Progress(update // 10, update % 10, 10, epochs))
        optimizer.step()
        hooks.after_step(model, update + 1, None)
        masks.append(hook.mask)
        assert bool((model.weight[~hook.mask["weight"]] == 0).all())
    return hook, masks


@pytest.mark.parametrize("preset", SparseTrainingConfig.PRESETS)
def test_the_mask_moves_on_schedule_and_ends_exact(preset):
    hook, masks = train(preset, sparsity=0.9)
    assert hook.mask.removed == round(0.9 * 300)
    moved = [i for i in range(40) if masks[i] != masks[i + 1]]
    assert moved and all(i % 5 == 0 and 0 < i <= 30 for i in moved)
    removed = [mask.removed for mask in masks]
    if preset == "granet":
        assert removed == sorted(removed) and removed[0] == 150
    else:
        assert set(removed) == {270}
    returned = [bool((masks[i + 1]["weight"] & ~masks[i]["weight"]).any()) for i in moved]
    assert any(returned)  # regrowth: what a nested mask never does


def test_gradient_growth_looks_at_dense_gradients():
    model = nn.Linear(4, 1, bias=False)
    kept = torch.tensor([[True, True, False, False]])
    hook = Rewiring(Mask({"weight": kept}), SparseTrainingConfig("rigl", drop=0.99, every=1), 0)
    hooks = Hooks([hook])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
    hooks.start(model, 100, 1)
    (model(torch.tensor([[0.0, 0.0, 1.0, 5.0]])) - 9).square().sum().backward()
    config = hook.config
    assert config.grow == "gradient"
    hook.mask = Mask({"weight": exchange(model.weight, kept, 1, model.weight.grad.abs())})
    assert hook.mask["weight"].tolist() == [[True, False, False, True]]


def test_random_growth_depends_on_the_seed_alone():
    assert train("set")[0].mask == train("set")[0].mask


def test_every_length_ends_at_the_final_sparsity(make, bench, tmp_path):
    for epochs, end in ((1, 1.0), (1, 0.1), (2, 0.5)):
        config = SparseTrainingConfig("granet", sparsity=0.8, epochs=epochs, end=end, every=1)
        fit = bench.trainer(tmp_path / f"{epochs}-{end}", ema_decay=0.5).fit
        ticket = SparseTraining(config).find(make(), fit)
        assert ticket.mask.removed == round(0.8 * ticket.mask.total)


@pytest.mark.parametrize(
    ("field", "value"),
    [("preset", "x"), ("grow", "x"), ("distribution", "x"), ("drop", 1.0), ("every", 0),
     ("end", 0.0), ("start_sparsity", 0.95), ("sparsity", 1.0)],
)  # fmt: skip
def test_bad_options_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        SparseTrainingConfig(**{field: value})


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.fault(72)
def test_the_shortest_training_reaches_its_sparsity(steps):
    model = nn.Linear(20, 15)
    config = SparseTraining(SparseTrainingConfig("granet", sparsity=0.9, epochs=1, every=1)).config
    first = Mask.from_scores({"weight": torch.rand(15, 20)}, config.start_sparsity)
    hook = Rewiring(first, config, seed=0)
    hooks, optimizer = Hooks([hook]), torch.optim.SGD(model.parameters(), lr=0.1)
    hooks.start(model, steps, 1)
    for step in range(steps):
        model(torch.randn(8, 20)).square().mean().backward()
        hooks.after_backward(model, optimizer, Progress(0, step, steps, 1))
        hooks.after_step(model, step + 1, None)
    assert hook.mask.removed == 270


def test_a_training_without_an_exchange_says_so(caplog):
    config = SparseTraining(SparseTrainingConfig("rigl", epochs=1, every=50)).config
    hook = Rewiring(Mask({"weight": torch.ones(2, 2)}), config, seed=0)
    hook.start(nn.Linear(2, 2), 20, 1)
    assert "NOTICE: every=50" in caplog.text
    caplog.clear()
    hook.start(nn.Linear(2, 2), 200, 1)
    assert not caplog.text


@pytest.mark.gpu
def test_an_exchange_on_a_gpu_is_that_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    weight, grow = torch.randint(-3, 4, (2, 999), generator=generator).float()  # many ties
    kept = torch.rand(999, generator=generator) < 0.3
    there = exchange(weight.cuda(), kept, 100, grow.cuda())
    assert torch.equal(there, exchange(weight, kept, 100, grow))
