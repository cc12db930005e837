"""Ours against spikingjelly 2.0's own Spikformer, or against the original formulation.

OMP_NUM_THREADS=2 python benchmarks/peers.py
OMP_NUM_THREADS=2 python benchmarks/peers.py --size cifar-4-384 --batch 16
OMP_NUM_THREADS=2 python benchmarks/peers.py --size dvs-2-256 --batch 2 --rounds 5
OMP_NUM_THREADS=2 python benchmarks/peers.py --size cifar-4-384 --published-stem --phases train
python benchmarks/peers.py --size cifar-4-384 --batch 64 --device cuda

All variants run in turn, round after round, so that a busy machine slows them alike; an inference
that is timed follows one that is not, so that no network pays for the caches of the one before it.
Figures are medians, ratios are to spikingjelly's dense network, above 1 is better. With
--published-stem the network has the published stem and biases, and the first of the table is the
same network computed as in the published code (original.py). A training step is forward, backward
and AdamW, for MultiSp with the new masks that it takes before each step. MultiSp removes patches
and half of the binary ConvPEP weights; its tickets are exported, loaded back and run as
`load_exported` gives them.
Weights are random, with BatchNorm set so that every layer fires.

Checked in the same run, in float64: our dense network gives the other's logits, loss and gradients
with its weights (and, of the original formulation, every spike), and each exported ticket those of
the network that was trained. Peak memory is that of a fresh process, or on a GPU of torch's
allocator, above what was held before the first step; "saved" are the bytes that autograd keeps for
the backward pass. Freed memory is kept for the next step, for all variants alike
(SPIKEFORMER_HEAP=system leaves it to the system).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import safetensors.torch
import torch
from torch import Tensor, nn

from spikeformer_lt import Mask, Ticket, create_model, load_exported
from spikeformer_lt.export import export_ticket
from spikeformer_lt.export.api import size_table
from spikeformer_lt.export.inference import CompactModel, compact
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, BatchNorm
from spikeformer_lt.layers.patches import PatchSelect, make_score
from spikeformer_lt.layers.subnet import SubnetConv2d, collapse, get_masks, rankings, set_masks
from spikeformer_lt.runtime import keep_heap

sys.path.append(str(Path(__file__).parent))  # `python -P`, as `make gpu` runs it, leaves it out
from multisp_step import settle

IMAGE: dict[str, Any] = {"T": 4, "image_size": 32, "in_channels": 3, "attn_scale": 0.125}
EVENT: dict[str, Any] = {"T": 16, "image_size": 128, "in_channels": 2, "attn_scale": 0.125}
EVENT["pools"] = (True, True, True, True)
SIZES: dict[str, dict[str, Any]] = {
    "cifar-2-128": {**IMAGE, "embed_dim": 128, "depth": 2, "num_heads": 4},
    "cifar-4-256": {**IMAGE, "embed_dim": 256, "depth": 4, "num_heads": 8},
    "cifar-4-384": {**IMAGE, "embed_dim": 384, "depth": 4, "num_heads": 12},
    "dvs-2-128": {**EVENT, "embed_dim": 128, "depth": 2, "num_heads": 8},
    "dvs-2-256": {**EVENT, "embed_dim": 256, "depth": 2, "num_heads": 16},
}
BATCHES = {"cifar-4-384": 8, "cifar-4-256": 8, "dvs-2-256": 2}
"""What is measured if nothing else is asked for, with samples a step."""
PEER, ORIGINAL, DENSE = "spikingjelly dense", "original dense", "ours dense"
OURS = (DENSE, "MultiSp lif", "MultiSp heaviside")


def first(args: argparse.Namespace) -> str:
    """The variant that the others are compared with."""
    return ORIGINAL if args.published_stem else PEER


def variants(args: argparse.Namespace) -> tuple[str, ...]:
    """All of them, the one to compare with first."""
    return first(args), *OURS


def stem(args: argparse.Namespace) -> dict[str, Any]:
    """Options in which spikingjelly's own Spikformer differs from the published one."""
    if args.published_stem:
        return {}
    return {"pool_before_act": True, "linear_bias": False, "qkv_bias": False}


def ours(args: argparse.Namespace, activation: str = "lif", sparse: bool = False) -> Any:
    """A Spikformer of ours with seeded weights; spikingjelly's pools before the LIF, as here."""
    torch.manual_seed(0)
    options = {**SIZES[args.size], **stem(args), "activation": activation}
    model: Any = create_model("spikformer_cifar", **options)
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            products = name.endswith(("q.norm", "k.norm", "v.norm"))
            nn.init.constant_(module.weight, 1.4)
            nn.init.constant_(module.bias, 0.7 if products else 0.35)
    if sparse:
        for i, (_, unit) in enumerate(model.conv_pep.units()):
            binary = i > 0 or model.in_channels == 2
            unit.conv = SubnetConv2d(unit.conv, "weights", binary=binary)
        update_masks(model, args)
        score = make_score("rate", model.embed_dim, model.num_classes, model.num_heads)
        model.set_patch(PatchSelect(score, args.patch_sparsity))
    settle(model, inputs(args, 4))
    return model.to(args.device)


def update_masks(model: Any, args: argparse.Namespace) -> None:
    """Keep the largest weights of each ConvPEP layer, as the search does before a step."""
    set_masks(model, Mask.from_scores(rankings(model), args.weight_sparsity, scope="layer"))


def peer(args: argparse.Namespace) -> Any:
    """Their own Spikformer with the weights of our dense one, logits time first."""
    from spikingjelly.activation_based.model.spikformer import Spikformer

    own, size = ours(args), SIZES[args.size]
    theirs = Spikformer(
        T=size["T"], in_channels=size["in_channels"], img_size_h=size["image_size"],
        img_size_w=size["image_size"], patch_size=own.conv_pep.stride, num_classes=own.num_classes,
        embed_dims=size["embed_dim"], num_heads=size["num_heads"], depths=size["depth"],
    )  # fmt: skip
    theirs.load_state_dict(translated(own))
    return theirs.to(args.device)


def translated(model: Any) -> dict[str, Tensor]:
    """Our weights under spikingjelly's names."""
    source = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    target = {name: tensor for name, tensor in source.items() if name.startswith("head.")}

    def put(name: str, *units: str, linear: bool = True) -> None:
        parts = [source[f"{unit}.{'linear' if linear else 'conv'}.weight"] for unit in units]
        target[f"{name}.0.weight"] = torch.cat(parts)[..., None] if linear else parts[0]
        for key in ("weight", "bias", "running_mean", "running_var"):
            target[f"{name}.1.{key}"] = torch.cat([source[f"{u}.norm.{key}"] for u in units])
        target[f"{name}.1.num_batches_tracked"] = source[f"{units[0]}.norm.num_batches_tracked"]

    for i in range(4):
        put(f"patch_embed.stages.{i}.conv_bn.block", f"conv_pep.stages.{i}", linear=False)
    put("patch_embed.positional_encoding.conv_bn.block", "conv_pep.rpe", linear=False)
    for i in range(len(model.blocks)):
        attn, mlp = f"blocks.{i}.attn", f"blocks.{i}.mlp"
        put(f"{attn}.qkv_conv_bn", *(f"{attn}.{part}" for part in "qkv"))
        put(f"{attn}.proj_conv_bn", f"{attn}.proj")
        put(f"{mlp}.fc1", f"{mlp}.fc1")
        put(f"{mlp}.fc2", f"{mlp}.fc2")
    return target


def inputs(args: argparse.Namespace, batch: int) -> Tensor:
    """Seeded images ``[B, 3, H, W]`` or event counts ``[B, T, 2, H, W]``."""
    size = SIZES[args.size]
    generator = torch.Generator().manual_seed(1)
    side = (size["in_channels"], size["image_size"], size["image_size"])
    if size["in_channels"] == 3:
        return torch.rand(batch, *side, generator=generator)
    return torch.poisson(torch.full((batch, size["T"], *side), 0.3), generator=generator)


def variant(name: str, args: argparse.Namespace) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    """A network and how to run it to logits ``[B, T, K]``."""
    if name == ORIGINAL:
        sys.path.append(str(Path(__file__).parent))
        from original import Original, published_lif

        own = [published_lif(args.old_spikingjelly)] if args.old_spikingjelly else []
        return Original(ours(args), *own), lambda net, x: net(x)
    if name != PEER:
        activation = name.split()[-1]
        model = ours(args) if name == DENSE else ours(args, activation, sparse=True)
        return model, lambda net, x: net(x)
    from spikingjelly.activation_based import functional

    def run(net: Any, x: Tensor) -> Tensor:
        functional.reset_net(net)
        return net(x if x.ndim == 4 else x.transpose(0, 1)).transpose(0, 1)

    return peer(args), run


def steps(name: str, phase: str, args: argparse.Namespace, folder: Path) -> Callable[[], None]:
    """One training step, or one inference, of a variant."""
    model, run = variant(name, args)
    x = inputs(args, args.batch).to(args.device)
    if phase == "infer":
        model.eval()
        if "MultiSp" in name:
            path = folder / name.split()[-1]
            if not path.exists():
                export(model, args, path)
            model = load_exported(path).to(args.device)
        elif args.compact_dense and name == DENSE:
            model = compact(model)
        if args.replay and isinstance(model, CompactModel):
            replay = model.graphed(x)
            run = lambda _, x: replay(x)  # noqa: E731

        def infer() -> None:
            with torch.no_grad():
                run(model, x)
            synchronize(args)

        return infer
    y = torch.arange(args.batch, device=args.device) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        if "MultiSp" in name:
            update_masks(model, args)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(run(model, x).mean(1), y).backward()
        optimizer.step()
        synchronize(args)

    return step


def export(model: Any, args: argparse.Namespace, path: Path) -> Any:
    """Collapse, pack, verify and write a ticket of the network; the network itself is kept."""
    mask = get_masks(model)
    done = collapse(model).cpu()
    patches = {"score": "rate", "sparsity": args.patch_sparsity, "space": "token"}
    level3 = {"kind": model.conv_pep.activation, "residual": model.conv_pep.residual}
    config = {"activation": level3, "patches": {**patches, "rescale": False}}
    known = {"name": "spikformer_cifar", "args": {**SIZES[args.size], **stem(args)}}
    ticket = Ticket.of(done, mask, {"search": "multisp", "config": config, "model": known})
    return export_ticket(ticket, path, precision=args.precision, images=inputs(args, 2))


def synchronize(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], None]) -> float:
    """Wall-clock milliseconds of one call."""
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def peak_mb(run: Callable[[], None], args: argparse.Namespace) -> float:
    """Megabytes that the second call needs above what is held before the first."""
    if args.device == "cuda":
        gc.collect()  # what earlier variants left in cycles
        torch.cuda.synchronize()
        base = torch.cuda.memory_allocated()
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - base) / 1e6
    base = _status("VmRSS")
    run()
    run()
    return (_status("VmHWM") - base) / 1e3


def saved_mb(run: Callable[[], None]) -> float:
    """Megabytes of all memory that autograd keeps in one call, each counted once."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(kept.values()) / 1e6


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1])  # kB


def measured_apart(name: str, phase: str, folder: Path, argv: list[str]) -> float:
    """Peak memory of a variant in a process of its own."""
    command = [sys.executable, __file__, *argv, "--child", f"{name}:{phase}:{folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def check(args: argparse.Namespace, folder: Path) -> None:
    """Print how far the variants are from each other in float64; stop where they are not equal."""
    compare_training(args)
    compare_float32(args)
    for name in OURS[1:]:
        model = variant(name, args)[0].eval()
        done = export(model, args, folder / name.split()[-1])
        found = done.check
        print(
            f"float64, exported {name}: logits within {found.compact_gap_float64:.1e} of the "
            f"network that was trained; float32: {found.compact_gap_float32:.1e} of "
            f"{found.logit_scale:.2f}, same class {100 * found.same_class:.0f} %"
        )
        print(size_table(done.sizes))


def compare_training(args: argparse.Namespace) -> None:
    """One forward and backward pass in float64, on the CPU, by the kernels of the float32 path."""
    found = []
    x = inputs(args, 2).double().requires_grad_()
    for name in (DENSE, first(args)):
        with kernels_by(os.environ.get("SPIKEFORMER_KERNELS", "numba")):
            model, run = variant(name, args)
            model.cpu().double().train()
            spikes: dict[str, Tensor] = {}
            if name == ORIGINAL:
                model.spikes = spikes
            elif name == DENSE:
                watch(model, spikes)
            logits = run(model, x)
            loss = nn.functional.cross_entropy(logits.mean(1), torch.arange(2))
            own = [p for p in model.parameters() if p.requires_grad]
            (gx, *grads) = torch.autograd.grad(loss, [x, *own])
        found.append((logits.detach(), gx, grads, spikes))
    (mine, gx, grads, spikes), (other, gx2, grads2, spikes2) = found
    pairs = [(gx, gx2)] if first(args) == PEER else [(gx, gx2), *zip(grads, grads2, strict=True)]
    scale = max(float(b.abs().max()) for _, b in pairs)
    gap = float((mine - other).abs().max())
    slope = max(float((a - b).abs().max()) for a, b in pairs) / scale
    print(
        f"float64, training, {DENSE} against {first(args)}: logits within {gap:.1e} of "
        f"{mine.abs().max():.2f}, gradients "
        f"({'of the input' if len(pairs) == 1 else 'all'}) within {slope:.1e} of the largest"
    )
    differ = sum(_differ(spikes[k], spikes2[k]) for k in spikes2)
    if spikes2:
        rates = [float(s.mean()) for s in spikes.values()]
        print(
            f"{differ} of {sum(s.numel() for s in spikes.values()):,} spikes differ; "
            f"firing rates {min(rates):.2f} to {max(rates):.2f}"
        )
    if gap > 1e-9 or slope > 1e-9 or differ or (spikes2 and set(spikes) != set(spikes2)):
        raise SystemExit("the dense networks are not the same")


def watch(model: nn.Module, spikes: dict[str, Tensor]) -> None:
    """Keep what the LIF neurons of a network put out, by their names."""
    for place, neuron in model.named_modules():
        if isinstance(neuron, LIF):
            neuron.register_forward_hook(_Keep(place, spikes))


@contextmanager
def kernels_by(mode: str) -> Iterator[None]:
    """Run with SPIKEFORMER_KERNELS at `mode`, and leave it as it was."""
    before = dispatch.mode()
    dispatch.set_mode(mode)
    try:
        yield
    finally:
        dispatch.set_mode(before)


def compare_float32(args: argparse.Namespace) -> None:
    """Print how many spikes of our dense network float32 changes, by the kernels and by torch."""
    x, found = inputs(args, 2), []
    single = torch.float32
    for mode, dtype in (("torch", torch.float64), ("torch", single), ("auto", single)):
        spikes: dict[str, Tensor] = {}
        with kernels_by(mode), torch.no_grad():
            model, run = variant(DENSE, args)
            model.cpu().to(dtype).train()
            watch(model, spikes)
            run(model, x.to(dtype))
        found.append({place: s.bool() for place, s in spikes.items()})
    exact, *others = found
    for name, other in zip(("torch", "the kernels"), others, strict=True):
        stem = [p for p in exact if p.startswith("conv_pep")]
        shares = {p: float((exact[p] != other[p]).float().mean()) for p in exact}
        print(
            f"float32, training, by {name}: {max(shares[p] for p in stem):.1e} of the spikes of a "
            f"ConvPEP layer differ from float64's at most, {max(shares.values()):.1e} of any layer"
        )


class _Keep:
    """A forward hook that keeps a neuron's output and leaves its fused path in place."""

    observes_output = True

    def __init__(self, name: str, spikes: dict[str, Tensor]) -> None:
        self.name, self.spikes = name, spikes

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.spikes[self.name] = out.detach()


def _differ(ours: Tensor, theirs: Tensor) -> int:
    """How many spikes differ; maps of the published code are [T, B, C, H, W]."""
    rows = theirs.permute(0, 1, 3, 4, 2) if theirs.ndim == 5 else theirs
    return int((ours != rows).sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", default=",".join(BATCHES), help=f"of {', '.join(SIZES)}; several with commas"
    )
    parser.add_argument("--batch", type=int, help="samples a step; a default for each size")
    parser.add_argument("--rounds", type=int, default=7, help="times each variant is measured")
    parser.add_argument("--phases", default="train,infer", help="train, infer or both")
    parser.add_argument("--patch-sparsity", type=float, default=0.314, help="tokens gone")
    parser.add_argument("--weight-sparsity", type=float, default=0.5, help="ConvPEP weights gone")
    parser.add_argument("--precision", default="fp32", help="of the file: fp32, fp16 or bf16")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--published-stem", action="store_true", help="against the original formulation"
    )
    parser.add_argument(
        "--old-spikingjelly", type=Path, help="folder of 0.0.0.0.12, for the original's neurons"
    )
    parser.add_argument("--replay", action="store_true", help="replay compact networks: `graphed`")
    parser.add_argument("--compact-dense", action="store_true", help="run ours dense compact too")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:  # with memory given back, so that what building took is not held at the start
        name, phase, where = args.child.split(":", 2)
        print(peak_mb(steps(name, phase, args, Path(where)), args))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here")
    for size in args.size.split(","):
        if size not in SIZES:
            raise SystemExit(f"--size {size}: it must be of {', '.join(SIZES)}")
    for size in args.size.split(","):
        batch = args.batch or BATCHES.get(size, 8)
        compare(argparse.Namespace(**{**vars(args), "size": size, "batch": batch}))


def compare(args: argparse.Namespace) -> None:
    """Measure one size and print its table."""
    heap = keep_heap()
    print(
        f"{args.size} batch={args.batch} {args.device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, spikingjelly {version('spikingjelly')}, {platform.machine()}, "
        f"freed memory: {heap}, OpenMP: {spikeformer_lt.OPENMP}"
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        check(args, folder)
        phases = args.phases.split(",")
        table: dict[str, dict[str, float]] = {name: {} for name in variants(args)}
        for phase in phases:
            runs = {name: steps(name, phase, args, folder) for name in variants(args)}
            times: dict[str, list[float]] = {name: [] for name in variants(args)}
            for round_ in range(args.rounds + 2):
                for name, run in runs.items():
                    if phase == "infer":  # find the caches as its own last call left them
                        run()
                    spent = timed(run)
                    if round_ >= 2:  # the first two compile kernels and warm caches
                        times[name].append(spent)
            del runs, run
            for name in variants(args):
                if phase == "train":
                    table[name]["saved MB"] = saved_mb(steps(name, phase, args, folder))
                table[name][f"{phase} ms"] = statistics.median(times[name])
                if not args.no_memory:
                    own = [*sys.argv[1:], "--size", args.size, "--batch", str(args.batch)]
                    table[name][f"{phase} MB"] = (
                        peak_mb(steps(name, phase, args, folder), args)
                        if args.device == "cuda"  # counted by the allocator, not by the process
                        else measured_apart(name, phase, folder, own)
                    )
        for name in variants(args):
            path = folder / name.split()[-1]
            if "MultiSp" in name:
                table[name]["file kB"] = sum(f.stat().st_size for f in path.iterdir()) / 1e3
            else:
                state = variant(name, args)[0].state_dict()
                table[name]["file kB"] = len(safetensors.torch.save(state)) / 1e3
    columns = list(table[first(args)])
    print(f"\n{'':20}" + "".join(f"{column:>12}{'ratio':>8}" for column in columns))
    for name, row in table.items():
        cells = "".join(f"{row[c]:>12,.1f}{table[first(args)][c] / row[c]:>7.2f}x" for c in columns)
        print(f"{name:20}{cells}")
    print(
        f"\nmedians of {args.rounds} interleaved rounds; MultiSp is the exported ticket in infer\n"
    )


if __name__ == "__main__":
    main()
