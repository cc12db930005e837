from __future__ import annotations

import pytest
import torch

from spikeformer_lt.images import Augment, normalize
from spikeformer_lt.images.loader import BatchReader, Fault
from spikeformer_lt.rng import isolated_rng, seed_for

KEYS = [(3, 5), (3, 1), (4, 5)]


def test_each_sample_is_augmented_under_its_own_seed(random_images):
    data = random_images(8, size=16)
    transform = Augment.standard("spikformer_cifar").build(data.mean, data.std, 16)
    images, labels, indices = BatchReader(data, transform, seed=7).__getitems__(KEYS)
    for (epoch, index), image in zip(KEYS, images, strict=True):
        with isolated_rng(seed_for(7, "augment", epoch, index)):
            assert torch.equal(image, transform(data.images[index]))
    assert labels.tolist() == [1, 1, 1]
    assert indices.tolist() == [5, 1, 5]
    assert not torch.equal(images[0], images[2])  # another epoch is another draw


def test_without_a_transform_a_batch_is_normalised_whole(random_images):
    data = random_images(8)
    images, _, _ = BatchReader(data, None).__getitems__(KEYS)
    assert torch.equal(images, normalize(data.images[[5, 1, 5]], data.mean, data.std))
    assert images.dtype == torch.float32


class Unhappy:
    """A data set of float frames whose sample 5 cannot be read."""

    name = "photos"
    labels = torch.zeros(8, dtype=torch.int64)
    mean, std = (0.0,), (2.0,)

    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5 and self.fault:
            raise self.fault
        return torch.full((1, 4, 4), float(index)), 0


def test_any_data_set_of_its_form_is_read():
    images, _, _ = BatchReader(Unhappy(), None).__getitems__([(0, 4), (0, 6)])
    assert images[:, 0, 0, 0].tolist() == [2.0, 3.0]


class Panic(BaseException):
    """What a compiled reader throws: not an Exception."""


@pytest.mark.parametrize("fault", [OSError("disk gone\nmore"), Panic("index"), KeyError("x")])
@pytest.mark.parametrize("augment", [None, Augment(hflip=0.5)])
def test_a_sample_that_cannot_be_read_is_named_with_its_fault_in_one_line(fault, augment):
    data = Unhappy(fault)
    transform = augment and augment.build(data.mean, data.std, 4)
    answer = BatchReader(data, transform).__getitems__([(0, 4), (0, 5)])
    assert isinstance(answer, Fault)
    assert answer.message.startswith(f"photos: cannot read sample 5: {type(fault).__name__}: ")
    assert "\n" not in answer.message


def test_an_augmentation_that_fails_names_the_sample(random_images):
    def burst(image):
        raise ValueError("too small")

    answer = BatchReader(random_images(8), burst).__getitems__(KEYS)
    assert answer.message == "made up: cannot augment sample 5: ValueError: 'too small'"


def test_an_interrupt_is_not_taken_for_a_bad_sample():
    with pytest.raises(KeyboardInterrupt):
        BatchReader(Unhappy(KeyboardInterrupt()), None).__getitems__([(0, 5)])
