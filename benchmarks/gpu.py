"""All that needs a GPU, within a given time: `make gpu`.

python3 benchmarks/gpu.py --minutes 9 --data /tmp/data
python3 benchmarks/gpu.py --pretend    # the same on a CPU, with tiny sizes

Runs, one after the other, the tests that are marked gpu, triton_clock.py, which writes the table of
the kernels that are faster there, peers.py on the GPU with that table, and the training of
Spikformer-4-384 on CIFAR-10, dense and then MultiSp. Each part has its share of the time that is
left. Training is stopped with SIGTERM, saves, and goes on in the next call; tests and comparisons
that passed are not repeated while the sources, torch and the device stay the same. Nothing is
installed or downloaded. Logs, tables and checkpoints are in the folder --out.

Exit status: 0 if no part failed, 1 if one did, 2 if torch finds no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("spikeformer_lt", "models", "datasets", "tests", "benchmarks")
GRACE_S = 20.0  # to save and end after SIGTERM; part of a share
LEAST_S = 10.0  # a part with less time than that is not started
PRETEND = ["--data.name=digits", "--data.limit-train=64", "--data.limit-test=40", "--train.cpu"]
PRETEND += ["--data.image-size=16", "--model.name=spikformer_toy", "--model.T=2"]
PRETEND_TRAINING_S = 60.0
PROBE = (
    "import torch; there = torch.cuda.is_available(); "
    "print(torch.__version__, torch.cuda.get_device_name() if there else 'cpu', sep='|')"
)


@dataclass(frozen=True)
class Part:
    """Arguments for Python, and how much of the time that is left they may take."""

    name: str  # of its log and of its folder
    command: list[str]
    share: float  # fraction of the time left when it starts, in (0, 1]
    resumes: bool = False  # saves on SIGTERM, exits with 143, and goes on in the next call
    skip: str = ""  # why it does not run; empty if it does


def plan(args: argparse.Namespace, passed: set[str]) -> list[Part]:
    """All parts in their order; `passed` names those that need no second run."""
    files = sorted(p.relative_to(ROOT) for p in (ROOT / "tests").rglob("test_*.py"))
    marked = [str(p) for p in files if "mark.gpu" in (ROOT / p).read_text("utf-8")]
    tests = ["-m", "pytest", "-m", "gpu", "-q", "-rs", *marked]
    peers = ["benchmarks/peers.py", "--size=cifar-4-384", "--batch=64", "--device=cuda"]
    if args.pretend:
        peers[1:] = ["--size=cifar-2-128", "--batch=2", "--rounds=1", "--no-memory"]
    table = args.out / "triton.json"
    kernels = ["benchmarks/triton_clock.py", f"--out={table}", *["--pretend"] * args.pretend]
    again = f"passed before with these sources; remove {args.out / 'passed.json'} to run it again"
    dense = ["recipes/sparse_training_cifar.py", "--method=random", "--sparsity=0"]
    multisp = ["recipes/multisp_cifar.py"]
    if args.pretend:
        dense, multisp = [*dense, "--epochs=9999"], [*multisp, "--multisp.epochs=9999"]
    return [
        Part("tests", tests, 0.25, skip=again if "tests" in passed else ""),
        Part("kernels", kernels, 0.2, skip=again if "kernels" in passed else ""),
        Part("peers", peers, 0.4, skip=again if "peers" in passed else ""),
        training("dense", dense, 0.5, args),
        training("multisp", multisp, 1.0, args),
    ]


def training(name: str, command: list[str], share: float, args: argparse.Namespace) -> Part:
    """A recipe that resumes; its run directory has the part's name."""
    folder, skip, workers = args.out / name, "", min(8, len(os.sched_getaffinity(0)) - 1)
    data = ["--data.name=cifar10", f"--data.root={args.data}", f"--train.workers={workers}"]
    files = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
    if not args.pretend and not any((args.data / file).exists() for file in files):
        skip = f"no CIFAR-10: neither {' nor '.join(files)} in {args.data}"
    if (folder / "report.json").exists():
        skip = f"finished: {folder / 'report.json'}"
    resume = [f"--run.out={folder}", "--run.resume=auto"]
    resume += ["--run.allow-config-change", "train.workers", "data.root"]
    command = [*command, *(PRETEND if args.pretend else data), *resume]
    return Part(name, command, share, resumes=True, skip=skip)


def environment(out: Path) -> dict[str, str]:
    """The caller's, offline; the path leads to this package, not to the root's models, datasets."""
    home = out / "path"
    home.mkdir(parents=True, exist_ok=True)
    (home / "spikeformer_lt").unlink(missing_ok=True)
    (home / "spikeformer_lt").symlink_to(ROOT / "spikeformer_lt")
    given = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    kept = [p for p in given if Path(p).resolve() != ROOT]
    own = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join([str(home), *kept])}


def run(part: Part, seconds: float, out: Path, env: dict[str, str], grace: float = GRACE_S) -> str:
    """Run a part for `seconds` at most, show and log what it prints; done, saved or failed."""
    begin, grace = time.monotonic(), min(grace, seconds / 3)
    with open(out / f"{part.name}.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, env=env, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        reader = threading.Thread(target=copy_lines, args=(process.stdout, log))
        reader.start()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds - grace)
        finally:  # also when this process is told to stop
            late = process.poll() is None
            end(process, grace * 0.8)
            reader.join(grace * 0.2)
    took, code = f"{time.monotonic() - begin:.0f} s", process.returncode
    if code == 0:
        return f"done in {took}"
    if late and part.resumes and code == 128 + signal.SIGTERM:
        return f"saved after {took}, goes on in the next call"
    return f"failed: not done in {took}" if late else f"failed: exit status {code} after {took}"


def end(process: subprocess.Popen[str], grace: float) -> None:
    """Ask a process to stop, wait, and end it with all that it started."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def copy_lines(source: IO[str], log: IO[str]) -> None:
    """Show and keep each line as it comes."""
    for line in source:
        for target in (sys.stdout, log):
            target.write(line)
            target.flush()


def fingerprint(about: str) -> str:
    """Hash of the Python sources and of `about`."""
    digest = hashlib.sha256(about.encode())
    for path in sorted(p for folder in SOURCES for p in (ROOT / folder).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Run all parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--data", type=Path, default=Path("/tmp/data"), help="CIFAR-10's folder")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="logs and runs")
    parser.add_argument("--pretend", action="store_true", help="tiny sizes on a CPU")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    args.out, args.data = args.out.resolve(), args.data.resolve()
    env = environment(args.out)
    probe = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True)
    about = probe.stdout.strip()
    if not about or (about.endswith("|cpu") and not args.pretend):
        why = "torch sees no CUDA device" if about else probe.stderr.strip()
        print(f"error: {why}; --pretend goes through all parts on a CPU", file=sys.stderr)
        return 2
    print(f"torch {about.replace('|', ' on ')}, {args.minutes:g} minutes, results in {args.out}")
    sources, store = fingerprint(f"{about} {args.pretend}"), args.out / "passed.json"
    kept = json.loads(store.read_text()) if store.exists() else {}
    passed = {name for name, digest in kept.items() if digest == sources}
    outcomes = {}
    for part in plan(args, passed):
        seconds = (deadline - time.monotonic()) * part.share
        if args.pretend and part.resumes:
            seconds = min(seconds, PRETEND_TRAINING_S)
        if part.skip or seconds < LEAST_S:
            outcomes[part.name] = f"skipped: {part.skip or f'{seconds:.0f} s left for it'}"
        else:
            table = not args.pretend and part.name != "tests" and kept.get("kernels") == sources
            if table and (args.out / "triton.json").exists():
                env["SPIKEFORMER_TRITON"] = str(args.out / "triton.json")
            print(f"\n== {part.name}, {seconds:.0f} s: {' '.join(part.command)}", flush=True)
            outcomes[part.name] = run(part, seconds, args.out, env)
            if outcomes[part.name].startswith("done") and not part.resumes:
                kept[part.name] = sources
                new = store.with_suffix(".tmp")
                new.write_text(json.dumps(kept))
                new.replace(store)
        print(f"== {part.name} {outcomes[part.name]}", flush=True)
    print("\n" + "\n".join(f"{name:8} {outcome}" for name, outcome in outcomes.items()))
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
