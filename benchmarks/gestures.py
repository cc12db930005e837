"""DVS128 Gesture's whole path on simulated files: write, check, train, evaluate, export, stream.

python benchmarks/gestures.py --out docs/results/moving-gestures/files
python benchmarks/gestures.py --out /tmp/g --limit-train 44 --limit-test 22 --epochs 1   # a try

The gestures are simulated (`moving_gestures`), 128x128, in the original's AEDAT 3.1 files; commands
are those that a user types. Frames are 16 windows of 80 ms, which a stream can count as they come.
Written are commands and what they said (README.md), the run's report, epochs and confusion matrix.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from spikeformer_lt import create_dataset, load_exported
from spikeformer_lt.datasets.dvs128_gesture import CLASSES
from spikeformer_lt.events import EventOptions
from spikeformer_lt.export import EventStream

ROOT = Path(__file__).resolve().parents[1]
T, WINDOW_US = 16, 80_000
TRAIN = (
    f"--model.T {T} --data.by time_window --data.window-us {WINDOW_US} "
    "--data.augment moving_digits --data.mixup 0 --data.smoothing 0 --train.batch-size 16 "
    "--train.optim.lr 5e-3 --train.optim.weight-decay 0.01 --train.optim.warmup-epochs 1 "
    "--multisp.patches.sparsity 0 --train.cpu"
)
HEAD = """# Simulated gestures in the files of DVS128 Gesture

Simulated recordings, no camera and no people: no results on DVS128 Gesture. Made by
`python benchmarks/gestures.py`; what each command said last:
"""


class Session:
    """Commands as typed, and what they said."""

    def __init__(self, home: Path) -> None:
        self.home, self.lines = home, [HEAD]

    def run(self, line: str, last: int = 4) -> None:
        """Run a command and keep its last lines; where it fails, end."""
        begin = time.perf_counter()
        words = shlex.split(line)
        own = {
            "python": [sys.executable, "-P"],
            "spikeformer-lt": [sys.executable, "-P", "-m", "spikeformer_lt"],
        }
        ended = subprocess.run(
            [*own[words[0]], *words[1:]], cwd=self.home, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        said = ended.stdout.strip().splitlines()[-last:]
        told = f"$ {line}\n" + "\n".join(said) + f"\n[{time.perf_counter() - begin:.0f} s]"
        print(told, flush=True)
        if ended.returncode and " check " not in line:  # 1: with faults, or too few recordings
            sys.exit(f"exit {ended.returncode}")
        self.lines.append(f"```\n{told}\n```\n")


def stream(home: Path, limit: int | None) -> str:
    """Push the test's recordings in pieces of 5 ms; compare the last decision with `predict`."""
    net = load_exported(home / "exported")
    options = EventOptions(T=T, by="time_window", window_us=WINDOW_US, cache="none")
    test = create_dataset(
        "simulated_gestures", root=str(home / "g"), events=options, limit_test=limit
    ).test
    right = same = 0
    latency: list[float] = []
    stream = EventStream(net)
    for index in range(len(test)):
        events, _ = test.events(index)
        stream.reset()
        last = None
        cuts = range(int(events["t_us"][0]), int(events["t_us"][-1]) + 1, 5000)
        pieces = [events[(events["t_us"] >= t) & (events["t_us"] < t + 5000)] for t in cuts]
        for decision in [d for piece in pieces for d in stream.push(piece)] + stream.close():
            latency.append(decision.latency_ms)
            last = last if last is not None and last.step == T else decision
        whole = net.predict(events)
        whole = whole[0] if isinstance(whole, list) else whole
        assert last is not None and last.prediction is not None
        right += last.prediction.label == int(test.labels[index])
        same += last.prediction.label == whole.label
    return (
        f"{len(test)} test recordings as streams: {right} right, {same} decided as by `predict`; "
        f"latency of a window {statistics.median(latency):.1f} ms (median of {len(latency)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--home", type=Path, help="folder of files and runs; default: for this run")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--embed-dim", type=int, default=32)
    parser.add_argument("--options", default="", help="more options of the training")
    parser.add_argument("--limit-train", type=int, help="gestures that are written")
    parser.add_argument("--limit-test", type=int, help="gestures that are written")
    args = parser.parse_args()
    limits = [f" --limit-{p} {n}" for p in ("train", "test") if (n := getattr(args, f"limit_{p}"))]
    with tempfile.TemporaryDirectory() as place:
        home = args.home or Path(place)
        home.mkdir(parents=True, exist_ok=True)
        path = Session(home.resolve())
        if not (home / "g").exists():
            path.run(f"spikeformer-lt events write g{''.join(limits)}", 1)
        incomplete = " --data.incomplete report" if limits else ""
        path.run("spikeformer-lt events check g --data dvs128_gesture", 12)
        data = f"--data.name dvs128_gesture --data.root g{incomplete}"
        size = (
            f"--model.embed-dim {args.embed_dim} --model.num-heads 4 --multisp.epochs {args.epochs}"
        )
        path.run(f"spikeformer-lt run multisp_dvs128 {data} {size} {TRAIN} --run.out run "
                 f"--run.resume auto {args.options}".strip(), 14)  # fmt: skip
        path.run(f"spikeformer-lt evaluate --run run {data} --cpu", 8)
        path.run(f"spikeformer-lt evaluate --run run {data} --cpu --data.shuffle-time", 8)
        path.run("spikeformer-lt export --run run --out exported --overwrite", 6)
        said = stream(home, args.limit_test)
        print(said)
        report = json.loads((home / "run" / "report.json").read_text())
        args.out.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "summary.csv"):
            shutil.copy(home / "run" / name, args.out)
        rows = ["true \\ predicted," + ",".join(CLASSES)]
        rows += [
            f"{name},{','.join(map(str, row))}"
            for name, row in zip(CLASSES, report["confusion"], strict=True)
        ]
        (args.out / "confusion.csv").write_text("\n".join([*rows, ""]))
        (args.out / "README.md").write_text("\n".join([*path.lines, said, ""]))


if __name__ == "__main__":
    main()
