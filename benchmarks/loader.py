"""Reading pictures from files: images/s of one core, start of an epoch and memory against peers.

python benchmarks/loader.py                                # 2,000 JPEGs of 500 x 375, minutes
python benchmarks/loader.py --pictures 100000 --train      # and 20 steps, a kill, a resume
python benchmarks/loader.py --small                        # images of CIFAR's size, a minute

Random resized crops to 224 pixels, flips and normalisation by our loader, timm's and torchvision's,
in one process on one thread, all in turn, by seconds of the processor; with --deit RandAugment and
erasing, too, which torchvision's loader is not given. `start` is the time from asking for an epoch
to its first batch of 8, with 2 workers, for the first epoch of 600 pictures and the median of those
after it, each taken whole, and for epochs of all pictures behind the end of another. Memory is the
share of its own (PSS) of a process and its 2 workers after 60 batches of all pictures, as the only
rank and as one of two.

--small times crop and flip of images in memory: whole batches, as the loader takes them, and image
by image, as it takes them with further augmentations.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm.data
import torch
import torchvision
from PIL import Image

from spikeformer_lt import create_dataset
from spikeformer_lt.images import ArrayImages, Augment, train_loader
from spikeformer_lt.images.augment import TrainTransform, _posterize
from spikeformer_lt.images.loader import Workers

ROOT = Path(__file__).resolve().parents[1]
SIZE, CLASSES = 224, 100
CROP = Augment(resized_crop=0.08, hflip=0.5)
Epoch = Callable[[int], Iterator[Any]]


def make(root: Path, count: int) -> None:
    """Write `count` pictures to train on, two for each hundred to test, of 64 contents."""
    draw = np.random.default_rng(0)
    contents = []
    for _ in range(64):
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noise = draw.integers(-12, 13, smooth.shape)
        out = io.BytesIO()
        Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(out, "JPEG")
        contents.append(out.getvalue())
    for part, number in (("train", count), ("val", max(CLASSES, count // 50))):
        for i in range(number):
            folder = root / "imagenet" / part / f"n{i % CLASSES:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.JPEG").write_bytes(contents[i % 64])


def ours(root: Path, augment: Augment, batch: int, workers: int) -> Epoch:
    data = create_dataset("imagenet", root=str(root)).train
    kept = Workers(until=1_000) if workers else None

    def epoch(number: int) -> Iterator[Any]:
        how: Any = {"workers": workers, "kept": kept}
        return iter(train_loader(data, augment, batch, 0, number, **how))

    return epoch


def of_timm(root: Path, augment: Augment, batch: int, workers: int) -> Epoch:
    data = timm.data.create_dataset("", root / "imagenet" / "train")
    name = augment.auto_augment or None
    loader = timm.data.create_loader(
        data, (3, SIZE, SIZE), batch, is_training=True, use_prefetcher=False, num_workers=workers,
        re_prob=augment.erasing, auto_augment=name, color_jitter=None, interpolation="bicubic",
        persistent_workers=workers > 0,
    )  # fmt: skip
    for step in data.transform.transforms:
        for op in getattr(step, "ops", ()):
            if op.name.startswith("Posterize"):  # timm's asks Pillow for 0 bits, which it refuses
                op.aug_fn = _posterize
    return lambda number: iter(loader)


def of_torchvision(root: Path, augment: Augment, batch: int, workers: int) -> Epoch:
    from torchvision.transforms import v2 as to

    bicubic = to.InterpolationMode.BICUBIC
    steps = [to.RandomResizedCrop(SIZE, interpolation=bicubic), to.RandomHorizontalFlip()]
    steps += [to.PILToTensor(), to.ToDtype(torch.float32, scale=True)]
    steps += [to.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    data = torchvision.datasets.ImageFolder(root / "imagenet" / "train", to.Compose(steps))
    loader = torch.utils.data.DataLoader(
        data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda number: iter(loader)


KINDS = {"ours": ours, "timm": of_timm, "torchvision": of_torchvision}


def speeds(root: Path, augment: Augment, rounds: int) -> None:
    """Images a second of the processor: medians over rounds of 64, all loaders in turn."""
    names = [name for name in KINDS if name != "torchvision" or not augment.auto_augment]
    passes = {name: KINDS[name](root, augment, 32, 0)(0) for name in names}
    for waiting in passes.values():
        next(waiting)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, waiting in passes.items():
            begin = time.process_time()
            next(waiting), next(waiting)
            found[name].append(64 / (time.process_time() - begin))
    medians = {name: statistics.median(each) for name, each in found.items()}
    what = "DeiT's augmentation" if augment.auto_augment else "crops and flips"
    told = ", ".join(f"{name} {speed:.0f}" for name, speed in medians.items())
    best = max(speed for name, speed in medians.items() if name != "ours")
    spread = " to ".join(f"{speed:.0f}" for speed in (min(found["ours"]), max(found["ours"])))
    ratio = f"ours ({spread}) {medians['ours'] / best:.2f}x the best peer"
    print(f"{what}: images/s of a core: {told}; {ratio}", flush=True)


def small(rounds: int, count: int = 4096) -> None:
    """Processor microseconds of a 32x32 image: crop and flip of batches, and image by image."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    labels, half = torch.zeros(count, dtype=torch.int64), (0.5, 0.5, 0.5)
    data = ArrayImages("small", images, labels, num_classes=CLASSES, mean=half, std=half)
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds + 1):
        for at_once, spans in found.items():
            with mock.patch.object(TrainTransform, "shifts_alone", at_once):
                begin = time.process_time()
                for _ in train_loader(data, Augment.standard("crop4_flip"), 128, 0, 0):
                    pass
                spans.append(1e6 * (time.process_time() - begin) / count)
    batches, single = (statistics.median(spans[1:]) for spans in found.values())
    told = f"batches {batches:.1f} us an image, image by image {single:.1f}"
    print(f"crop and flip: {told}: {single / batches:.2f}x as fast")


def starts(root: Path, epochs: int) -> None:
    """Time to the first batch of each epoch."""
    for name, kind in KINDS.items():
        epoch, found = kind(root, CROP, 8, 2), []
        for number in range(epochs):
            begin = time.perf_counter()
            waiting = epoch(number)
            next(waiting)
            found.append(1e3 * (time.perf_counter() - begin))
            for _ in waiting:
                pass
        first, later = found[0], sorted(found[1:])
        told = f"{statistics.median(later):.0f} ms ({later[0]:.0f} to {later[-1]:.0f})"
        print(f"{name}: start of an epoch {first:.0f} ms, later {told}")


def large_starts(root: Path, epochs: int) -> None:
    """Time to the first batch of an epoch of all pictures, after the last 60 batches of another."""
    data, kept, found = create_dataset("imagenet", root=str(root)).train, Workers(until=1000), []

    def epoch(number: int, first: int = 0) -> Iterator[Any]:
        how: Any = {"workers": 2, "kept": kept, "start_step": first}
        return iter(train_loader(data, CROP, 8, 0, number, **how))

    for number in range(epochs):
        for _ in epoch(2 * number, max(0, len(data) // 8 - 60)):
            pass
        begin = time.perf_counter()
        next(epoch(2 * number + 1))
        found.append(1e3 * (time.perf_counter() - begin))
    kept.close()
    told = f"{statistics.median(found):.0f} ms ({min(found):.0f} to {max(found):.0f})"
    print(f"ours: start of an epoch of {len(data)} pictures behind another one {told}")


def memory(root: Path, rank: int = 0, world: int = 1) -> Iterator[str]:
    """What a process and its workers hold of a large set: first a word when they hold it."""
    data, kept = create_dataset("imagenet", root=str(root)).train, Workers()
    how: Any = {"workers": 2, "kept": kept, "rank": rank, "world_size": world}
    waiting = iter(train_loader(data, CROP, 8, 0, 0, **how))
    for _ in range(60):
        next(waiting, None)
    yield "held"
    yield ", ".join(f"{share(pid):.0f}" for pid in [os.getpid(), *children(os.getpid())])
    kept.close()


def memory_of_ranks(root: Path, world: int) -> None:
    """What ranks of one training hold, each with 2 workers, all at the same time."""
    command = [sys.executable, "-P", __file__, "--root", str(root), "--rank"]
    how: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen([*command, f"{rank}/{world}"], **how) for rank in range(world)]
    for rank in ranks:
        assert rank.stdout is not None and rank.stdout.readline() == "held\n"
    told = []
    for rank in ranks:
        assert rank.stdin is not None and rank.stdout is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
        told.append(rank.stdout.readline().strip())
    for rank in ranks:
        rank.communicate()
    print(f"ours: MB of {world} ranks and their workers: {'; '.join(told)}")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def share(pid: int) -> float:
    """MB of a process, pages that it shares divided by those that share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def train(root: Path) -> None:
    """20 steps, killed in the middle and resumed, then a pass over 2,000 test pictures."""
    out = root / "run"
    command = shlex.split(
        f"{sys.executable} {ROOT}/recipes/multisp_imagenet.py --data.root {root} "
        "--data.image-size 64 --model.name spikformer_toy --model.T 2 --train.batch-size 16 "
        "--train.workers 2 --train.cpu --train.mixed-precision no --multisp.epochs 1 "
        "--train.checkpoint-steps 5 --data.limit-train 320 --data.limit-test 2000 "
        f"--run.out {out} --run.resume auto"
    )
    begin = time.perf_counter()
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (out / "last" / "LATEST").exists() and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    print(f"killed after {time.perf_counter() - begin:.0f} s, at its first checkpoint")
    begin = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in ended.stderr.splitlines() if "resumed" in line]
    print(*lines, f"exit {ended.returncode} after {time.perf_counter() - begin:.0f} s", sep="; ")
    print((out / "summary.csv").read_text(), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000, help="to train on")
    parser.add_argument("--root", type=Path, help="folder that keeps them; default: for this run")
    parser.add_argument("--rounds", type=int, default=7, help="of images/s")
    parser.add_argument("--epochs", type=int, default=5, help="whose start is timed")
    parser.add_argument("--deit", action="store_true", help="DeiT's augmentation, too")
    parser.add_argument("--train", action="store_true", help="20 steps, a kill and a resume, too")
    parser.add_argument("--small", action="store_true", help="images of 32x32 in memory alone")
    parser.add_argument("--only-memory", action="store_true", help="and starts, of all pictures")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.rank:
        for line in memory(args.root, *map(int, args.rank.split("/"))):
            print(line, flush=True)
            sys.stdin.readline()
        return
    if args.small:
        small(args.rounds)
        return
    with tempfile.TemporaryDirectory() as place:
        root = args.root or Path(place)
        if not (root / "imagenet").is_dir():
            make(root, args.pictures)
        count, load = sum(1 for _ in (root / "imagenet" / "train").rglob("*.JPEG")), os.getloadavg()
        print(
            f"{count} JPEGs, torch {torch.__version__}, timm {timm.__version__}, load {load[0]:.1f}"
        )
        for world in (1, 2):
            memory_of_ranks(root, world)
        large_starts(root, args.epochs)
        if args.only_memory:
            return
        for augment in (CROP, Augment.standard("imagenet"))[: 1 + args.deit]:
            speeds(root, augment, args.rounds)
        make(Path(place) / "few", 600)
        starts(Path(place) / "few", args.epochs)
        if args.train:
            train(root)


if __name__ == "__main__":
    main()
