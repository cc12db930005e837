from __future__ import annotations

import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.images import ArrayImages

GOOD = {
    "images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
    "labels": torch.tensor([0, 1, 2, 0]),
    "num_classes": 3,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.2, 0.2, 0.2),
}


def made(**changes):
    return ArrayImages("photos", **(GOOD | changes))


def test_a_sample_is_the_image_and_its_label_as_a_plain_int(random_images):
    data = random_images(6)
    image, label = data[5]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 8, 8)
    assert (type(label), label) == (int, 1)
    assert torch.equal(data[-1][0], image)
    assert len(data) == 6


def test_past_the_end_is_an_index_error_so_that_a_loop_ends(random_images):
    assert len(list(random_images(3))) == 3
    with pytest.raises(IndexError, match="has 3 images, no number 3"):
        random_images(3)[3]


def test_taking_keeps_images_labels_and_source_indices_together(random_images):
    data = random_images(10)
    twice = data.take(torch.tensor([9, 2, 5])).take(torch.tensor([1, 0]), "few")
    assert twice.name == "few"
    assert twice.indices.tolist() == [2, 9]
    assert torch.equal(twice.images, data.images[[2, 9]])
    assert torch.equal(twice.labels, data.labels[[2, 9]])


def test_equal_images_and_no_others_have_equal_digests(random_images):
    data = random_images(20)
    digests = data.take(torch.tensor([3, 4, 3])).digests
    assert digests[0] == digests[2] != digests[1]
    assert len(set(data.digests)) == 20


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"images": torch.zeros(4, 3, 8, 8)}, "torch.float32; allowed is uint8"),
        ({"images": torch.zeros(4, 3, 8, 8).numpy()}, "ndarray; allowed is uint8"),
        ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, r"\[3, 8, 8\].*N, C, H, W"),
        ({"images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "nothing empty"),
        ({"images": torch.zeros(4, 8, 8, 3, dtype=torch.uint8)}, "8 channels"),
        ({"images": torch.zeros(4, 4, 8, 8, dtype=torch.uint8)}, "4 channels.*drop alpha"),
        ({"labels": torch.tensor([0.0, 1, 2, 0])}, "labels are torch.float32"),
        ({"labels": torch.tensor([[0, 1, 2, 0]])}, r"\[1, 4\].*int64 \[4\]"),
        ({"labels": [0, 1, 2, 0]}, "labels are list"),
        ({"labels": torch.tensor([0, 1])}, "2 labels for 4 images"),
        ({"labels": torch.tensor([0, 1, 3, 7])}, r"label 3 at index 2 is outside \[0, 3\); 2 lab"),
        ({"labels": torch.tensor([0, -1, 2, 0])}, "label -1 at index 1"),
        ({"mean": (0.5,)}, "do not fit images of 3 channels"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"indices": torch.tensor([1])}, "one for each image"),
    ],
)
@pytest.mark.fault(33, 36)
def test_what_does_not_fit_is_refused_by_name(changes, complaint):
    made()
    with pytest.raises(DataError, match=f"photos.*{complaint}"):
        made(**changes)
