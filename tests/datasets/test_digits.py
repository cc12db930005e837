from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeformer_lt import registry
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.images import shared_images


@pytest.fixture(scope="module")
def digits():
    return registry.create_dataset("digits")


def test_there_are_1797_digits_in_three_parts(digits):
    parts = digits.train, digits.val, digits.test
    assert [len(part) for part in parts] == [1293, 145, 359]
    assert sorted(torch.cat([part.indices for part in parts]).tolist()) == list(range(1797))
    assert digits.train[0][0].shape == (3, 32, 32)
    assert digits.train[0][0].dtype == torch.uint8
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 3, 32)
    assert (digits.kind, digits.augment) == ("static", "digits")


def test_every_class_is_in_every_part_in_proportion(digits):
    for part, least, most in (
        (digits.train, 124, 133),
        (digits.val, 14, 15),
        (digits.test, 34, 37),
    ):
        counts = torch.bincount(part.labels, minlength=10)
        assert (counts >= least).all()
        assert (counts <= most).all()


@pytest.mark.golden
def test_the_split_and_the_moments_are_these_on_every_machine(digits):
    assert digits.split_sha256 == (
        "f13681fe44833d934c6f076ce55bf3db8c60c6bdbf0f4147528fb62bc93c5618"
    )
    assert digits.mean == (0.3056,) * 3
    assert digits.std == (0.3237,) * 3
    assert digits.test.indices[:8].tolist() == [1, 2, 3, 6, 18, 19, 21, 28]


@pytest.mark.parametrize("size", [8, 16, 24])
def test_size_changes_pixels_and_nothing_else(digits, size):
    other = registry.create_dataset("digits", image_size=size)
    assert other.test.images.shape == (359, 3, size, size)
    assert other.image_size == size
    assert other.split_sha256 == digits.split_sha256


def test_at_8_pixels_the_source_is_returned_scaled():
    from sklearn.datasets import load_digits

    splits = registry.create_dataset("digits", image_size=8)
    source = torch.from_numpy(load_digits().images)
    for part in (splits.train, splits.val, splits.test):
        scaled = (source[part.indices] * 255 / 16).round().to(torch.uint8)
        assert all(torch.equal(part.images[:, channel], scaled) for channel in range(3))
        assert torch.equal(part.labels, torch.from_numpy(load_digits().target)[part.indices])


def test_enlarging_is_bilinear(digits):
    from PIL import Image
    from sklearn.datasets import load_digits

    for position in range(0, len(digits.test), 40):
        source = load_digits().images[digits.test.indices[position]]
        picture = Image.fromarray((source * 255 / 16).astype("float32"))
        theirs = torch.from_numpy(np.array(picture.resize((32, 32), Image.Resampling.BILINEAR)))
        assert (digits.test.images[position, 0].float() - theirs).abs().max() <= 0.5 + 1e-3


def test_its_mean_and_std_are_those_of_what_is_not_tested(digits):
    pixels = torch.cat([digits.train.images, digits.val.images]).double()[:, 0] / 255
    assert abs(float(pixels.mean()) - digits.mean[0]) <= 5e-5
    assert abs(float(pixels.std(correction=0)) - digits.std[0]) <= 5e-5


@pytest.mark.fault(33)
def test_no_digit_is_in_two_parts(digits):
    assert shared_images(digits.train, digits.test) == []
    assert shared_images(digits.train, digits.val) == []
    registry.create_dataset("digits", duplicates="refuse")


def test_limits_keep_the_parts_apart(digits):
    part = registry.create_dataset("digits", limit_train=200, limit_test=50, root="/none")
    assert (len(part.train), len(part.test)) == (200, 50)
    assert set(part.train.indices.tolist()) <= set(digits.train.indices.tolist())
    assert set(part.test.indices.tolist()) <= set(digits.test.indices.tolist())
    assert part.split_sha256 != digits.split_sha256
    assert part.mean == digits.mean


@pytest.mark.parametrize("size", [0, 4, 20, -8, 264])
@pytest.mark.fault(36)
def test_a_size_that_is_no_multiple_of_the_source_is_refused(size):
    with pytest.raises(ConfigError, match=f"image_size={size} is not allowed"):
        registry.create_dataset("digits", image_size=size)
