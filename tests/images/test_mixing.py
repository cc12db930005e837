from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.images import Mixing

LABELS = torch.tensor([0, 1, 2, 3, 3, 1])


@pytest.fixture
def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def first_weight(targets):
    """Return the weight that sample 0 (class 0, paired with class 1) keeps of itself."""
    return float(targets[0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_a_sample_with_its_mirror_in_the_batch(images, seed):
    mixed, targets = Mixing(mixup=0.5).apply(images, LABELS, 4, seed)
    weight = first_weight(targets)
    expected = weight * images + (1 - weight) * images.flip(0)
    assert torch.allclose(mixed, expected, atol=1e-5)
    one_hot = torch.nn.functional.one_hot(LABELS, 4).float()
    assert torch.allclose(targets, weight * one_hot + (1 - weight) * one_hot.flip(0), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_replaces_the_area_that_its_targets_say(images, seed):
    mixed, targets = Mixing(cutmix=1.0).apply(images, LABELS, 4, seed)
    other = mixed != images
    assert torch.equal(mixed[other], images.flip(0)[other])
    assert other[0, 0].double().mean() == pytest.approx(1 - first_weight(targets), abs=1e-6)


def test_both_on_take_turns(images):
    blended = [
        bool(
            (Mixing(mixup=1.0, cutmix=1.0).apply(images, LABELS, 4, s)[0][0, 0] != images[0, 0])
            .all()
        )
        for s in range(60)
    ]  # fmt: skip
    assert 10 < sum(blended) < 50


def test_smoothing_alone_is_exact_and_takes_an_odd_batch(images):
    mixed, targets = Mixing(smoothing=0.2).apply(images[:5], LABELS[:5], 4, 0)
    assert torch.equal(mixed, images[:5])
    assert torch.allclose(targets[2], torch.tensor([0.05, 0.05, 0.85, 0.05]))


def test_smoothing_is_the_same_with_mixing_off_and_on():
    flat = torch.zeros(6, 3, 8, 8)
    same = torch.full((6,), 2)
    on = Mixing(mixup=0.5, smoothing=0.1).apply(flat, same, 4, 0)[1]
    off = Mixing(mixup=0.5, smoothing=0.1).apply(flat, same, 4, 0, mix=False)[1]
    assert torch.allclose(on, off)


def test_all_off_gives_one_hot_targets(images):
    mixed, targets = Mixing().apply(images, LABELS, 4, 0)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, torch.nn.functional.one_hot(LABELS, 4).float())


def test_targets_sum_to_one_in_float32(images):
    for mixing in (
        Mixing.standard("spikformer_cifar"),
        Mixing(cutmix=1.0, mixup=0.8, smoothing=0.1),
    ):
        for seed in range(10):
            targets = mixing.apply(images, LABELS, 4, seed)[1]
            assert targets.dtype == torch.float32
            assert torch.allclose(targets.sum(1), torch.ones(6))


def test_the_seed_decides_and_nothing_outside_notices(images):
    before = images.clone()
    mixing = Mixing(mixup=0.5, cutmix=0.5)
    first = mixing.apply(images, LABELS, 4, 5)
    np.random.random()  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again = mixing.apply(images, LABELS, 4, 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], mixing.apply(images, LABELS, 4, 6)[1])
    assert torch.equal(images, before)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_probability_is_that_of_a_batch(images):
    mixed = [
        not torch.equal(Mixing(mixup=1.0, prob=0.3).apply(images, LABELS, 4, s)[0], images)
        for s in range(100)
    ]
    assert 15 < sum(mixed) < 45


def test_the_standard_is_that_of_spikformer():
    assert Mixing.standard("none") == Mixing()
    assert Mixing.standard("spikformer_cifar") == Mixing(mixup=0.5, smoothing=0.1, until=2 / 3)
    events = Mixing(mixup=0.5, smoothing=0.1, prob=0.5, until=75 / 106)
    assert Mixing.standard("spikformer_dvs") == events


@pytest.mark.fault(38)
def test_an_odd_batch_is_refused_before_training_where_it_would_be_paired(images):
    Mixing(smoothing=0.1).check(33)
    Mixing(mixup=0.5).check(32)
    Mixing(mixup=0.5, prob=0.0).check(33)
    for mixing in (Mixing(mixup=0.5), Mixing(cutmix=1.0)):
        with pytest.raises(ConfigError, match=r"batch_size=33 .* use an even number, such as 34"):
            mixing.check(33)
    with pytest.raises(ConfigError, match="batch_size=5"):
        Mixing(mixup=0.5).apply(images[:5], LABELS[:5], 4, 0)
    Mixing(mixup=0.5).apply(images[:5], LABELS[:5], 4, 0, mix=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"mixup": -0.1},
        {"cutmix": float("nan")},
        {"mixup": float("inf")},
        {"prob": 1.1},
        {"switch_prob": -1},
        {"smoothing": 1.0},
    ],
)
def test_a_value_out_of_range_is_refused_by_field(fields):
    (field,) = fields
    with pytest.raises(ConfigError, match=f"{field}=.* is not allowed"):
        Mixing(**fields).check()


def test_cutmix_of_frames_cuts_the_same_box_of_height_and_width_at_all_steps():
    frames = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 2, 8, 8)
    mixing, boxes = Mixing(cutmix=1.0), 0
    for seed in range(10):
        mixed = mixing.apply(frames, LABELS, 4, seed)[0]
        assert mixed.shape == frames.shape
        assert (mixed == mixed[:, :1, :1]).all()
        inside = mixed[0, 0, 0] != 0
        rows, columns = inside.any(1), inside.any(0)
        assert (inside == rows[:, None] & columns[None]).all()
        boxes += 0 < inside.sum() < 64
    assert boxes >= 5
