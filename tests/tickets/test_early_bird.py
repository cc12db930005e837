"""Early-Bird: when it stops, and what it compares."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import (
    EarlyBird,
    EarlyBirdConfig,
    find_groups,
    magnitudes,
    retrain,
    shrink,
)
from spikeformer_lt.tickets.early_bird import MaskWatch


def draw(model: nn.Module) -> Mask:
    return Mask.from_scores(magnitudes({"weight": model.weight}), 0.5)


def stop_of(watch: MaskWatch, change: float, epochs: int = 30) -> int | None:
    torch.manual_seed(0)
    model = nn.Linear(10, 10)
    for epoch in range(epochs):
        if watch.before_epoch(model, epoch):
            return epoch
        with torch.no_grad():
            model.weight += change * torch.randn(10, 10)
    return None


@pytest.mark.parametrize("window", [2, 5, 7])
def test_constant_weights_stop_as_soon_as_the_window_is_full(window):
    assert stop_of(MaskWatch(draw, window, 0.02), 0.0) == window - 1


def test_the_papers_first_possible_stop_is_epoch_index_4():
    config = EarlyBird(EarlyBirdConfig(preset="eccv22")).config
    assert stop_of(MaskWatch(draw, config.window, config.tolerance), 0.0) == 4


def test_a_mask_that_moves_does_not_stop():
    assert stop_of(MaskWatch(draw, 5, 0.02), 1.0) is None
    assert stop_of(MaskWatch(draw, 5, 0.0), 0.0) == 4  # nothing moved at all


def test_the_newest_is_compared_with_every_older_mask():
    masks = [torch.ones(10).bool() for _ in range(5)]
    masks[0][0] = False  # the oldest alone differs, by a tenth
    queue = iter(masks)
    watch = MaskWatch(lambda _: Mask({"w": next(queue)}), 5, 0.1)
    stops = [watch.before_epoch(nn.Linear(1, 1), epoch) for epoch in range(5)]
    assert stops == [False] * 5
    want = [[], [0.1], [0.1, 0], [0.1, 0, 0], [0.1, 0, 0, 0]]
    assert all(row == pytest.approx(w) for row, w in zip(watch.history, want, strict=True))


def test_an_epoch_resumed_amid_is_not_counted_twice():
    first, second = MaskWatch(draw, 3, 0.02), MaskWatch(draw, 3, 0.02)
    model = nn.Linear(4, 4)
    for epoch in range(2):
        first.before_epoch(model, epoch)
    second.load(first.tensors(), first.state())
    assert not second.before_epoch(model, 1)
    assert len(second.masks) == 2 and second.masks[0] == first.masks[0]
    assert second.before_epoch(model, 2)
    assert second.before_epoch(model, 2)  # asked again after a kill: the same answer
    assert second.history == [[], [0.0], [0.0, 0.0]]


def test_the_penalty_pulls_scales_towards_zero():
    norm = nn.BatchNorm1d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
    norm.weight.grad = torch.zeros(3)
    MaskWatch(draw, 2, 0.1, {"weight": 0.5}).after_backward(norm, None, None)
    assert norm.weight.grad.tolist() == [0.5, -0.5, 0.0]


def test_the_search_stops_early_with_the_real_trainer(make, bench, tmp_path):
    search = EarlyBird(EarlyBirdConfig(sparsity=0.8, epochs=9, window=3, tolerance=0.9))
    ticket = search.find(make(), bench.trainer(tmp_path).fit)
    assert [result.epochs for result in search.results] == [2]
    assert ticket.mask == search.watch.masks[-1]
    distances = ticket.provenance["mask_distances"]
    assert [len(row) for row in distances] == [0, 1, 2] and max(distances[2]) < 0.9


def test_whole_channels_go_and_one_of_each_layer_stays(make, bench, tmp_path):
    trainer = bench.trainer(tmp_path)
    config = EarlyBirdConfig(kind="channels", sparsity=0.6, epochs=1)
    search = EarlyBird(config)
    search.batch = trainer.batch
    ticket = search.find(make(), trainer.fit)
    scales = {n: kept for n, kept in ticket.mask.items() if n.endswith("norm.weight")}
    total = sum(kept.numel() for kept in scales.values())
    assert sum(int((~kept).sum()) for kept in scales.values()) == round(0.6 * total)
    assert all(bool(kept.any()) for kept in scales.values())


def test_channels_of_a_ticket_are_cut_out_and_the_outputs_stay(make, bench, tmp_path):
    """Float64: the smaller network has exactly the entries that are left, and their outputs."""
    trainer, config = bench.trainer(tmp_path), EarlyBirdConfig(kind="channels", sparsity=0.5)
    search = EarlyBird(replace(config, epochs=1))
    search.batch = trainer.batch
    images, model = trainer.batch(6)[0], make()
    groups = find_groups(model, images[:2])
    ticket = search.find(model, trainer.fit)
    result = retrain(model, ticket, trainer.fit, 1)
    assert result.epochs == 1
    model = model.double().eval()
    whole, images = model(images.double()), images.double()
    smaller = shrink(copy.deepcopy(model), groups, ticket.mask)
    torch.testing.assert_close(smaller(images), whole, rtol=0, atol=1e-12)
    assert whole.std() > 0
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    assert before - after == ticket.mask.removed > 0.1 * before


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "x"), ("window", 1), ("tolerance", 2.0), ("lr_factor", 0.0), ("epochs", 0)],
)
def test_bad_options_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        EarlyBirdConfig(**{field: value})


def test_a_search_that_is_too_short_to_stop_says_so(make, bench, tmp_path, caplog):
    config = EarlyBirdConfig(sparsity=0.5, epochs=1, window=3)
    EarlyBird(config).find(make(), bench.trainer(tmp_path).fit)
    assert "NOTICE: early_bird.epochs=1" in caplog.text
