"""Validation folds by person of recordings with few people, and the table of their runs.

python benchmarks/event_folds.py split FOLDER       # FOLDER/data/objects: recordings, and folds
python benchmarks/run_queue.py run FOLDER --queue docs/results/dvs128-objects/folds/queue.csv
python benchmarks/event_folds.py table FOLDER       # docs/results/dvs128-objects/folds

Each fold holds out other people of the training part, so that every one is held out once, and no
class loses its last training recording; the test part is the same in all. A run is VARIANT-FOLD.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from spikeformer_lt import create_dataset
from spikeformer_lt.events.split import Sample, Split
from spikeformer_lt.reports.comparison import outcome_of
from spikeformer_lt.reports.statistics import Outcome, accuracy_interval, contrast, holm, wilson

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "dvs128-objects" / "folds"
NAME, FOLDS = "dvs128_recordings", 5
HEAD = """# DVS128 objects, five folds by person

A Spikformer of 0.13 M parameters (2 blocks, 64 wide, T 8), 60 epochs, the commands of
[queue.csv](queue.csv); each fold holds out four of the 20 people of the training part and has a
seed of its own; the test part is the same. Validation chose the epoch, so that the first column is
of the best one. [runs.csv](runs.csv) has each run.
"""
VARIANTS = "dense", "MultiSp", "random control"


def folds(people: dict[str, list[Sample]], count: int) -> list[list[str]]:
    """People of each fold: those with most recordings first, each to the smallest fold."""
    if count > len(people):
        sys.exit(f"--folds {count} is not allowed: there are {len(people)} people")
    found: list[list[str]] = [[] for _ in range(count)]
    for person in sorted(people, key=lambda own: (-len(people[own]), own)):
        least = min(found, key=lambda own: sum(len(people[other]) for other in own))
        least.append(person)
    return [sorted(own) for own in found]


def split(root: Path, count: int) -> None:
    """Write a split file for each fold."""
    root = root / "data" / "objects"
    parts = create_dataset(NAME, root=str(root))
    train, val, test = (part.samples for part in (parts.train, parts.val, parts.test))
    pool = sorted((*train, *val))
    people: dict[str, list[Sample]] = {}
    for sample in pool:
        people.setdefault(sample.group, []).append(sample)
    (root / "folds").mkdir(exist_ok=True)
    for number, held in enumerate(folds(people, count)):
        kept = [sample for sample in pool if sample.group not in held]
        lost = {sample.label for sample in pool} - {sample.label for sample in kept}
        if lost:
            sys.exit(f"fold {number} leaves no recording of class {sorted(lost)} to train on")
        own = [sample for sample in pool if sample.group in held]
        made = Split(
            parts.train.name.split()[0], parts.train.classes, *map(tuple, (kept, own, test))
        )
        made.save(root / "folds" / f"{number}.json")
        print(f"fold {number}: {len(own)} recordings of {len(held)} people: {' '.join(held)}")


def table(folder: Path, count: int) -> None:
    """Write runs.csv and table.md."""
    names = [f"{variant.replace(' ', '-')}-{fold}" for variant in VARIANTS for fold in range(count)]
    if lost := [name for name in names if not (folder / "runs" / name / "report.json").exists()]:
        sys.exit(f"error: {folder} has no finished run {', '.join(lost)}")
    rows, lines = [], []
    outcomes: dict[str, list[Outcome]] = {}
    for variant in VARIANTS:
        right = held = 0
        for fold in range(count):
            run = folder / "runs" / f"{variant.replace(' ', '-')}-{fold}"
            report = json.loads((run / "report.json").read_text("utf-8"))
            made = json.loads(
                (folder / "data" / "objects" / "folds" / f"{fold}.json").read_text("utf-8")
            )
            size = sum(part == "val" for part, *_ in made["recordings"])
            right, held = right + round(report["val_accuracy"] * size / 100), held + size
            found = outcome_of(report, run)
            assert found is not None  # a finished run has its test
            outcomes.setdefault(variant, []).append(found)
            one = accuracy_interval([found.accuracy], found.count)
            rows.append({
                "variant": variant, "fold": fold, "held out": size,
                "held-out accuracy %": f"{report['val_accuracy']:.2f}",
                "test accuracy %": f"{report['test_accuracy']:.2f}",
                "95 % interval": f"[{one.low:.2f}, {one.high:.2f}]",
                "seconds": f"{report['seconds']:.0f}", "split": made["sha256"][:12],
            })  # fmt: skip
        test = accuracy_interval(
            [o.accuracy for o in outcomes[variant]], outcomes[variant][0].count
        )
        out = wilson(right, held)
        lines.append(
            f"| {variant} | {out.value:.2f} [{out.low:.2f}, {out.high:.2f}] | "
            f"{test.value:.2f} [{test.low:.2f}, {test.high:.2f}] |"
        )
    write(rows, lines, outcomes)


def write(
    rows: Sequence[dict[str, object]], lines: Sequence[str], outcomes: dict[str, list[Outcome]]
) -> None:
    """The files of the page."""
    with (PAGE / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pairs = [(a, b) for i, a in enumerate(VARIANTS) for b in VARIANTS[:i]]
    found = {p: contrast(list(zip(*(outcomes[v] for v in p), strict=True))) for p in pairs}
    adjusted = holm({" ".join(pair): own.p for pair, own in found.items()})
    told = [
        f"| {a} | {b} | {own.difference.value:+.2f} [{own.difference.low:.2f}, "
        f"{own.difference.high:.2f}] | {adjusted[f'{a} {b}']:.3g} |"
        for (a, b), own in found.items()
    ]
    head = [
        "| variant | held-out people %, best epoch, all folds | test people %, mean of folds |",
        "|---|---|---|",
    ]
    other = ["| variant | against | points on test | p (Holm) |", "|---|---|---|---|"]
    text = [HEAD, *head, *lines, "", *other, *told, ""]
    (PAGE / "table.md").write_text("\n".join(text), "utf-8")
    print("\n".join(text))


def main() -> None:
    """Split or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("split", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, default=FOLDS)
    args = parser.parse_args()
    (split if args.what == "split" else table)(args.folder, args.folds)


if __name__ == "__main__":
    main()
