from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import CheckpointError
from spikeformer_lt.training.checkpoint import load_weights


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2))


def test_weights_and_buffers_arrive_and_parameters_stay_the_same_objects():
    source, target = net(), net()
    source[1].running_mean.add_(1.5)
    before = {name: id(p) for name, p in target.named_parameters()}
    load_weights(target, source.state_dict(), "x")
    assert {name: id(p) for name, p in target.named_parameters()} == before
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    assert all(p.requires_grad and p.is_leaf for p in target.parameters())


@pytest.mark.fault(12)
def test_another_size_names_five_tensors_with_both_shapes():
    target = net(4)
    kept = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, net(6).state_dict(), "last/ckpt-3")
    message = str(caught.value)
    assert message.startswith("last/ckpt-3 does not fit the model: '0.weight': ")
    first = "'0.weight': float32 [6, 3, 3, 3] in the checkpoint, float32 [4, 3, 3, 3] in the model;"
    assert first in message
    assert message.count("in the checkpoint,") == 5
    assert "and 2 more" in message
    assert all(torch.equal(target.state_dict()[name], value) for name, value in kept.items())


@pytest.mark.fault(12)
def test_missing_extra_and_renamed_tensors_are_told_apart():
    tensors = dict(net().state_dict())
    tensors["2.wieght"] = tensors.pop("2.weight")
    tensors["more"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_weights(net(), tensors, "x")
    message = str(caught.value)
    assert "'2.weight': nothing in the checkpoint, float32 [2, 4] in the model" in message
    assert "did you mean '2.wieght'?" in message
    assert "'more': float32 [1] in the checkpoint, nothing in the model" in message


def test_another_dtype_is_not_cast_silently():
    tensors = {name: value.double() for name, value in net().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"float64 \[4\] in the checkpoint, float32 \[4\]"):
        load_weights(net(), tensors, "x")


def test_a_hostile_name_is_shown_on_one_line():
    tensors = {**net().state_dict(), "a\nerror: all is well\x1b[2J": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_weights(net(), tensors, "x")
    assert str(caught.value).isprintable()
