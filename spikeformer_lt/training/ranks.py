"""What several processes of one run must have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, shown

__all__ = [
    "agreed_signal",
    "digest",
    "launcher_notices",
    "refuse_differences",
    "share_buffers",
    "together",
]


def refuse_differences(facts: Mapping[str, str]) -> None:
    """Refuse a run whose processes differ; with one process nothing is asked.

    Args:
        facts: name -> text, the same names on every rank.

    Raises:
        ConfigError: on every rank alike, with the first fact that differs, and whose it is.
    """
    if not together():
        return
    everywhere: list[dict[str, str]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everywhere, dict(facts))
    for name, first in everywhere[0].items():
        for rank, own in enumerate(everywhere):
            if own.get(name) != first:
                raise ConfigError(
                    f"the processes of this run differ in {name}: {shown(first)} on rank 0, "
                    f"{shown(own.get(name, ''))} on rank {rank}; start all of them alike"
                )


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of the first: BatchNorm statistics and masks.

    Each rank's statistics hold its own last batch until the next forward shares them, so that
    without this the ranks would validate slightly different networks.
    """
    if not together():
        return
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)


def launcher_notices(processes: int, mixed_precision: str, accumulate: int) -> list[str]:
    """Say what ``accelerate launch`` was asked for and does not do, in sentences for the log.

    Args:
        processes: how many there are.
        mixed_precision: the run's own.
        accumulate: the run's own.
    """
    asked, found = os.environ, list[str]()
    if "ACCELERATE_MIXED_PRECISION" not in asked:
        return found  # another launcher, or none
    # The launcher sets an address for several CPU processes but starts one, without a world size.
    if processes == 1 and "MASTER_ADDR" in asked and "WORLD_SIZE" not in asked:
        found.append(
            "accelerate launch was asked for several processes and started one, as it does on a "
            "CPU without MPI: use torchrun --nproc_per_node N recipes/..., or --num_processes 1"
        )
    wanted = asked["ACCELERATE_MIXED_PRECISION"]
    if wanted not in ("", "no", mixed_precision):
        found.append(
            f"accelerate launch --mixed_precision {wanted} has no effect: this run computes in "
            f"{mixed_precision!r}, by --train.mixed-precision"
        )
    steps = asked.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", str(accumulate)):
        found.append(
            f"accelerate launch --gradient_accumulation_steps {steps} has no effect: this run "
            f"accumulates {accumulate}, by --train.accumulate"
        )
    return found


def agreed_signal(signum: int) -> int:
    """The signal that any rank got, on every rank: all stop after the same step, or none.

    A scheduler may tell one process only; alone, it would save and leave the others waiting.
    """
    if not together():
        return signum
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(signum, device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return int(flag)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def together() -> bool:
    """Whether several processes make this run."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1
