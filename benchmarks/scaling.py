"""How the cost of a step grows with time steps, tokens, width, depth, batch, threads and sparsity.

python benchmarks/scaling.py --out docs/results/scaling       # minutes, on idle cores
python benchmarks/scaling.py --rounds 1 --quick --out /tmp/scaling

One thing at a time is changed of a Spikformer with T 4, 64 tokens, width 128 and 2 blocks on a
batch of 8, on all CPUs. `train` is forward, backward and AdamW of the dense network; `infer` is the
compact form, its weights removed at random, the same rate in every layer but the first and the
head, for the rows of sparsity. All rows run in turn, round after round; the least of all rounds, by
the clock and of processors (all threads together). BatchNorm is set so that every layer fires.
Writes scaling.csv and scaling.png, which shows --clock.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import torch
from multisp_step import settle
from torch import nn

from spikeformer_lt import Mask, create_model
from spikeformer_lt.export.inference import compact
from spikeformer_lt.layers.neuron import BatchNorm
from spikeformer_lt.reports.plots import axis_of_kept, figure, save_picture, style
from spikeformer_lt.runtime import cpu_count, keep_heap

BASE: dict[str, Any] = {"T": 4, "N": 64, "D": 128, "depth": 2, "batch": 8, "sparsity": 0.0}
VALUES: dict[str, tuple[float, ...]] = {
    "T": (1, 2, 4, 8), "N": (16, 64, 256), "D": (64, 128, 256), "depth": (1, 2, 4),
    "batch": (1, 4, 8, 16), "sparsity": (0.0, 0.5, 0.8, 0.9, 0.95),
}  # fmt: skip


def rows(quick: bool) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """What is changed, to which value, and the whole setting."""
    cpus = cpu_count()
    base = BASE | {"threads": cpus} | ({"D": 32, "N": 16, "batch": 2} if quick else {})
    every = VALUES | {"threads": sorted({1, *(n for n in (2, 4, 8, 16) if n < cpus), cpus})}
    for axis, values in every.items():
        for value in (values[0], values[-1]) if quick else values:
            yield axis, value, base | {axis: value}


def network(setting: dict[str, Any]) -> Any:
    """A seeded network that fires in every layer, some of its weights removed."""
    torch.manual_seed(0)
    model = create_model(
        "spikformer_cifar", T=setting["T"], image_size=4 * round(setting["N"] ** 0.5),
        embed_dim=setting["D"], depth=setting["depth"], num_heads=setting["D"] // 32,
    )  # fmt: skip
    for norm in (m for m in model.modules() if isinstance(m, BatchNorm)):
        nn.init.constant_(norm.bias, 0.35)
    if setting["sparsity"]:
        weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
        inner = [n for n in weights if n != "head.weight"][1:]
        scores = {n: torch.rand_like(weights[n]) for n in inner}
        Mask.from_scores(scores, setting["sparsity"], scope="layer").apply_(model)
    settle(model, images(setting, 4))
    return model


def images(setting: dict[str, Any], batch: int) -> torch.Tensor:
    """Seeded images."""
    side = 4 * round(setting["N"] ** 0.5)
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def steps(axis: str, setting: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """A training step, but not of removed weights, and an inference."""
    model, x = network(setting), images(setting, setting["batch"])
    small = compact(model)
    found: dict[str, Callable[[], Any]] = {"infer": lambda: small(x)}
    if axis != "sparsity":
        y = torch.arange(setting["batch"]) % 10
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x).mean(1), y).backward()
            optimizer.step()

        found["train"] = step
    return found


def measure(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each row and phase."""
    made = [(axis, value, s, steps(axis, s)) for axis, value, s in rows(quick)]
    found: dict[tuple[str, float, str], tuple[float, float]] = {}
    for i in range(rounds + 1):  # the first one compiles
        for axis, value, setting, own in made:
            torch.set_num_threads(setting["threads"])
            for phase, run in own.items():
                run()  # after the caches of another network
                begin, used = time.perf_counter(), time.process_time()
                run()
                took = 1e3 * (time.perf_counter() - begin), 1e3 * (time.process_time() - used)
                if i:
                    key = axis, value, phase
                    least = found.get(key, took)
                    found[key] = min(least[0], took[0]), min(least[1], took[1])
    return [
        {"axis": axis, "value": value, "phase": phase, "ms": round(ms, 3), "cpu_ms": round(cpu, 3)}
        for (axis, value, phase), (ms, cpu) in found.items()
    ]


LABELS = {
    "T": "time steps T", "N": "tokens N", "D": "width D", "depth": "blocks",
    "batch": "images in a batch", "sparsity": "weights removed (fraction)", "threads": "threads",
}  # fmt: skip


def draw(found: list[dict[str, Any]], column: str, path: Path) -> None:
    """One panel for each thing that is changed; all but that of sparsity have log axes."""
    axes = list(dict.fromkeys(row["axis"] for row in found))
    made, _ = figure(12.0, 6.2, 2, 4, share_x=False)
    for panel, axis in zip(made.axes, axes, strict=False):
        own = [row | {"x": float(row["value"])} for row in found if row["axis"] == axis]
        if axis == "sparsity":
            own = [row | {"x": 100 * (1 - row["x"])} for row in own]
        for at, phase in enumerate(("train", "infer")):
            points = [(row["x"], float(row[column])) for row in own if row["phase"] == phase]
            if points:
                panel.plot(*zip(*points, strict=True), **style(at), label=phase)
        panel.set_xlabel(LABELS[axis])
        if axis == "sparsity":
            panel.set_ylim(0, 1.1 * max(float(row[column]) for row in own))
            axis_of_kept(panel)
            continue
        panel.set(xscale="log", yscale="log")
        low, high = (round(math.log2(end)) for end in panel.get_ylim())
        panel.set_yticks([2**i for i in range(low, high + 1)])
        panel.yaxis.set_major_formatter("{x:g}")
        values = sorted({row["x"] for row in own})
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.set_xticks([], minor=True)
        panel.set_yticks([], minor=True)
    for panel in made.axes[len(axes) :]:
        panel.set_axis_off()
    made.supylabel("ms a step" if column == "ms" else "ms of processors a step", fontsize=10)
    made.suptitle(
        "A Spikformer of T 4, 64 tokens, width 128 and 2 blocks, batch 8, one thing changed at a "
        "time\nno data set: random images and weights, seed 0; the least of all rounds: no bars",
        fontsize=10,
    )
    made.legend(*made.axes[0].get_legend_handles_labels(), loc="lower right", frameon=False)
    save_picture(made, path)


def main() -> None:
    """Measure, print, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/scaling"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two values each")
    args = parser.parse_args()
    keep_heap()
    args.out.mkdir(parents=True, exist_ok=True)
    found = measure(args.quick, args.rounds)
    with (args.out / "scaling.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    first, column = {}, "ms" if args.clock == "wall" else "cpu_ms"
    for row in found:
        base = first.setdefault((row["axis"], row["phase"]), row[column])
        print(f"{row['axis']:9}{row['value']:>6g} {row['phase']:6}{row[column]:10.2f} ms "
              f"{row[column] / base:6.2f}x")  # fmt: skip
    draw(found, column, args.out / "scaling.png")
    print(f"{os.cpu_count()} CPUs, torch {torch.__version__}, {spikeformer_lt.__version__}")


if __name__ == "__main__":
    main()
