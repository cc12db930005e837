"""Count the library files that six acts cross, and the Python calls of one digits forward.

Rules: only functions of spikeformer_lt, models, datasets and recipes count, whoever calls them. A
file is crossed if one of its functions is called. A change of file is a call from one library file
into another, or the return from it; frames of torch and others in between are skipped. A Python
call is a 'call' event: functions, comprehensions and each resumption of a generator. Each act but
the mask's is done twice, and the second time is counted: imports and caches are not.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import runpy
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch

from spikeformer_lt import Ticket, create_model, list_searches, load_exported, registry
from spikeformer_lt.export import export_ticket
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.training.trainer import PhaseRun, Trainer

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/imp_cifar.py"
OPTIONS = (
    "--data.name digits --data.limit-train 64 --data.limit-test 20 --train.cpu "
    "--imp.epochs 1 --imp.sparsity 0.5 --imp.fraction 0.5 --imp.rewind 0it --epochs 1"
)


@cache
def library_file(path: str) -> str:
    """Return a library file's path below the root, links followed; "" for other files."""
    real = Path(path).resolve()
    name = real.relative_to(ROOT).as_posix() if real.is_relative_to(ROOT) else ""
    return name if name.startswith(("spikeformer_lt/", "models/", "datasets/", "recipes/")) else ""


class Tracer:
    """What is called inside of `call`: files, changes of file, calls."""

    def __init__(self, place: str = "") -> None:
        self.files, self.calls, self.changes = {place} - {""}, 0, 0
        self._open = [place]  # library files of the frames that are open, outermost first

    def row(self) -> dict[str, Any]:
        """Return the counts and the files' names."""
        return {"files": sorted(self.files), "changes": self.changes, "calls": self.calls}

    def call(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Call a function and count what it calls."""
        sys.setprofile(self._event)
        try:
            return function(*args, **keywords)
        finally:
            sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, argument: object) -> None:
        name = library_file(frame.f_code.co_filename)
        if not name or event not in ("call", "return"):
            return
        before = self._open[-1]
        if event == "call":
            self.calls += 1
            self.files.add(name)
            self._open.append(name)
        elif len(self._open) > 1:
            self._open.pop()
        self.changes += bool(before and self._open[-1]) and self._open[-1] != before


def imp_run(folder: Path) -> dict[str, Tracer]:
    """Run the IMP recipe; trace its search and its third training step.

    Of the search, what lies between its creation and the applied mask counts, without the trainings
    and without the ticket that is then made of mask and weights.
    """
    mask, step, steps = Tracer(RECIPE), Tracer(), itertools.count(1)
    create, fit, one = registry.create_search, Trainer.fit, PhaseRun._step
    make_ticket = Ticket.of

    def traced_create(*args: Any, **keywords: Any) -> Any:
        search = mask.call(create, *args, **keywords)
        search.find = partial(mask.call, search.find)
        return search

    def untraced_fit(*args: Any) -> Any:
        profile = sys.getprofile()
        sys.setprofile(None)
        result = fit(*args)
        sys.setprofile(profile)
        return result

    def end_of_mask(*args: Any) -> Ticket:
        sys.setprofile(None)
        return make_ticket(*args)

    def traced_step(*args: Any) -> float:
        return step.call(one, *args) if next(steps) == 3 else one(*args)

    with (
        mock.patch.object(registry, "create_search", traced_create),
        mock.patch.object(Trainer, "fit", untraced_fit),
        mock.patch.object(Ticket, "of", end_of_mask),
        mock.patch.object(PhaseRun, "_step", traced_step),
        mock.patch.object(sys, "argv", [RECIPE, *OPTIONS.split(), "--run.out", str(folder)]),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(str(ROOT / RECIPE), run_name="__main__")
    return {"recipe's sparsity to applied mask (IMP)": mask, "training step": step}


@torch.no_grad()
def measure() -> dict[str, Tracer]:
    torch.set_num_threads(1)
    list_searches()  # imports the searches
    model, lif = create_model("spikformer_digits").eval(), LIF()
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "out"
        with torch.enable_grad():
            found = imp_run(run)
        acts: dict[str, Callable[[], object]] = {
            "export": partial(export_ticket, Ticket.load(run / "trained"), out, overwrite=True),
            "load_exported": partial(load_exported, out),
            "one digits forward": partial(model, torch.rand(8, 3, 16, 16)),
            "one LIF forward": partial(lif, torch.rand(4, 8, 1024)),
        }
        for name, act in acts.items():
            act()
            found.setdefault(name, Tracer()).call(act)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, with the files' names")
    as_json, found = parser.parse_args().json, measure()
    if as_json:
        print(json.dumps(found, default=Tracer.row, indent=1))
        return
    print(f"{'':42}{'files':>7}{'changes':>9}{'calls':>8}")
    for act, tracer in found.items():
        print(f"{act:42}{len(tracer.files):7}{tracer.changes:9}{tracer.calls:8}")


if __name__ == "__main__":
    main()
