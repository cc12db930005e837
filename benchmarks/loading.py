"""Time to load a packed 4-384 against `torch.load` of the same dense state, and both sizes.

python benchmarks/loading.py                  # the tickets of MultiSp, IMP at 90 %, and no mask
python benchmarks/loading.py --rounds 15 --threads 1

Every round reads each file once, one after another, from the system's cache; figures are medians.
`read` gives the tensors, `network` a plain network in eval mode: `load_exported(plain=True)`
against `create_model`, `torch.load` and `load_state_dict`. The tensors are compared in the run.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spikeformer_lt import Mask, Ticket, create_model, load_exported
from spikeformer_lt.bundle import staged
from spikeformer_lt.export.file import EXPORT, TENSORS, read_packed, write_packed
from spikeformer_lt.layers.subnet import SubnetConv2d, collapse, get_masks, rankings, set_masks
from spikeformer_lt.tickets import PruneConfig, magnitudes
from spikeformer_lt.tickets.levels import ActivationConfig, PatchConfig

LIMIT = 3.0
KINDS = ("multisp", "imp", "dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--model", default="spikformer_cifar", help="a registered model")
    parser.add_argument("--rounds", type=int, default=9, help="readings of each file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()}, {args.threads} threads, torch {version('torch')}; ms, medians")
    with tempfile.TemporaryDirectory() as place:
        for kind in KINDS:
            measure(ticket_of(kind, args.model), Path(place) / kind, args.rounds)


def ticket_of(kind: str, name: str) -> Ticket:
    """A ticket with random weights: a binary sparse stem, sparse weights everywhere, or no mask."""
    torch.manual_seed(0)
    model: Any = create_model(name)
    provenance: dict[str, Any] = {"search": kind, "model": {"name": name, "args": {}}}
    if kind == "multisp":
        for i, (_, unit) in enumerate(model.conv_pep.units()):
            unit.conv = SubnetConv2d(unit.conv, "weights", binary=i > 0)
        set_masks(model, Mask.from_scores(rankings(model), 0.9, scope="layer"))
        mask = get_masks(model)
        collapse(model)
        config = {
            "activation": vars(ActivationConfig()),
            "patches": vars(PatchConfig(sparsity=0.0)),
        }
        return Ticket.of(model, mask, {**provenance, "config": config})
    weights = magnitudes(PruneConfig().weights(model))
    if kind == "imp":
        return Ticket.of(model, Mask.from_scores(weights, 0.9), provenance)
    first = next(iter(weights))  # a ticket needs a mask
    return Ticket.of(model, Mask({first: torch.ones_like(weights[first])}), provenance)


def measure(ticket: Ticket, folder: Path, rounds: int) -> None:
    """Print sizes and times of one ticket."""
    with staged(folder, EXPORT) as stage:
        write_packed(stage, ticket)
    dense = folder.with_suffix(".pt")
    torch.save(ticket.tensors, dense)  # noqa: TID251 - the peer
    found = read_packed(folder).ticket
    assert found.mask == ticket.mask
    assert all(torch.equal(found.tensors[name], ticket.tensors[name]) for name in ticket.tensors)
    name = ticket.provenance["model"]["name"]

    def network() -> None:
        create_model(name).load_state_dict(torch.load(dense, weights_only=True))

    calls: dict[str, Callable[[], Any]] = {
        "torch.load": lambda: torch.load(dense, weights_only=True),
        "read": lambda: read_packed(folder),
        "create_model + torch.load": network,
        "load_exported(plain=True)": lambda: load_exported(folder, plain=True),
    }
    times: dict[str, list[float]] = {call: [] for call in calls}
    for _ in range(rounds):
        for call, timed in calls.items():
            begin = time.perf_counter()
            timed()
            times[call].append(1e3 * (time.perf_counter() - begin))
    ms = {call: statistics.median(values) for call, values in times.items()}
    sizes = [path.stat().st_size / 1e6 for path in (folder / TENSORS, dense)]
    ratio = ms["read"] / ms["torch.load"]
    print(f"{ticket.provenance['search']}: {sizes[0]:.2f} MB packed, {sizes[1]:.2f} MB dense; "
          f"read {ratio:.2f}x torch.load (limit {LIMIT:g}x)")  # fmt: skip
    print("  " + "; ".join(f"{call} {value:.1f}" for call, value in ms.items()), flush=True)


if __name__ == "__main__":
    main()
