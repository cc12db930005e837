"""Time against sparsity: compact networks that run from lists of their weights, and dense ones.

python benchmarks/sparsity_clock.py
python benchmarks/sparsity_clock.py --batches 1 --threads 1 --sparsities 0.9 --rounds 5 --out /tmp/c
python benchmarks/sparsity_clock.py --part layers
python benchmarks/sparsity_clock.py --part step         # training steps, batch 8
python benchmarks/sparsity_clock.py --mask erk --residuals add
python benchmarks/sparsity_clock.py --before FOLDER     # a checkout of an earlier commit
python benchmarks/sparsity_clock.py --model spiking_vgg16 --residuals add --batches 1

Masks are random, of the same rate in every layer but the first convolution and the head, or spread
over these layers by ERK, or the largest weights of all of them (`--mask`); biases of
the normalisations are set so that every layer fires at 10 to 25 %. All ways of one network run in
turn, round after round; figures are medians, ratios are those of our own dense compact network, or
of the dense layer. The same run compares the logits in float64. "sops" is the bound that counting
operations gives: the share of weights kept, in the layers that are pruned, and the rest as it is.
With --before an earlier checkout's dense compact network of the same weights runs in turn with
them, in a process of its own that times itself. A single layer is compared with our own dense one
(oneDNN, Winograd's convolutions) and, in columns of their own, with torch's dense product (oneDNN's
direct convolution) and, a linear map, with torch's CSR product.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikeformer_lt import Mask
from spikeformer_lt.export.inference import CompactModel, compact
from spikeformer_lt.export.synapses import FoldedConv2d, FoldedLinear, fire
from spikeformer_lt.layers import EncoderBlock
from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import bits, dispatch, sparse
from spikeformer_lt.layers.neuron import LIF
from spikeformer_lt.layers.units import ConvLayer, Folded, LinearUnit, map_rows
from spikeformer_lt.reports.plots import axis_of_kept, figure, save_picture, style
from spikeformer_lt.runtime import keep_heap
from spikeformer_lt.tickets.one_shot import random_mask

LAYERS = [("linear", 384, 1152), ("linear", 384, 384), ("linear", 384, 1536), ("linear", 1536, 384)]
MAPS = [("conv", 48, 96, 32), ("conv", 96, 192, 32), ("conv", 192, 384, 16), ("conv", 384, 384, 8)]
RATE = 0.17
OTHERS = {
    "csr": "torch's CSR",
    "peer_ratio": "spikingjelly's dense network",
    "before_ratio": "{}, dense, earlier",
}
"""Columns of what is drawn beside ours, the last of the checkout that --before names."""
UNREAD = {
    "layers": ("model", "mask", "weights", "how", "residuals", "peer", "before"),
    "step": ("mask", "weights", "how", "residuals", "batches", "peer"),
}
"""Part -> options that it does not read."""


class GatedBlock(EncoderBlock):
    """A block whose stream stays spikes: ``x (1 - f(x))`` in place of both sums."""

    def set_reads(self, reads: Any) -> Any:
        """All units read spikes."""
        super().set_reads(reads)
        self.mlp.fc1.reads = reads
        return reads

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Run the block."""
        tokens = tokens * (1 - self.attn(tokens, T))
        return tokens * (1 - self.mlp(tokens, T))


def masked(units: Sequence[Any], sparsity: float, how: str) -> None:
    """Prune the units behind the first one."""
    weights = {str(i): unit.synapse.weight.detach() for i, unit in enumerate(units[1:])}
    if how == "erk":
        mask = random_mask(weights, sparsity, "erk", 0)
    else:
        scores = {name: w.abs() if how == "global" else torch.rand(w.shape)
                  for name, w in weights.items()}  # fmt: skip
        mask = Mask.from_scores(scores, sparsity, how)
    for name, weight in weights.items():
        weight.mul_(mask[name])


def network(
    residual: str,
    sparsity: float,
    name: str = "spikformer_cifar",
    mask: str = "layer",
    weights: str | None = None,
) -> tuple[Any, Any]:
    """A pruned network in eval mode, and the firing rates of its units.

    Its weights are those of a file, if one is given, or random ones; biases let every unit fire.
    """
    torch.manual_seed(0)
    options = {"residual": residual} if name.startswith("spikformer") else {}
    model: Any = spikeformer_lt.create_model(name, num_classes=10, T=4, **options)
    if weights:
        tensors = load_file(weights)
        model.load_state_dict({key: tensors[key] for key in model.state_dict()})
    if residual != "add":
        for block in model.blocks:
            block.__class__ = GatedBlock
        model.conv_pep.feed(model.blocks)
    kinds = ConvLayer | LinearUnit
    units = [m for m in model.modules() if isinstance(m, kinds) and m.norm and m.act]
    masked(units, sparsity, mask)
    x, rates = torch.randn(4, 3, *model.image_size), {}
    hooks = []
    for unit in units:
        unit.norm.momentum = 1.0

        def see(_: Any, args: Any, out: Tensor, unit: Any = unit) -> None:
            rates[unit] = float(out.mean())

        hooks.append(unit.act.register_forward_hook(see))
    for turn in range(14):  # statistics first, so that each layer has those of its own inputs
        model.train(turn < 8)
        with torch.no_grad():
            model(x)
        for unit in units:
            with torch.no_grad():
                unit.norm.bias.add_((2.0 if turn < 8 else 1.0) * (RATE - rates[unit]))
    for hook in hooks:
        hook.remove()
    return model.eval(), rates


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(ways: dict[str, Callable[[], object]], rounds: int, clock: str) -> dict[str, float]:
    """Median milliseconds of each way; one that returns a float has timed itself."""
    now = CLOCKS[clock]
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = now()
            own = way()
            seen[name].append(own if isinstance(own, float) else 1e3 * (now() - start))
    return {name: statistics.median(found) for name, found in seen.items()}


def bound(net: CompactModel, x: Tensor) -> float:
    """Dense over kept operations, as spike counts give them."""
    sizes, hooks = {}, []
    for choice in net.layers:
        unit: Any = net.net.get_submodule(choice.name)

        def see(unit: Any, args: Any, name: str = choice.name) -> None:
            sizes[name] = unit.synapse.weight.numel() * math.prod(args[0].shape[:-1])

        hooks.append(unit.register_forward_pre_hook(see))
    net(x)
    for hook in hooks:
        hook.remove()
    return sum(sizes.values()) / sum(sizes[c.name] * c.density for c in net.layers)


def whole(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of whole networks."""
    rows = []
    for residual in args.residuals:
        for sparsity in args.sparsities:
            model, rates = network(residual, sparsity, args.model, args.mask, args.weights)
            dense, listed = compact(model).use_lists("never"), compact(model).use_lists(args.how)
            gap, sops = difference(model), bound(dense, torch.randn(1, 3, *model.image_size))
            print(listed.describe())
            if not gap < 1e-9:
                sys.exit(f"error: logits of lists are {gap:.1e} from the dense ones in float64")
            for threads in args.threads:
                torch.set_num_threads(threads)
                for batch in args.batches:
                    x = torch.randn(batch, 3, *model.image_size)
                    ways = {"dense": partial(dense, x), "ours": partial(listed, x)}
                    if args.peer and residual == "add":
                        ways["spikingjelly"] = partial(spikingjelly(), x)
                    apart = 0.0
                    if args.before:
                        ways["before"], apart = earlier(args, residual, model, x, threads)
                    rounds = args.rounds if batch < 8 else max(3, args.rounds // 3)
                    took = timed(ways, rounds, args.clock)
                    rows.append({
                        "what": f"{args.model} {residual} {args.mask}",
                        "threads": threads, "columns": batch, "sparsity": sparsity,
                        "dense_ms": took["dense"], "ours_ms": took["ours"],
                        "ratio": took["dense"] / took["ours"], "sops": sops, "gap": gap,
                        "firing": f"{min(rates.values()):.2f} to {max(rates.values()):.2f}",
                    })  # fmt: skip
                    if "spikingjelly" in took:
                        rows[-1]["spikingjelly_ms"] = took["spikingjelly"]
                        rows[-1]["peer_ratio"] = took["spikingjelly"] / took["ours"]
                    rows[-1] |= against_earlier(took, apart)
                    print(shown(rows[-1]), flush=True)
    return rows


def against_earlier(took: dict[str, float], apart: float) -> dict[str, float]:
    """Columns of a row for the earlier checkout, if it was timed."""
    if "before" not in took:
        return {}
    ratio = took["before"] / took["ours"]
    return {"before_ms": took["before"], "before_ratio": ratio, "before_gap": apart}


@cache
def spikingjelly() -> Callable[[Tensor], Tensor]:
    """Their own dense Spikformer-4-384, with weights under which its layers fire."""
    sys.path.append(str(Path(__file__).parent))
    from peers import PEER, variant

    size = argparse.Namespace(size="cifar-4-384", published_stem=False, device="cpu")
    model, run = variant(PEER, size)
    return partial(torch.no_grad()(run), model.eval())  # as ours, which keep nothing for gradients


def earlier(
    args: argparse.Namespace, residual: str, model: Any, x: Tensor, threads: int
) -> tuple[Callable[[], float], float]:
    """What runs the earlier checkout's dense network once, in ms, and its logits' gap to ours."""
    asked = {"model": args.model, "residual": residual, "threads": threads, "clock": args.clock}
    run, told = ask(args.before, asked, model.state_dict() | {"images": x})
    theirs = torch.tensor(told, dtype=torch.double)
    ours = compact(model.double()).use_lists("never")(x[:1].double()).flatten()
    model.float()
    return run, float((ours - theirs).abs().max())


def ask(
    checkout: Path, asked: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[Callable[[], float], Any]:
    """What runs the network that earlier.py makes in a checkout, and its first answer."""
    process = _process(checkout.resolve())

    def answer(line: str) -> Any:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline() or sys.exit("the earlier checkout failed"))

    with TemporaryDirectory() as folder:
        file = f"{folder}/network.safetensors"
        save_file(tensors, file)
        return partial(answer, ""), answer(json.dumps(asked | {"file": file}))


@cache
def _process(checkout: Path) -> Any:
    """A process that runs earlier.py with the code of a checkout."""
    own = {"PYTHONPATH": str(checkout), "SPIKEFORMER_SPARSE": "never"}
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("earlier.py")], text=True, cwd=checkout,
        env=os.environ | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


@torch.no_grad()
def difference(model: Any) -> float:
    """Largest difference of a logit in float64, dense against lists."""
    before, dispatch._mode = dispatch.mode(), "numba"
    torch.set_num_threads(1)
    exact = compact(model.double())
    x = torch.randn(1, 3, *model.image_size).double()
    gap = (exact.use_lists("never")(x) - exact.use_lists("always")(x)).abs().max()
    model.float()
    dispatch._mode = before
    return float(gap)


@torch.no_grad()
def layers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of single layers with their neurons."""
    rows, act, p = [], LIF(), bits.Neurons.of(NeuronConfig())
    for kind, C, D, *side in (*LAYERS, *MAPS):
        for batch in args.batches:
            sides = (side[0], side[0]) if side else (64,)
            x = (torch.rand(4, batch, *sides, C) < RATE).float()
            made = bits.Bits.of(x)
            for sparsity in args.sparsities:
                shape = (D, C, 3, 3) if side else (D, C)
                weight = torch.randn(shape) * (torch.rand(shape) >= sparsity)
                weight, bias = weight / weight[0].numel() ** 0.5, torch.full((D,), 0.5)
                product = sparse.Product.of(weight, bias, p)
                unit = nn.Conv2d(C, D, 3, padding=1) if side else nn.Linear(C, D)
                unit.weight, unit.bias = nn.Parameter(weight), nn.Parameter(bias)
                theirs = unit
                # As exports run: Winograd's filters and oneDNN's order of weights are kept.
                folded = Folded(weight, bias, None)
                unit = FoldedConv2d(unit, folded) if side else FoldedLinear(weight, bias)
                csr = weight.flatten(1).to_sparse_csr()

                def whole(unit: Any = unit, x: Tensor = x, side: Any = side) -> object:
                    current = unit.winograd(x) if side else unit(x)
                    return fire(act, map_rows(x, unit) if current is None else current, 4)

                ways: dict[str, Callable[[], object]] = {
                    "dense": whole, "ours": partial(product, made, 4)
                }  # fmt: skip
                if side:
                    maps = x.flatten(0, 1).movedim(-1, 1).contiguous()
                    ways["torch"] = partial(theirs, maps)
                else:
                    ways["csr"] = lambda x=x, csr=csr: csr @ x.flatten(0, -2).t()
                    ways["torch"] = partial(theirs, x)
                same = float((product(made, 4).dense() != whole()).double().mean())
                for threads in args.threads:
                    torch.set_num_threads(threads)
                    took = timed(ways, args.rounds, args.clock)
                    rows.append({
                        "what": f"{kind} {C} to {D}" + (f" at {side[0]}" if side else ""),
                        "threads": threads, "columns": x[..., 0].numel(), "sparsity": sparsity,
                        "dense_ms": took["dense"], "ours_ms": took["ours"],
                        "ratio": took["dense"] / took["ours"], "sops": 1 / (1 - sparsity),
                        "csr": took["dense"] / took.get("csr", float("inf")),
                        "torch": took["dense"] / took.get("torch", float("inf")), "gap": same,
                        "firing": f"{float(x.mean()):.2f}",
                    })  # fmt: skip
                    print(shown(rows[-1]), flush=True)
    return rows


def steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of training steps at a mask of one rate in every layer."""
    import sparse_step as own

    sizes = {"embed_dim": None, "depth": None, "num_heads": None}
    given = argparse.Namespace(model=args.model, before=args.before, clock=args.clock, **sizes)
    found = []
    for sparsity in args.sparsities:
        for threads in args.threads:
            torch.set_num_threads(threads)
            model, hook = own.build(given, sparsity)
            x, y = own.inputs(model, 8)
            seen = own.rates(model, x).values()
            ways: dict[str, Callable[[], object]] = {}
            apart = 0.0
            for how in ("dense", "ours"):
                pair = copy.deepcopy((model, hook))
                ways[how] = own.stepper(*pair, x, y, how == "ours")
            if args.before:
                ways["before"], apart = own.earlier(given, model, hook, x, y)
            took = timed(ways, args.rounds, args.clock)
            found.append({
                "what": f"training step of {args.model}", "threads": threads, "columns": 8,
                "sparsity": sparsity, "dense_ms": took["dense"], "ours_ms": took["ours"],
                "ratio": took["dense"] / took["ours"], "sops": 1 / (1 - sparsity),
                "gap": own.check(given, sparsity), "firing": f"{min(seen):.2f} to {max(seen):.2f}",
            })  # fmt: skip
            found[-1] |= against_earlier(took, apart)
            print(shown(found[-1]), flush=True)
    return found


def shown(row: dict[str, Any]) -> str:
    """A row in one line."""
    return " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Ratio against the share of weights kept: a panel a size and number of threads."""
    from matplotlib.ticker import FixedLocator, NullLocator

    panels: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (int(row["columns"]), int(row["threads"]))):
        threads = f"{row['threads']} thread{'s' * (int(row['threads']) > 1)}"
        size = f"batch {row['columns']}" if "csr" not in row else _kind_of(row)
        panels.setdefault(f"{size}, {threads}", []).append(row)
    layers = any("csr" in row for row in rows)
    down = -(-len(panels) // 2)
    made, _ = figure(9.5, 3.6 * down + 0.6, down, min(2, len(panels)), share_x=False)
    for axes, (title, own) in zip(made.axes, sorted(panels.items()), strict=True):
        lines: dict[str, set[tuple[float, float]]] = {}
        for row in own:
            kept = 100 * (1 - float(row["sparsity"]))
            lines.setdefault(row["what"], set()).add((kept, float(row["ratio"])))
            lines.setdefault("bound by operations", set()).add((kept, float(row["sops"])))
            for column, name in OTHERS.items():
                if row.get(column) and float(row[column]):
                    by = float(row[column]) if column == "csr" else _against(row, column)
                    lines.setdefault(name.format(row["what"]), set()).add((kept, by))
        limit = lines.pop("bound by operations")
        axes.plot(
            *zip(*sorted(limit), strict=True), "--", color="grey", label="bound by operations"
        )
        for at, (name, points) in enumerate(lines.items()):
            middle = [(k, statistics.median(r for q, r in points if q == k)) for k, _ in points]
            axes.plot(*zip(*sorted(set(middle)), strict=True), **style(at), label=name)
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set(title=title, xlabel="weights kept (%), log scale", yscale="log")
        least = min(ratio for points in lines.values() for _, ratio in points)
        ticks = [t for t in (0.0625, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16) if t >= min(0.5, least / 2)]
        axes.set_ylim(ticks[0], 100)
        axis_of_kept(axes)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    made.supylabel("times as fast as our dense form", fontsize=10)
    what = "Single layers" if layers else "Whole networks for 32x32 images"
    if "training" in rows[0]["what"]:
        what = "Training steps of a Spikformer-4-384"
    made.suptitle(
        f"{what}, dense against lists of kept weights\nno data set: random inputs, weights and "
        "masks, 1 seed; medians of interleaved rounds: no bars", fontsize=10,
    )  # fmt: skip
    save_picture(made, path)


def _against(row: dict[str, Any], column: str) -> float:
    """How many times as fast as our dense form another network is, of which ours is a ratio."""
    return float(row["ratio"]) / float(row[column])


def _kind_of(row: dict[str, Any]) -> str:
    """Linear maps or convolutions, of one image or of eight."""
    kind, columns = row["what"].split()[0], int(row["columns"])
    few = columns <= 256 if kind == "linear" else columns / int(row["what"].split()[-1]) ** 2 <= 4
    return f"{'linear maps' if kind == 'linear' else 'convolutions'}, batch {1 if few else 8}"


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def main() -> None:
    """Measure, print, and write CSV and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("whole", "layers", "step"), default="whole")
    parser.add_argument("--model", default="spikformer_cifar")
    parser.add_argument("--mask", default="layer", choices=("layer", "global", "erk"))
    parser.add_argument("--weights", help="safetensors of the model: masks are made of these")
    parser.add_argument("--how", default="auto", choices=("auto", "always"))
    parser.add_argument("--residuals", nargs="+", default=["add", "iand"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: busy machines")
    parser.add_argument("--peer", action="store_true", help="time spikingjelly's dense 4-384, too")
    parser.add_argument(
        "--before", type=Path, metavar="FOLDER", help="checkout of an earlier commit"
    )
    parser.add_argument("--out", default="", help="folder of sparsity_clock.csv and .png")
    args = parser.parse_args()
    for name in UNREAD.get(args.part, ()):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--part {args.part} does not read --{name}")
    if args.peer and (args.model != "spikformer_cifar" or "add" not in args.residuals):
        parser.error("--peer is a Spikformer-4-384: --model spikformer_cifar, --residuals add")
    keep_heap()
    print(f"{processor()}; torch {torch.__version__}")
    rows = {"whole": whole, "layers": layers, "step": steps}[args.part](args)
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        stem = "sparsity_clock" + f"_{args.part}" * (args.part != "whole")
        with (folder / f"{stem}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, folder / f"{stem}.png")


if __name__ == "__main__":
    main()
