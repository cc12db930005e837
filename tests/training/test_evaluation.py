"""Evaluation counts each sample once, over however many ranks."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from spikeformer_lt import create_dataset, create_model
from spikeformer_lt.errors import DataError
from spikeformer_lt.training.evaluate import evaluate


class FirstPixel(nn.Module):
    """Predicts class 1 at step 0 and class 0 with growing weight afterwards."""

    def forward(self, x):
        logits = torch.zeros(len(x), 3, 10)
        logits[:, 0, 1] = 1.0
        logits[:, 1:, 0] = 2.0
        return logits


@pytest.fixture(scope="module")
def data():
    return create_dataset("digits", image_size=16, limit_train=64, limit_test=40)


def test_accuracy_confusion_and_early_answers_by_hand(data):
    labels = data.test.labels
    metrics = evaluate(FirstPixel(), data.test, data, Accelerator(cpu=True), batch_size=7)
    zeros, ones = int((labels == 0).sum()), int((labels == 1).sum())
    assert metrics.count == len(labels) == int(metrics.confusion.sum())
    assert metrics.correct == zeros
    assert metrics.accuracy == pytest.approx(100 * zeros / len(labels))
    wanted = [100 * n / len(labels) for n in (ones, zeros, zeros)]
    assert metrics.accuracy_at_t == pytest.approx(wanted)
    assert metrics.confusion[:, 0].tolist() == torch.bincount(labels, minlength=10).tolist()


def test_each_batch_is_looked_at_once_whatever_the_model(data, monkeypatch):
    looked = []
    ends = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda x: looked.append(len(x)) or ends(x))
    net = create_model("spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2, T=2)
    for model in (net, FirstPixel()):
        evaluate(model, data.test, data, Accelerator(cpu=True), batch_size=16)
        assert looked == [16, 16, 8]
        looked.clear()
    with torch.no_grad():
        net.eval()(torch.rand(5, 3, 16, 16))
    assert looked == [5]  # a model that is called by others looks itself


def test_the_training_mode_is_put_back_even_after_an_error(data):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(1, 1).eval()

        def forward(self, x):
            raise RuntimeError("broken")

    model = Broken().train()
    model.frozen.eval()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, data.test, data, Accelerator(cpu=True), batch_size=8)
    assert model.training
    assert not model.frozen.training


@pytest.mark.fault(95)
def test_a_value_that_no_image_has_is_refused_for_every_model(data):
    images = torch.zeros(8, 3, 16, 16)
    images[3, 0, 1, 2] = float("nan")
    wrong = torch.utils.data.TensorDataset(images, torch.zeros(8).long(), torch.arange(8))
    loader = {"eval_loader": lambda *args, **options: torch.utils.data.DataLoader(wrong, 4)}
    with (
        patch.multiple("spikeformer_lt.training.evaluate", **loader),
        pytest.raises(DataError, match=r"input holds nan at \[3, 0, 1, 2\]"),
    ):
        evaluate(FirstPixel(), data.test, data, Accelerator(cpu=True), batch_size=4)


def test_two_ranks_together_see_each_sample_once(data):
    class Rank(SimpleNamespace):
        def autocast(self):
            return torch.autocast("cpu", enabled=False)

        def reduce(self, value, reduction):
            parts.append(value)
            return value

    parts: list[torch.Tensor] = []
    for rank in (0, 1):
        fake = Rank(device=torch.device("cpu"), process_index=rank, num_processes=2)
        with pytest.raises(DataError, match="ranks lost or repeated"):
            evaluate(FirstPixel(), data.test, data, fake, batch_size=8)
    seen, labels, logits = (one + other for one, other in zip(parts[:3], parts[3:], strict=True))
    alone = evaluate(FirstPixel(), data.test, data, Accelerator(cpu=True), batch_size=8)
    assert torch.equal(seen, torch.ones_like(seen))
    assert torch.equal(labels, alone.predictions.label)
    assert torch.equal(logits, alone.predictions.logits)
