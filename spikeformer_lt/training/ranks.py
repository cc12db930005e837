"""What several processes of one run must have in common."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from spikeformer_lt.errors import ConfigError, shown

__all__ = ["refuse_differences", "share_buffers"]


def refuse_differences(facts: Mapping[str, str]) -> None:
    """Refuse a run whose processes differ; with one process nothing is asked.

    Args:
        facts: name -> text, the same names on every rank.

    Raises:
        ConfigError: on every rank alike, with the first fact that differs, and whose it is.
    """
    if not _together():
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
    if not _together():
        return
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)


def _together() -> bool:
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1
