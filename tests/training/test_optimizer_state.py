from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from spikeformer_lt.disk import read_tensors, write_tensors
from spikeformer_lt.errors import CheckpointError
from spikeformer_lt.training.checkpoint import flatten_optimizer, restore_optimizer


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def groups(model: nn.Module) -> list[dict]:
    wide = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": wide, "lr": 0.02, "weight_decay": 0.1},
        {"params": flat, "lr": 0.01, "weight_decay": 0.0},
    ]


def timm_optimizer(name: str) -> Callable:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(groups(model), opt=name, lr=0.02, weight_decay=0.0)

    return make


MAKERS = {
    "sgd": lambda m: torch.optim.SGD(groups(m)),
    "sgd with momentum": lambda m: torch.optim.SGD(groups(m), momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(groups(m), amsgrad=True),
    "adamw": lambda m: torch.optim.AdamW(groups(m), betas=(0.85, 0.98)),
    "adamw fused": lambda m: torch.optim.AdamW(groups(m), fused=True),
    "lr as a tensor": lambda m: torch.optim.Adam(groups(m), lr=torch.tensor(0.1), capturable=False),
    **{f"timm {name}": timm_optimizer(name) for name in ("lamb", "lambc", "adafactor", "lion")},
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        loss = model(torch.randn(7, 6, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.97
        optimizer.step()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.fault(6)
def test_training_goes_on_to_the_same_bits_after_a_trip_through_files(name, tmp_path):
    straight = net()
    optimizer = MAKERS[name](straight)
    train(straight, optimizer, 0, 5)

    halfway = net()
    optimizer = MAKERS[name](halfway)
    train(halfway, optimizer, 0, 3)
    tensors, state = flatten_optimizer(optimizer.state_dict())
    write_tensors(tmp_path / "optimizer.safetensors", tensors)
    text = json.dumps(state, allow_nan=False)

    resumed = net()
    resumed.load_state_dict(halfway.state_dict())
    optimizer = MAKERS[name](resumed)
    restore_optimizer(
        optimizer, read_tensors(tmp_path / "optimizer.safetensors")[0], json.loads(text)
    )
    train(resumed, optimizer, 3, 2)
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("name", MAKERS)
def test_the_whole_state_comes_back_with_its_types(name):
    model = net()
    optimizer = MAKERS[name](model)
    train(model, optimizer, 0, 2)
    tensors, state = flatten_optimizer(optimizer.state_dict())
    other = MAKERS[name](model)
    restore_optimizer(other, tensors, json.loads(json.dumps(state)))

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b) and a.dtype == b.dtype
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(same, a, b)) and type(a) is type(b)
        return a == b and type(a) is type(b)

    old, new = optimizer.state_dict(), other.state_dict()
    assert same(old["state"], new["state"])
    for before, after in zip(old["param_groups"], new["param_groups"], strict=True):
        assert before.keys() == after.keys()
        assert all(same(before[key], after[key]) for key in before)


def test_state_without_tensors_passes_with_its_type():
    odd = {
        "state": {0: {"name": "é", "none": None, "flag": True, "n": 2**60, "x": 0.1}},
        "param_groups": [{"params": [0], "betas": (0.9, [1, (2,)]), "far": math.inf}],
    }
    tensors, state = flatten_optimizer(odd)
    assert tensors == {}
    text = json.dumps(state, allow_nan=False)
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter])
    restore_optimizer(optimizer, {}, json.loads(text))
    assert optimizer.state[parameter] == odd["state"][0]
    assert optimizer.param_groups[0]["betas"] == (0.9, [1, (2,)])
    assert optimizer.param_groups[0]["far"] == math.inf


def test_a_state_of_another_dtype_than_its_parameter_keeps_it():
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    exact = {"exp_avg": torch.tensor([1 + 2**-20, 0.0]), "counts": torch.tensor([2**40, 1])}
    held = {"state": {0: exact}, "param_groups": [{"params": [0], "lr": 0.1}]}
    tensors, state = flatten_optimizer(held)
    optimizer = torch.optim.SGD([parameter])
    restore_optimizer(optimizer, tensors, state)
    for name, value in exact.items():
        assert optimizer.state[parameter][name].dtype == value.dtype
        assert torch.equal(optimizer.state[parameter][name], value)


def test_the_restored_state_shares_no_memory_with_the_checkpoint():
    model = net()
    optimizer = MAKERS["adamw"](model)
    train(model, optimizer, 0, 1)
    tensors, state = flatten_optimizer(optimizer.state_dict())
    tensors = {name: value.clone() for name, value in tensors.items()}
    kept = {name: value.clone() for name, value in tensors.items()}
    other = MAKERS["adamw"](model)
    restore_optimizer(other, tensors, state)
    train(model, other, 1, 2)
    assert all(torch.equal(tensors[name], value) for name, value in kept.items())


def test_what_json_and_tensors_cannot_hold_is_refused_with_its_place():
    with pytest.raises(CheckpointError, match=r"state\.0\.fn is <built-in.* of type builtin"):
        flatten_optimizer({"state": {0: {"fn": len}}, "param_groups": []})
    with pytest.raises(CheckpointError, match="has the key"):
        flatten_optimizer({"state": {(1, 2): {}}, "param_groups": []})


def saved() -> tuple[dict, dict]:
    model = net()
    optimizer = MAKERS["adamw"](model)
    train(model, optimizer, 0, 1)
    return flatten_optimizer(optimizer.state_dict())


def test_other_parameters_are_refused_by_number_and_by_shape():
    tensors, state = saved()
    with pytest.raises(CheckpointError, match=r"groups of \[2, 4\] tensors .*of \[6\] in the opt"):
        restore_optimizer(torch.optim.AdamW(net().parameters()), tensors, state)
    wider = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(
        CheckpointError, match=r"exp_avg of parameter 0 has shape \[5, 6\].*\[8, 6\]"
    ):
        restore_optimizer(MAKERS["adamw"](wider), tensors, state)


def test_a_missing_tensor_or_a_damaged_tree_is_refused():
    tensors, state = saved()
    optimizer = MAKERS["adamw"](net())
    missing = {name: value for name, value in tensors.items() if name != "state.1.exp_avg_sq"}
    with pytest.raises(CheckpointError, match=r"state\.1\.exp_avg_sq"):
        restore_optimizer(optimizer, missing, state)
    for odd in ({}, {**state, "state": {"set": [1]}}, {**state, "param_groups": {"a": 1, "b": 2}}):
        with pytest.raises(CheckpointError, match="damaged or incomplete"):
            restore_optimizer(optimizer, tensors, odd)
