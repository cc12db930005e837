"""What the processes of a run have in common: a stop, equal facts, the loss of one of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.nn.functional import all_reduce
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.errors import STOPS, ConfigError, RankError, SpikeformerError, shown
from spikeformer_lt.layers.neuron import BatchNorm
from spikeformer_lt.ticket import fit_buffers, open_buffers

if TYPE_CHECKING:
    from accelerate.utils import InitProcessGroupKwargs

# Words of the errors that a collective operation fails with.
SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "store")
PATIENCE_S = 3.0  # a process that is being killed takes a moment to be gone
AGAIN_S = 10.0  # a scheduler signals a whole tree of processes, and launchers signal it again
TYPED_AGAIN_S = 0.5  # of a person at the terminal


class StopRequest:
    """Turns the first signal of `STOPS` into a flag; a later one ends the process at once.

    The loop looks at `requested` between steps, saves, and raises ``errors.Interrupted(signum)``. A
    further signal counts after `AGAIN_S` seconds, and Ctrl-C at a terminal after `TYPED_AGAIN_S`:
    the process exits with status 128 + signal and saves nothing. Outside the main thread, where
    Python allows no handlers, it does nothing. Forked loader workers inherit the handlers and so
    survive a signal to the whole process group. A SIGHUP that nohup ignores stays ignored.
    """

    def __init__(self, signals: Sequence[int] = STOPS) -> None:
        self.signals = tuple(signals)
        self.signum = 0  # the first signal that came
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        self._pid = 0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum != 0

    def __enter__(self) -> StopRequest:
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for signum in self.signals:
                if signum in (signal.SIGINT, signal.SIGTERM) or (
                    signal.getsignal(signum) != signal.SIG_IGN
                ):
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, previous in self._previous.items():
            # None: a handler that was not set from Python and cannot be set from it.
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.signum:
            typed = signum == signal.SIGINT and os.isatty(0)
            if time.monotonic() - self._since >= (TYPED_AGAIN_S if typed else AGAIN_S):
                os._exit(128 + signum)
            return
        self.signum, self._since = signum, time.monotonic()
        name = signal.Signals(signum).name
        # Not the logger: the signal may have come while it held its own stream.
        text = f"\n{name}: saving after this step, then stopping; again to stop at once\n"
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, text.encode())


def process_group(timeout_s: float | None = None) -> InitProcessGroupKwargs:
    """Say how accelerate shall join the ranks, whose operations wait `timeout_s` s.

    Those that torchrun starts again meet in a part of its store that no earlier rank wrote to: the
    store outlives them (torch 2.13, `elastic.rendezvous`), with the addresses of ranks that died.
    """
    from accelerate.utils import InitProcessGroupKwargs

    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return InitProcessGroupKwargs(
        init_method=f"{_ANEW}://" if kept else None,
        timeout=None if timeout_s is None else timedelta(seconds=timeout_s),
    )


_ANEW = "spikeformer-lt"


def _anew(
    url: str, timeout: timedelta = default_pg_timeout, **more: Any
) -> Iterator[tuple[torch.distributed.Store, int, int]]:
    store, rank, world = next(rendezvous(url.replace(_ANEW, "env", 1), timeout=timeout, **more))
    yield torch.distributed.PrefixStore(meet(store, rank, world, timeout), store), rank, world


register_rendezvous_handler(_ANEW, _anew)


def meet(store: torch.distributed.Store, rank: int, world: int, timeout: timedelta) -> str:
    """Return a name that these ranks, and none before them, have agreed on through a store.

    Each rank writes a name that nobody had. The first one writes all names under a new one of the
    meeting, again whenever they change, until every rank has answered to it. A count of restarts
    would not do: torchrun's differ from node to node.

    Raises:
        RankError: not all came within the time-out.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    store.set(f"here/{rank}", own)
    names, meeting = list[str](), ""
    while time.monotonic() < until:
        if rank == 0 and store.check([f"here/{other}" for other in range(world)]):
            now = [store.get(f"here/{other}").decode() for other in range(world)]
            if now != names:
                names, meeting = now, uuid.uuid4().hex
                store.set("meeting", json.dumps([meeting, *names]))
            if store.check([f"{meeting}/{other}" for other in range(1, world)]):
                store.set(f"{meeting}/all", "")
                return meeting
        elif rank and store.check(["meeting"]):
            meeting, *names = map(str, json.loads(store.get("meeting")))
            if names[rank : rank + 1] == [own]:
                store.set(f"{meeting}/{rank}", "")
                if store.check([f"{meeting}/all"]):
                    return meeting
        time.sleep(0.02)
    raise RankError(
        f"rank {rank} of {world} did not meet the others within {timeout.total_seconds():g} s: see "
        "what they said, then start all processes again with --run.resume auto"
    )


def asked_processes() -> int:
    """Processes that a launcher started for this run."""
    return max(1, int(os.environ.get("WORLD_SIZE") or 1))


def together() -> bool:
    """Whether several processes make this run."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


def agreed(*numbers: int) -> list[int]:
    """The largest of each number that any rank gives: a signal may have come to one only."""
    if not together():
        return list(numbers)
    flags = torch.tensor(numbers, device=_device())
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return [int(flag) for flag in flags.tolist()]


def _device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


def from_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first rank's tensors on every rank; the names and shapes are the same everywhere."""
    found = dict(tensors)
    for name, own in tensors.items() if together() else ():
        sent = own.detach().to(
            _device(), torch.uint8 if own.dtype == torch.bool else None, copy=True
        )
        torch.distributed.broadcast(sent, 0)
        found[name] = sent.to(own.device, own.dtype)
    return found


def gathered(own: Any) -> list[Any]:
    """What each rank gives, by rank; one entry where there is one process."""
    if not together():
        return [own]
    everywhere = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, own)
    return everywhere


def on_first(action: Callable[[], object]) -> None:
    """Do something on the first rank; what it refuses there is raised on every rank."""
    fault: SpikeformerError | None = None
    if not together() or torch.distributed.get_rank() == 0:
        try:
            action()
        except SpikeformerError as caught:
            fault = caught
    told = gathered(None if fault is None else f"rank 0: {fault}")[0]
    if told is not None:
        raise fault or SpikeformerError(told)


def refuse_differences(facts: Mapping[str, str]) -> None:
    """Refuse a run whose processes differ in a fact (name -> text), on every rank alike."""
    everywhere = gathered(dict(facts))
    for name, first in everywhere[0].items():
        for rank, own in enumerate(everywhere):
            if own.get(name) != first:
                raise ConfigError(
                    f"the processes of this run differ in {name}: {shown(first)} on rank 0, "
                    f"{shown(own.get(name, ''))} on rank {rank}; start all of them alike"
                )


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of the first, BatchNorm statistics and masks.

    Each rank's statistics hold its own last batch: without this all validate different networks.
    """
    if together():
        if open_buffers(model):  # those that follow the batch: ranks may differ in its size
            own = {name: list(value.shape) for name, value in model.named_buffers()}
            first: dict[str, list[int]] = gathered(own)[0]
            fit_buffers(model, {n: torch.empty(size, device="meta") for n, size in first.items()})
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
            torch.autograd.graph.increment_version(buffer)  # what is derived of it asks for that


class SyncBatchNorm(BatchNorm):
    """`BatchNorm` with the statistics of the samples of all ranks in training.

    Each rank has as many samples. Loss and gradients, averaged over the ranks, are those of one
    process with all samples.
    """

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        """Normalise `x` as `BatchNorm` does."""
        if not (self.training and together()):
            return super().forward(x, repeats)
        count, axes = self.check(x), tuple(range(x.dim() - 1))
        count *= torch.distributed.get_world_size()
        rows = x if x.dtype == torch.float64 else x.float()
        mean: Tensor = all_reduce(rows.sum(axes)) / count
        centred = rows - mean
        var: Tensor = all_reduce(centred.square().sum(axes)) / count
        self.track(mean, var, count * repeats)
        y: Tensor = centred * (var + self.eps).rsqrt()
        if self.affine:
            y = y * self.weight.to(y.dtype) + self.bias.to(y.dtype)
        return y.to(x.dtype)


@contextlib.contextmanager
def synced_norms(model: nn.Module) -> Iterator[None]:
    """Let the BatchNorms of our layers in a model be `SyncBatchNorm` inside.

    Raises:
        ConfigError: others are there, which would go on with the samples of their rank.
    """
    known = (BatchNorm, nn.SyncBatchNorm)
    odd = [n for n, m in model.named_modules()
           if isinstance(m, _BatchNorm) and not isinstance(m, known)]  # fmt: skip
    if odd:
        raise ConfigError(
            f"train.sync_norm=True is not allowed: {len(odd)} BatchNorms are torch's own "
            f"({shown(odd[0])} first); hand over the network after torch.nn.SyncBatchNorm."
            "convert_sync_batchnorm(network), which needs CUDA"
        )
    found = [module for module in model.modules() if type(module) is BatchNorm]
    for norm in found:
        norm.__class__ = SyncBatchNorm
    try:
        yield
    finally:
        for norm in found:
            norm.__class__ = BatchNorm


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def launcher_notices(processes: int, mixed_precision: str, accumulate: int) -> list[str]:
    """Say what ``accelerate launch`` was asked for and does not do, in sentences for the log."""
    asked, found = os.environ, list[str]()
    wanted = asked.get("ACCELERATE_MIXED_PRECISION")
    if wanted is None:
        return found  # another launcher, or none
    # The launcher sets an address for several CPU processes but starts one, without a world size.
    if processes == 1 and "MASTER_ADDR" in asked and "WORLD_SIZE" not in asked:
        found.append(
            "accelerate launch was asked for several processes and started one, as it does on a "
            "CPU without MPI: use torchrun --nproc_per_node N recipes/..., or --num_processes 1"
        )
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


@dataclass(frozen=True)
class Peer:
    """Where a rank runs."""

    host: str
    pid: int


def gather_peers() -> list[Peer]:
    """All ranks of the run, by rank; none where there is one process."""
    return gathered(Peer(socket.gethostname(), os.getpid())) if together() else []


def lost_ranks(peers: Sequence[Peer]) -> dict[int, str]:
    """Ranks on this host that are gone or do not run: rank -> what is known."""
    return {
        rank: f"rank {rank} (process {peer.pid} on {peer.host}) {state}"
        for rank, peer in enumerate(peers)
        if peer.host == socket.gethostname() and (state := _state(peer.pid))
    }


def name_lost(peers: Sequence[Peer], fault: BaseException | None, timeout_s: float) -> None:
    """Raise a RankError that names the peers which died or hang, if `fault` is of a collective one.

    Other faults, and those of a single process, are left alone. An operation waits `timeout_s` s.
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
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return "died"
    except (OSError, IndexError):
        return ""
    return {"Z": "died", "X": "died", "T": "is stopped", "t": "is stopped"}.get(letter, "")
