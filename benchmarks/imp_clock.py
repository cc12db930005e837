"""Time of a search by IMP or RigL with lists of the kept weights against the same one without.

python benchmarks/imp_clock.py FOLDER --turns 2     # FOLDER holds cifar-10-batches-py
python benchmarks/imp_clock.py FOLDER --rigl 0.9    # sparse from the first step

Both searches run in turn, as commands of their own (SPIKEFORMER_SPARSE=never and auto). Of each
round the best training rate over the turns is read from their logs, and the time of all rounds.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(
    r"^(?:\S+ )?(imp-\d+|retrain|sparse_training) epoch .* removed: [^%]* ([\d.]+) % .* "
    r"(\d+) images/s"
)
SETTINGS = (
    "--data.name cifar10 --model.T 4 "
    "--data.augment crop4_flip --data.mixup 0 --data.smoothing 0.1 --data.limit-test 100 "
    "--train.optim.lr 3e-3 --train.optim.warmup-epochs 0.5 --train.optim.weight-decay 0.02 "
)
IMP = "--imp.epochs 1 --imp.round-epochs 1 --epochs 1 --imp.rewind 1it --imp.fraction 0.2 "
IMP += "--imp.scope layer"


def search(args: argparse.Namespace, how: str, out: Path) -> dict[str, tuple[float, int]]:
    """{phase: (weights removed %, images/s)} of one search."""
    rigl = f"sparse_training_cifar --method rigl --sparsity {args.rigl} --epochs 3"
    words = rigl if args.rigl else f"imp_cifar {IMP} --imp.rounds {args.rounds}"
    command = [sys.executable, "-m", "spikeformer_lt", "run", *words.split(), *SETTINGS.split()]
    command += ["--data.root", str(args.data), "--data.limit-train", str(args.images)]
    command += ["--run.out", str(out)]
    command += ["--train.threads", str(args.threads), "--train.batch-size", str(args.batch)]
    width = args.embed_dim
    command += ["--model.embed-dim", str(width), "--model.num-heads", str(width // 32)]
    command += ["--model.depth", str(args.depth)]
    done = subprocess.run(
        command, env=os.environ | {"SPIKEFORMER_SPARSE": how}, capture_output=True, text=True,
        check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    found = (LINE.match(line) for line in (done.stdout + done.stderr).splitlines())
    rows = [(match[1], (float(match[2]), int(match[3]))) for match in found if match]
    return {f"{name} {at + 1}" if args.rigl else name: row for at, (name, row) in enumerate(rows)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--rigl", type=float, default=0.0, help="sparsity of RigL in IMP's place")
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--embed-dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    best: dict[str, dict[str, int]] = {"never": {}, "auto": {}}
    removed: dict[str, float] = {}
    for turn in range(args.turns):
        for how, rates in best.items():
            with TemporaryDirectory() as place:
                for phase, (share, rate) in search(args, how, Path(place) / "run").items():
                    removed[phase] = share
                    rates[phase] = max(rate, rates.get(phase, 0))
        print(f"turn {turn + 1} done", flush=True)
    print(
        "| phase | weights removed % | dense images/s | by lists | ratio |\n|---|---|---|---|---|"
    )
    for phase, share in removed.items():
        dense, lists = best["never"][phase], best["auto"][phase]
        print(f"| {phase} | {share:.1f} | {dense} | {lists} | {lists / dense:.2f} |")
    whole = [sum(args.images / rate for rate in rates.values()) for rates in best.values()]
    dense, lists = (round(seconds, 1) for seconds in whole)
    print(f"all {len(removed)} phases: {dense} and {lists} s, {dense / lists:.2f}x")


if __name__ == "__main__":
    main()
