"""Time of a training step at a fixed mask: by lists of the kept weights against our dense step.

The lists that a step reads are made anew beside it: what a change of the mask costs.

OMP_NUM_THREADS=2 python benchmarks/sparse_step.py --model spikformer_cifar --batch 32
OMP_NUM_THREADS=2 python benchmarks/sparse_step.py --embed-dim 128 --depth 2 --num-heads 4 --imp 14

A step is forward, backward, the mask on gradients and weights, and AdamW, as a phase takes it. All
variants run in turn, round after round; figures are medians over rounds and their ratio. Masks have
the same rate in every layer but the first convolution and the head; BatchNorm is set so that layers
fire at the rates printed. The same run compares loss and gradients of both in float64. On a busy
machine take one thread and `--clock cpu`, the time of the process itself.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import torch
from torch import Tensor, nn

from spikeformer_lt import Mask, create_dataset, create_model
from spikeformer_lt.layers.kernels import dispatch, sparse
from spikeformer_lt.layers.neuron import LIF, BatchNorm
from spikeformer_lt.runtime import keep_heap
from spikeformer_lt.training.phase import Hooks, Masked, Progress


def build(args: argparse.Namespace, sparsity: float) -> tuple[nn.Module, Masked]:
    """A seeded model at a mask, and the hook that keeps it."""
    torch.manual_seed(0)
    sizes = {n: getattr(args, n) for n in ("embed_dim", "depth", "num_heads")}
    given = {name: value for name, value in sizes.items() if value is not None}
    model: Any = create_model(args.model, num_classes=10, **given)
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            nn.init.constant_(module.weight, 1.4)
            nn.init.constant_(module.bias, 0.2 if name.endswith(("q.norm", "k.norm")) else 0.3)
    weights = {n: w for n, w in model.named_parameters() if w.dim() > 1}
    first, head = next(iter(weights)), list(weights)[-1]
    scores = {n: w.detach().abs() for n, w in weights.items() if n not in (first, head)}
    hook = Masked(Mask.from_scores(scores, sparsity, "layer"))
    hook.start(model, 1, 1)
    return model.train(), hook


def inputs(model: Any, batch: int, cifar: str = "") -> tuple[Tensor, Tensor]:
    """Images of CIFAR-10, or random ones or event frames, and labels."""
    torch.manual_seed(1)
    if cifar:
        data = create_dataset("cifar10", root=cifar).train
        images, labels = zip(*(data[i] for i in range(batch)), strict=True)
        return torch.stack(images) / 127.5 - 1, torch.tensor(labels)
    time_axis = (model.T,) if model.in_channels == 2 else ()
    x = torch.randn(batch, *time_axis, model.in_channels, *model.image_size)
    return x, torch.randint(10, (batch,))


def back(model: nn.Module, hook: Masked, x: Tensor, y: Tensor, lists: bool) -> Tensor:
    """Forward and backward; the loss."""
    own = hook.kept(model, Progress(0, 0, 1, 1))
    with dispatch.kept_weights(own) if lists else nullcontext():
        loss = nn.functional.cross_entropy(model(x).mean(1), y)
        loss.backward()
    return loss.detach()


def stepper(
    model: nn.Module, hook: Masked, x: Tensor, y: Tensor, lists: bool
) -> Callable[[], None]:
    """One training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    hooks = Hooks([hook])

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        back(model, hook, x, y, lists)
        hooks.after_backward(model, optimizer, Progress(0, 0, 1, 1))
        optimizer.step()
        hooks.after_step(model, 1, None)

    return step


def renewer(hook: Masked) -> Callable[[], None]:
    """Makes the lists again that the steps of a hook have read."""

    def renew() -> None:
        for kept in hook._kept.values():
            for own in (kept, *([kept._joined[1]] if kept._joined else [])):
                made = dispatch.Kept(own.mask)
                for turned in own.lists:
                    sparse._lists(made, turned)

    return renew


def rates(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Firing rate of every LIF."""
    found: dict[str, float] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, LIF):

            def note(_: Any, __: Any, out: Tensor, name: str = name) -> None:
                found[name] = float(out.detach().mean())

            hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def check(args: argparse.Namespace, sparsity: float) -> float:
    """Largest difference in float64 of loss and kept gradients, relative to the largest of each.

    Gradients below 1e-12 are left out, 0 but for rounding: of biases in front of a normalisation.
    """
    model, hook = build(args, sparsity)
    x, y = inputs(model, 2)
    found = []
    before, dispatch._mode = dispatch.mode(), "numba"
    for lists in (False, True):
        own = copy.deepcopy(model).double()
        loss = back(own, hook, x.double(), y, lists)
        Hooks([hook]).after_backward(own, None, Progress(0, 0, 1, 1))  # type: ignore[arg-type]
        hook._factors.clear()
        found.append([loss, *(p.grad for p in own.parameters() if p.grad is not None)])
    dispatch._mode = before
    pairs = [(a, b) for a, b in zip(*found, strict=True) if float(a.abs().max()) > 1e-12]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def earlier(
    args: argparse.Namespace, model: nn.Module, hook: Masked, x: Tensor, y: Tensor
) -> tuple[Callable[[], object], float]:
    """A step of an earlier checkout's dense network, in ms, and the gap of the losses."""
    from sparsity_clock import ask

    given = {n: getattr(args, n) for n in ("embed_dim", "depth", "num_heads")}
    tensors = model.state_dict() | {f"mask {name}": own for name, own in hook.mask.items()}
    asked = {"model": args.model, "sizes": {k: v for k, v in given.items() if v is not None}}
    asked |= {"threads": torch.get_num_threads(), "clock": args.clock}
    run, loss = ask(args.before, asked, tensors | {"images": x, "labels": y})
    ours = copy.deepcopy(model).double()
    own = nn.functional.cross_entropy(ours(x[:2].double()).mean(1), y[:2])
    return run, abs(loss - float(own.detach()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spikformer_cifar")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--cifar", default="", help="folder of cifar-10-batches-py, to train on")
    parser.add_argument("--imp", type=int, default=0, help="rounds that each remove a fifth")
    for size in ("--embed-dim", "--depth", "--num-heads"):
        parser.add_argument(size, type=int)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit: its dense step")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    known = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    name = known[0].split(":")[1].strip() if known else platform.processor()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    print(f"{name}, {torch.get_num_threads()} threads, {args.model}, batch {args.batch}, "
          f"OpenMP {spikeformer_lt.OPENMP}")  # fmt: skip
    print(f"{args.clock} time; freed memory: {keep_heap()}")
    print("| sparsity | firing | dense ms | lists ms | ratio | new lists ms | float64 difference "
          "| earlier ms | ratio | loss |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    whole = [0.0, 0.0, 0.0]
    rounds = [1 - 0.8**number for number in range(1, args.imp + 1)]
    for sparsity in rounds or args.sparsities:
        model, hook = build(args, sparsity)
        x, y = inputs(model, args.batch, args.cifar)
        fired = rates(model, x).values()
        hooks = copy.deepcopy(hook), copy.deepcopy(hook)
        steps: list[Callable[[], object]] = [
            stepper(copy.deepcopy(model), own, x, y, own is hooks[1]) for own in hooks
        ]
        steps.append(renewer(hooks[1]))
        gap = 0.0
        if args.before:
            run, gap = earlier(args, model, hook, x, y)
            steps.append(run)
        times: list[list[float]] = [[] for _ in steps]
        for turn in range(args.rounds + 1):
            for own, step in zip(times, steps, strict=True):
                begin = clock()
                took = step()
                if turn:
                    own.append(took if isinstance(took, float) else 1e3 * (clock() - begin))
        dense, lists, anew, *theirs = (statistics.median(own) for own in times)
        whole = [a + b for a, b in zip(whole, (dense, lists, *(theirs or [0.0])), strict=True)]
        past = f"{theirs[0]:.0f} | {theirs[0] / lists:.2f} | {gap:.1e}" if theirs else "| |"
        off = f"{check(args, sparsity):.1e}" if args.check else ""
        low, high = min(fired), max(fired)
        print(
            f"| {sparsity:.1%} | {low:.0%} to {high:.0%} | {dense:.0f} | {lists:.0f} "
            f"| {dense / lists:.2f} | {anew:.1f} | {off} | {past} |",
            flush=True,
        )
    told = f", of the earlier step {whole[2] / whole[1]:.2f}" if args.before else ""
    print(f"all together: {whole[0] / whole[1]:.2f}{told}")


if __name__ == "__main__":
    main()
