"""Time of a training step and of inference: a dense Spikformer against its MultiSp ticket.

OMP_NUM_THREADS=2 python benchmarks/multisp_step.py --model spikformer_toy --batch 32
OMP_NUM_THREADS=2 python benchmarks/multisp_step.py --model spikformer_cifar_4_256 --batch 16
OMP_NUM_THREADS=2 python benchmarks/multisp_step.py --model spikformer_cifar --batch 8 \
    --weight-sparsity 0.5 0.9

All variants run in turn, round after round, so that a busy machine slows them alike; the figures
are medians over rounds and ratios to the dense model that computes a static image at every step.
A training step is forward, backward and AdamW, for MultiSp with the new masks that it takes before
each step; an export is the compact form of the finished network. The same run checks in float64
that computing once changes no spike and no logit.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikeformer_lt import Mask, create_model
from spikeformer_lt.export.inference import compact
from spikeformer_lt.layers.neuron import BatchNorm
from spikeformer_lt.layers.patches import PatchSelect, make_score
from spikeformer_lt.layers.subnet import SubnetConv2d, collapse, rankings, set_masks

BASE, PHASES = "dense, every step", ("train", "infer", "export")


def variants(sparsities: list[float]) -> dict[str, dict[str, Any]]:
    """Arguments of `build`, by the name of each variant."""
    made: dict[str, dict[str, Any]] = {BASE: {"compute_once": False}}
    made["dense, compute once"] = {"compute_once": True}
    for sparsity in sparsities:
        for kind in ("lif", "heaviside"):
            own = {"compute_once": True, "activation": kind, "sparsity": sparsity}
            made[f"MultiSp, {kind}, {sparsity:.0%}"] = own
    return made


def build(args: argparse.Namespace, compute_once: bool, **rest: Any) -> nn.Module:
    """A variant with seeded weights and BatchNorm set so that every layer fires."""
    sizes = {n: getattr(args, n) for n in ("embed_dim", "depth", "num_heads", "T")}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    torch.manual_seed(0)
    model: Any = create_model(args.model, compute_once=compute_once, **sizes)
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            products = name.endswith(("q.norm", "k.norm", "v.norm"))
            nn.init.constant_(module.weight, 1.4)
            nn.init.constant_(module.bias, 0.7 if products else 0.35)
    if "sparsity" in rest:
        model.conv_pep.set_activation(rest["activation"])
        for _, unit in model.conv_pep.units():
            unit.conv = SubnetConv2d(unit.conv, "weights", binary=True)
        update_masks(model, rest["sparsity"])
        score = make_score("rate", model.embed_dim, model.num_classes, model.num_heads)
        model.set_patch(PatchSelect(score, args.patch_sparsity))
    settle(model, torch.rand(4, model.in_channels, *model.image_size))
    return model


def settle(model: nn.Module, x: Tensor) -> None:
    """Give BatchNorm the running statistics of inputs, so that evaluation fires as training."""
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1


def update_masks(model: nn.Module, sparsity: float) -> None:
    """Keep the largest weights of each ConvPEP layer, as the search does before a step."""
    set_masks(model, Mask.from_scores(rankings(model), sparsity, scope="layer"))


def trainer(model: nn.Module, x: Tensor, y: Tensor, sparsity: float | None) -> Callable[[], None]:
    """One training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        if sparsity is not None:
            update_masks(model, sparsity)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x).mean(1), y).backward()
        optimizer.step()

    return step


def inferer(model: nn.Module, x: Tensor, form: Callable[..., nn.Module]) -> Callable[[], None]:
    """One forward of a form of the finished model, whose subnetwork is plain weights."""
    done = form(collapse(copy.deepcopy(model)).eval())

    def infer() -> None:
        with torch.no_grad():
            done(x)

    return infer


def timed(run: Callable[[], None]) -> float:
    """Wall-clock milliseconds of one call."""
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def flops(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations that products of one evaluation really execute."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return counter.get_total_flops()


def check_compute_once(args: argparse.Namespace, x: Tensor, y: Tensor) -> None:
    """Print how far computing once is from computing at every step, in float64 training."""
    x = x[:4].double()
    known = variants(args.weight_sparsity)
    for name in list(known)[1:]:
        seen: list[list[Tensor]] = []
        results = []
        for once in (True, False):
            model = build(args, **{**known[name], "compute_once": once}).double()
            settle(model, x)
            spikes: list[Tensor] = []
            for part, module in model.named_modules():
                if part.split(".")[-1] in ("act", "attn_act"):
                    module.register_forward_hook(lambda m, a, out, s=spikes: s.append(out.detach()))
            logits = model(x)
            nn.functional.cross_entropy(logits.mean(1), y[:4]).backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            buffers = [b for b in model.buffers() if b.is_floating_point()]
            results.append([logits.detach(), *grads, *buffers])
            seen.append(spikes)
        flips = sum(int((a != b).sum()) for a, b in zip(*seen, strict=True))
        gap = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
        rates = [float(s.mean()) for s in seen[0]]
        spikes.clear()
        with torch.no_grad():
            model.eval()(x)
        later = [float(s.mean()) for s in spikes]
        print(
            f"float64, {name}: {flips} spikes differ; logits, gradients and running statistics "
            f"within {gap:.1e}; firing rates {min(rates):.2f} to {max(rates):.2f}, in evaluation "
            f"{min(later):.2f} to {max(later):.2f}"
        )
        if flips or gap > 1e-9 or min(rates + later) < 0.01:
            raise SystemExit(f"{name}: computing once is not an identity, or a layer is silent")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spikformer_toy", help="a registered Spikformer")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--rounds", type=int, default=15, help="times each variant is measured")
    parser.add_argument("--patch-sparsity", type=float, default=0.314, help="tokens gone")
    parser.add_argument(
        "--weight-sparsity", type=float, nargs="+", default=[0.5], help="ConvPEP weights gone"
    )
    for name in ("embed-dim", "depth", "num-heads", "T"):
        parser.add_argument(f"--{name}", type=int, help="the named model's own if left out")
    args = parser.parse_args()

    known = variants(args.weight_sparsity)
    first: Any = build(args, **known[BASE])
    x = torch.rand(args.batch, first.in_channels, *first.image_size)
    y = torch.arange(args.batch) % first.num_classes
    print(
        f"{args.model} {first.embed_dim}x{len(first.blocks)} T={first.T} batch={args.batch}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.processor()}"
    )
    check_compute_once(args, x, y)

    runs: dict[str, dict[str, Callable[[], None]]] = {}
    work: dict[str, int] = {}
    for name, options in known.items():
        model = build(args, **options)
        work[name] = flops(model, x)
        runs[name] = {
            "train": trainer(model, x, y, options.get("sparsity")),
            "infer": inferer(model, x, lambda net: net),
            "export": inferer(model, x, compact),
        }
    times = {name: {phase: [] for phase in parts} for name, parts in runs.items()}
    for phase in PHASES:
        for round_ in range(args.rounds + 2):
            for name, parts in runs.items():
                spent = timed(parts[phase])
                if round_ >= 2:  # the first two compile kernels and warm caches
                    times[name][phase].append(spent)
    heads = "".join(f"  {phase:>9} {'ratio':>7}" for phase in PHASES)
    print(f"\n{'':24}{'products':>9}{heads}")
    for name in runs:
        cells = [f"{name:24}{work[name] / work[BASE]:>8.0%} "]
        for phase in PHASES:
            own = statistics.median(times[name][phase])
            base = statistics.median(times[BASE][phase])
            cells.append(f" {own:>7.1f}ms {base / own:>6.2f}x")
        print(" ".join(cells))
    print(f"\nmedians of {args.rounds} interleaved rounds; ratio above 1 is faster than the first")


if __name__ == "__main__":
    main()
