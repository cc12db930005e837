from __future__ import annotations

import logging

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn
from torch.nn.functional import cross_entropy

from spikeformer_lt.errors import ConfigError, NonFiniteError
from spikeformer_lt.training.monitor import NonFiniteGuard, count_nonfinite

T = 3


class Net(nn.Module):
    """Conv, BatchNorm, LIF, linear: the smallest network in which a NaN hides from the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.lif = neuron.LIFNode(
            step_mode="m", surrogate_function=surrogate.ATan(), detach_reset=True
        )
        self.head = nn.Linear(4 * 6 * 6, 5)
        self.register_buffer("fixed", torch.tensor([1.0, float("inf")])[:1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self)
        current = self.bn(self.conv(images)).expand(T, *[-1] * 4)
        spikes = self.lif(current).flatten(2)
        return self.head(spikes).transpose(0, 1)  # [B, T, K]


def batch(bad: float | None = None, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(size, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    if bad is not None:
        images[2, 0, 3, 3] = bad
        images[5, 0, 0, :2] = bad
    return images, torch.arange(size) % 5


def norm_of(net: Net) -> torch.Tensor:
    return nn.utils.get_total_norm([p.grad for p in net.parameters()])


def backward(net: Net, images: torch.Tensor, labels: torch.Tensor):
    net.zero_grad(set_to_none=True)
    logits = net(images)
    loss = cross_entropy(logits.mean(1), labels)
    loss.backward()
    return loss, norm_of(net), logits


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().train()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.fault(15)
def test_a_nan_pixel_leaves_the_loss_finite_and_is_caught_all_the_same(net, bad):
    loss, norm, logits = backward(net, *batch(bad))
    assert torch.isfinite(loss), "the reason why the guard does not ask the loss"
    assert torch.isfinite(logits).all()
    assert not torch.isfinite(net.bn.running_mean).all()
    with pytest.raises(NonFiniteError) as caught:
        NonFiniteGuard("stop").check_step(norm, logits, net)
    message = str(caught.value)
    assert "gradient of 'conv.weight'" in message
    assert "buffer 'bn.running_mean' (4 of 4 values)" in message
    assert "membrane of 'lif'" in message
    assert "parameter" not in message
    assert "logits" not in message


def test_a_good_step_passes(net):
    guard = NonFiniteGuard("stop")
    images, labels = batch()
    assert guard.check_batch(images, range(8)) is False
    _, norm, logits = backward(net, images, labels)
    assert guard.check_step(norm, logits, net) is False
    assert guard.check_step(float(norm), logits, net) is False
    guard.check_buffers(net)
    assert guard.state() == {"skipped": 0, "in_a_row": 0}


@pytest.mark.fault(15)
def test_a_bad_batch_is_named_by_its_samples_and_the_count_of_values():
    images, _ = batch(float("nan"))
    guard = NonFiniteGuard("stop")
    with pytest.raises(NonFiniteError) as caught:
        guard.check_batch(images, torch.arange(100, 108))
    assert "3 of 288 input values in 2 of 8 images (samples of the data set: 102, 105)" in str(
        caught.value
    )
    with pytest.raises(NonFiniteError, match="0, 1, 2, 3, 4 and 15 more"):
        guard.check_batch(torch.full((20, 3), float("inf")), range(20))


def test_integer_images_are_finite_by_nature():
    assert NonFiniteGuard().check_batch(torch.full((2, 3), 255, dtype=torch.uint8), [0, 1]) is False


@pytest.mark.parametrize("where", ["parameter", "gradient", "logits", "buffer", "membrane"])
@pytest.mark.fault(15)
def test_each_kind_of_tensor_is_looked_at(net, where):
    _, norm, logits = backward(net, *batch())
    guard = NonFiniteGuard("stop")
    logits = logits.detach()
    with torch.no_grad():
        if where == "parameter":
            net.head.weight[1, 1] = float("nan")
            norm = norm * float("nan")  # as the forward's gradients would be
        elif where == "gradient":
            net.head.bias.grad[1] = float("inf")
            norm = norm_of(net)
        elif where == "logits":
            logits[0, 0, 0] = float("nan")
        elif where == "buffer":
            net.bn.running_var[0] = float("inf")
        else:
            net.lif.v[0, 0, 0, 0] = float("nan")
    name = {"parameter": "'head.weight'", "gradient": "of 'head.bias'", "logits": r"'\[B, T, K\]'"}
    name |= {"buffer": "'bn.running_var'", "membrane": "of 'lif'"}
    with pytest.raises(NonFiniteError, match=rf"{where} {name[where]} \(1 of \d+ values\)"):
        guard.check_step(norm, logits, net)


def test_a_norm_that_overflows_is_told_from_gradients_that_are_not_finite(net):
    _, norm, logits = backward(net, *batch())
    with pytest.raises(NonFiniteError, match="norm of the gradients, which overflowed"):
        NonFiniteGuard().check_step(norm * float("inf"), logits, net)


def test_a_large_but_finite_buffer_is_no_fault(net):
    _, norm, logits = backward(net, *batch())
    net.bn.running_var.fill_(1e30)  # its square overflows
    assert NonFiniteGuard().check_step(norm, logits, net) is False


def test_a_skipped_step_leaves_the_network_as_if_it_had_not_been(net, caplog):
    guard = NonFiniteGuard("skip")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(2):
        _, norm, logits = backward(net, *batch())
        assert guard.check_step(norm, logits, net) is False
        optimizer.step()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objects = {name: id(value) for name, value in net.named_buffers()}

    kept = guard.keep_buffers(net)
    images, labels = batch(float("nan"))
    assert guard.check_batch(images, range(8)) is True
    _, norm, logits = backward(net, images, labels)
    assert not torch.isfinite(net.bn.running_var).all()
    with caplog.at_level(logging.WARNING, "spikeformer_lt.training.monitor"):
        assert guard.check_step(norm, logits, net) is True
    assert "skipped a step (1 in a row)" in caplog.text
    assert "samples of the data set: 2, 5" in caplog.text
    guard.restore_buffers(net, kept)

    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: id(value) for name, value in net.named_buffers()} == objects
    guard.check_buffers(net)
    _, norm, logits = backward(net, *batch())
    assert guard.check_step(norm, logits, net) is False


def test_a_bad_batch_that_leaves_no_other_trace_is_skipped_too(net):
    guard = NonFiniteGuard("skip")
    assert guard.check_batch(torch.tensor([[float("nan")]]), [3]) is True
    _, norm, logits = backward(net, *batch())
    assert guard.check_step(norm, logits, net) is True
    assert guard.check_step(norm, logits, net) is False, "the next step starts clean"


@pytest.mark.fault(16)
def test_skips_in_a_row_end_in_an_error_and_a_good_step_between_starts_the_count_anew(net):
    guard = NonFiniteGuard("skip", limit=3)
    nan = torch.tensor(float("nan"))
    _, norm, logits = backward(net, *batch())
    for _ in range(2):
        assert guard.check_step(nan, logits, net) is True
    assert guard.check_step(norm, logits, net) is False
    assert guard.state() == {"skipped": 2, "in_a_row": 0}
    for _ in range(2):
        assert guard.check_step(nan, logits, net) is True
    with pytest.raises(NonFiniteError, match="3 steps in a row were skipped, the limit"):
        guard.check_step(nan, logits, net)


def test_counters_survive_a_resume(net):
    _, _, logits = backward(net, *batch())
    guard = NonFiniteGuard("skip", limit=2)
    guard.check_step(float("nan"), logits, net)
    other = NonFiniteGuard("skip", limit=2)
    other.load_state(guard.state())
    with pytest.raises(NonFiniteError, match="2 steps in a row"):
        other.check_step(float("nan"), logits, net)


@pytest.mark.fault(16)
def test_a_poisoned_model_is_refused_before_it_is_saved_under_either_policy(net):
    net.bn.running_mean[1] = float("nan")
    for policy in ("stop", "skip"):
        with pytest.raises(NonFiniteError, match=r"buffer 'bn.running_mean' \(1 of 4 values\)"):
            NonFiniteGuard(policy).check_buffers(net)


def test_membranes_do_not_keep_a_model_from_being_saved(net):
    backward(net, *batch(float("nan")))
    for module in (net.bn,):
        module.reset_running_stats()
    assert not torch.isfinite(net.lif.v).all()
    NonFiniteGuard("skip").check_buffers(net)


def test_stop_copies_no_buffers(net):
    assert NonFiniteGuard("stop").keep_buffers(net) == {}
    assert NonFiniteGuard("skip").keep_buffers(net).keys() == dict(net.named_buffers()).keys()


def test_odd_options_are_refused():
    with pytest.raises(ConfigError, match="nonfinite='ignore'"):
        NonFiniteGuard("ignore")
    with pytest.raises(ConfigError, match="skip_limit=0"):
        NonFiniteGuard("skip", 0)


def test_counting_knows_all_dtypes():
    bad = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        assert count_nonfinite(bad.to(dtype)) == 3
    for dtype in (torch.bool, torch.int64, torch.uint8):
        assert count_nonfinite(torch.ones(4).to(dtype)) == 0


RANKS = """
import sys, torch
from torch import nn
from spikeformer_lt.errors import NonFiniteError
from spikeformer_lt.training.monitor import NonFiniteGuard
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
model, images = nn.Linear(2, 2), torch.tensor([[float("nan") if rank == 1 else 0.0, 1.0]])
for policy in ("skip", "stop"):
    guard = NonFiniteGuard(policy)
    try:
        print(guard.check_batch(images, [7]), end=" ")
        print(guard.check_step(1.0, torch.zeros(1, 2, 2), model))
    except NonFiniteError as fault:
        print("raised", fault)
torch.distributed.destroy_process_group()
"""


@pytest.mark.fault(41)
def test_ranks_agree_when_one_of_them_has_a_bad_batch(forks, tmp_path):
    ranks = [forks.start("-c", RANKS, rank, tmp_path / "store") for rank in range(2)]
    first, second = (rank.communicate(60)[0].splitlines() for rank in ranks)
    assert first[0] == "False True"
    assert second[0] == "True True"
    assert first[1].startswith("False raised NaN or infinity in a tensor of another rank")
    assert second[1].startswith("True raised NaN or infinity in 1 of 2 input values")
