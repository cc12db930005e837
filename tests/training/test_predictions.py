"""Predictions are gathered in order, each sample once, and saved without losing older ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spikeformer_lt.disk import write_tensors
from spikeformer_lt.errors import CheckpointError, DataError
from spikeformer_lt.training.evaluate import Predictions, gather_predictions, read_predictions

LOGITS = torch.tensor([[0.0, 2.0], [1.5, -0.5], [0.25, 0.5], [-1.0, -2.0], [3.0, 4.0]])
LABELS = torch.tensor([1, 0, 0, 0, 0])


class Ranks:
    """Two ranks in turn: what the first reduces is added to what the second does."""

    num_processes = 2

    def __init__(self) -> None:
        self.first: list[torch.Tensor] = []
        self.second = False

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        if self.second:
            return value + self.first.pop(0)
        self.first.append(value)
        return value


class Alone:
    num_processes = 1


def gathered(index: list[int], accelerator: Any) -> Predictions:
    places = torch.tensor(index)
    return gather_predictions(places, LABELS[places], LOGITS[places], len(LABELS), accelerator)


def test_two_ranks_give_what_one_gives_in_the_order_of_the_data_set():
    ranks = Ranks()
    with pytest.raises(DataError, match="sample 1 was evaluated 0 times and 1 others not once"):
        gathered([0, 2, 4], ranks)
    ranks.second = True
    both, alone = gathered([1, 3], ranks), gathered([4, 2, 0, 1, 3], Alone())
    for name in ("index", "label", "logits", "predicted"):
        assert torch.equal(getattr(both, name), getattr(alone, name)), name
    assert both.index.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(both.logits, LOGITS) and both.logits.dtype == torch.float32
    assert both.predicted.tolist() == [1, 0, 1, 0, 1]
    assert both.accuracy == 60.0


def test_a_sample_seen_twice_is_named():
    with pytest.raises(DataError, match="sample 3 was evaluated 2 times"):
        gathered([0, 1, 2, 3, 3, 4], Alone())


def test_a_saved_file_gives_the_same_back(tmp_path):
    found = gathered([0, 1, 2, 3, 4], Alone())
    found.save(tmp_path / "p.safetensors", {"weights_sha256": "a" * 64, "dataset": "digits"})
    again, facts = read_predictions(tmp_path / "p.safetensors")
    assert facts == {"weights_sha256": "a" * 64, "dataset": "digits", "count": 5}
    assert torch.equal(again.logits, LOGITS)
    assert again.index.dtype == again.label.dtype == again.predicted.dtype == torch.int64
    assert again.accuracy == found.accuracy


def test_predictions_of_other_weights_are_kept(tmp_path):
    path = tmp_path / "p.safetensors"
    found = gathered([0, 1, 2, 3, 4], Alone())
    found.save(path, {"weights_sha256": "a" * 64})
    found.save(path, {"weights_sha256": "a" * 64})
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
    found.save(path, {"weights_sha256": "b" * 64})
    assert read_predictions(path)[1]["weights_sha256"] == "b" * 64
    kept = tmp_path / "p-aaaaaaaaaaaa.safetensors"
    assert read_predictions(kept)[1]["weights_sha256"] == "a" * 64


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "p.safetensors"
    write_tensors(path, {"logits": LOGITS})
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="holds no predictions"):
        gathered([0, 1, 2, 3, 4], Alone()).save(path, {"weights_sha256": "a" * 64})
    assert path.read_bytes() == before
