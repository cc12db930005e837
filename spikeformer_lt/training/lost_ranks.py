"""Name the process that a run lost: without this its peers die of a broken connection, or wait."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spikeformer_lt.errors import RankError
from spikeformer_lt.training.ranks import together

__all__ = ["Peer", "gather_peers", "lost_ranks", "name_lost"]

SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "store")
"""Words of the errors that a collective operation fails with."""
PATIENCE_S = 3.0
"""A process that is being killed takes a moment to be gone."""


@dataclass(frozen=True)
class Peer:
    """Where a rank runs."""

    host: str
    pid: int


def gather_peers() -> list[Peer]:
    """All ranks of the run, by rank; none where there is one process."""
    if not together():
        return []
    own = Peer(socket.gethostname(), os.getpid())
    peers = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(peers, own)
    return peers


def lost_ranks(peers: Sequence[Peer]) -> dict[int, str]:
    """Ranks on this host that are gone or do not run: rank -> what is known."""
    here = socket.gethostname()
    found = {}
    for rank, peer in enumerate(peers):
        state = _state(peer.pid) if peer.host == here else ""
        if state:
            found[rank] = f"rank {rank} (process {peer.pid} on {peer.host}) {state}"
    return found


def name_lost(peers: Sequence[Peer], fault: BaseException | None, timeout_s: float) -> None:
    """Raise a sentence in place of a failed collective operation; anything else is left alone.

    Args:
        peers: of `gather_peers`; empty for one process.
        fault: what ended this rank.
        timeout_s: how long a collective operation waits.

    Raises:
        RankError: which rank died or hangs, if it can be told, and how to go on.
    """
    text = str(fault).lower()
    if not peers or not isinstance(fault, RuntimeError) or not any(s in text for s in SIGNS):
        return
    until, lost = time.monotonic() + PATIENCE_S, lost_ranks(peers)
    while not lost and time.monotonic() < until:
        time.sleep(0.1)
        lost = lost_ranks(peers)
    what = "; ".join(lost.values()) or (
        f"a rank on another host, or one that hangs, did not answer (time-out {timeout_s:g} s); "
        f"the ranks' hosts are {', '.join(sorted({p.host for p in peers}))}"
    )
    raise RankError(
        f"{what}; the last good checkpoint is untouched: start all processes again with "
        "--run.resume auto"
    ) from fault


def _state(pid: int) -> str:
    """What keeps a process of this host from working; empty if nothing is known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "died"
    except PermissionError:
        return ""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return {"Z": "died", "X": "died", "T": "is stopped", "t": "is stopped"}.get(letter, "")
