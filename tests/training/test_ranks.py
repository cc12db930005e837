"""Processes of one run evaluate one network, and are refused where they differ."""

from __future__ import annotations

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError, RankError
from spikeformer_lt.tickets import Grasp, GraspConfig, Snip, SnipConfig
from spikeformer_lt.training.ranks import (
    agreed,
    digest,
    launcher_notices,
    meet,
    refuse_differences,
    share_buffers,
    synced_norms,
    together,
)


def test_ranks_that_are_started_again_meet_each_other_and_nobody_before_them():
    """Through one store, whoever comes last; one more rank in the end."""
    store, met = torch.distributed.HashStore(), []

    def come(rank, world, late):
        time.sleep(0.2 * (rank == late))
        return meet(store, rank, world, timedelta(seconds=60))

    for late, world in ((0, 2), (1, 2), (1, 2), (0, 3), (2, 3)):
        with ThreadPoolExecutor(world) as pool:
            names = set(pool.map(come, range(world), [world] * world, [late] * world))
        assert len(names) == 1
        met += names
    assert len(set(met)) == len(met)
    for rank in (0, 1):  # the other one, of whom the store still tells, never comes
        with pytest.raises(RankError, match=rf"rank {rank} of 2 did not meet .* within 0\.3 s"):
            meet(store, rank, 2, timedelta(seconds=0.3))
    assert meet(store, 0, 1, timedelta(seconds=1)) not in met


def masks(seed):
    """The masks that searches find on images of a seed."""

    def batch(count):
        drawn = torch.Generator().manual_seed(seed)
        return torch.randn(count, 6, generator=drawn), torch.randint(4, (count,), generator=drawn)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (1, 4)))
    kinds = ((Snip, SnipConfig(0.5)), (Grasp, GraspConfig(0.5)))
    return [kind(config, batch=batch).find(net, None).mask.sha256 for kind, config in kinds]


RANKS = f"""
import sys, torch
from torch import nn

from spikeformer_lt.tickets import Grasp, GraspConfig, Snip, SnipConfig
from spikeformer_lt.errors import ConfigError, NonFiniteError, SpikeformerError
from spikeformer_lt.training.ranks import on_first, refuse_differences, share_buffers

{inspect.getsource(masks)}
rank = int(sys.argv[1])
torch.distributed.init_process_group(
    "gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2
)
model = nn.BatchNorm1d(2)
model.running_mean.fill_(rank + 1)
model.register_buffer("mask", torch.tensor([rank == 0, True]))
net = nn.Sequential(model, nn.Identity())
net[1].register_buffer("seen", torch.ones(2 * rank + 1) * (rank + 1))
share_buffers(net)
print(model.running_mean.tolist(), model.mask.tolist(), net[1].seen.tolist())
print(*masks(rank))
refuse_differences({{"data": "a", "seed": "1"}})
try:
    refuse_differences({{"data": "a", "seed": str(rank)}})
except ConfigError as fault:
    print(fault)


def fail():
    raise NonFiniteError("NaN in buffer 'x'")


done = []
on_first(lambda: done.append(rank))
try:
    on_first(fail)
except SpikeformerError as fault:
    print(done, fault)
torch.distributed.destroy_process_group()
"""


@pytest.mark.fault(41)
def test_ranks_get_the_buffers_and_masks_of_the_first_and_agree_that_they_differ(forks, tmp_path):
    own = [masks(rank) for rank in range(2)]
    assert all(one != other for one, other in zip(*own, strict=True))
    ranks = [forks.start("-c", RANKS, rank, tmp_path / "store") for rank in range(2)]
    saved = ("[0] NaN in buffer 'x'", "[] rank 0: NaN in buffer 'x'")
    for rank, said in zip(ranks, saved, strict=True):
        buffers, found, fault, failed = rank.communicate(120)[0].splitlines()
        assert found.split() == own[0]
        assert failed == said  # what the first alone did, and could not do, stops both
        assert buffers == "[1.0, 1.0] [True, True] [1.0]"
        assert fault == (
            "the processes of this run differ in seed: '0' on rank 0, '1' on rank 1; "
            "start all of them alike"
        )


SYNCED = """
import sys, torch
from spikeformer_lt import create_model
from spikeformer_lt.training.ranks import synced_norms

rank, place = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    "gloo", init_method="file://" + place + "/store", rank=rank, world_size=2
)
saved = torch.load(place + "/saved.pt", weights_only=True)
args = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
model = create_model("spikformer_toy", **args).double()
model.load_state_dict(saved["model"])
with synced_norms(model):
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    own = slice(4 * rank, 4 * rank + 4)
    logits = wrapped(saved["images"][own])
    torch.nn.functional.cross_entropy(logits.mean(1), saved["labels"][own]).backward()
kinds = {type(module).__name__ for module in model.modules()}
assert "SyncBatchNorm" not in kinds, kinds
found = {name: p.grad for name, p in model.named_parameters()}
buffers = dict(model.named_buffers())
torch.save({"logits": logits.detach(), "grads": found, "buffers": buffers}, f"{place}/{rank}.pt")
del wrapped, logits  # a wrapper that outlives its group may wait for ever in torch's destructors
torch.distributed.destroy_process_group()
"""


def test_norms_that_cannot_be_synced_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    said = r"train\.sync_norm=True.*1 BatchNorms.*'1' first"
    with pytest.raises(ConfigError, match=said), synced_norms(net):
        pass
    with synced_norms(nn.Sequential(nn.SyncBatchNorm(4))):
        pass


def test_two_ranks_with_synced_norms_are_one_process_with_all_samples(forks, tmp_path):
    args = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
    model = create_model("spikformer_toy", **args).double()
    drawn = torch.Generator().manual_seed(3)
    images = torch.rand(8, 3, 16, 16, generator=drawn, dtype=torch.float64)
    labels = torch.randint(10, (8,), generator=drawn)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({"model": state, "images": images, "labels": labels}, tmp_path / "saved.pt")
    ranks = [forks.start("-c", SYNCED, rank, tmp_path) for rank in range(2)]
    for rank in ranks:
        said = rank.communicate(120)
        assert rank.returncode == 0, said
    logits = model(images)
    nn.functional.cross_entropy(logits.mean(1), labels).backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(
        torch.cat([own["logits"] for own in found]), logits.detach(), **close
    )
    for own in found:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(own["grads"][name], parameter.grad, **close, msg=name)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(own["buffers"][name], buffer, **close, msg=name)


def test_one_process_is_left_alone():
    norm = nn.BatchNorm1d(2)
    share_buffers(norm)
    refuse_differences({"seed": "1"})
    assert norm.running_mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("asked", "processes", "words"),
    [
        ({}, 1, []),
        ({"MASTER_ADDR": "127.0.0.1"}, 1, ["asked for several processes and started one"]),
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}, 2, []),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, 1, ["--mixed_precision fp16 has no effect"]),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, 1, []),  # what the run does
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, 1, ["accumulates 2, by --train.accum"]),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, 1, []),
    ],
)
@pytest.mark.fault(43)
def test_what_the_launcher_was_asked_in_vain_is_said(monkeypatch, asked, processes, words):
    for name in ("MASTER_ADDR", "WORLD_SIZE", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    found = launcher_notices(processes, "bf16", 2)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_without_accelerates_launcher_nothing_is_said(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert launcher_notices(1, "no", 1) == []


def test_a_digest_tells_names_types_shapes_and_values_apart():
    one = {"a": torch.arange(4.0), "b": torch.ones(2)}
    assert digest(one) == digest(dict(reversed(one.items())))
    others = [
        {"a": torch.arange(4.0), "c": torch.ones(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.ones(2)},
        {"a": torch.arange(4.0), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.arange(4.0).int(), "b": torch.ones(2)},
    ]
    assert len({digest(tensors) for tensors in [one, *others]}) == 5
    assert digest({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(True)})


def test_a_signal_of_one_process_is_its_own():
    assert agreed(0, 15) == [0, 15]
    assert not together()
