"""Kills at every file operation and at random moments; the process under test forks from one that
has imported torch already."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kills import Bomb, forked

from spikeformer_lt.training.checkpoint import CheckpointStore

KILLS = 30


def content(number: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(number)
    return {
        "model": {"w": torch.randn(40, 30, generator=generator), "n": torch.tensor(number)},
        "optimizer": {"m": torch.randn(40, 30, generator=generator)},
    }


def fault_of(found, numbers: set[int]) -> str:
    """Say what is wrong with what was loaded; nothing if it is one of `numbers`, to the bit."""
    if found is None:
        return "" if -1 in numbers else "nothing was loaded"
    if found.number not in numbers:
        return f"{found.number} was loaded, not one of {sorted(numbers)}"
    expected = content(found.number)
    same = found.tensors.keys() == expected.keys() and all(
        found.tensors[group].keys() == members.keys()
        and all(torch.equal(found.tensors[group][n], v) for n, v in members.items())
        for group, members in expected.items()
    )
    return "" if same and found.state == {"number": found.number} else "other tensors were loaded"


def save(folder: Path, number: int) -> None:
    CheckpointStore(folder).save(number, content(number), {"number": number})


def kill_at_every_operation(bomb: Bomb, root: Path, before: list[int], number: int, real: bool):
    """Save `before`, then `number` with a kill at operation 0, 1, 2 ... until one save survives."""
    base = root / "base"
    base.mkdir(parents=True)
    for earlier in before:
        save(base, earlier)
    allowed = {before[-1] if before else -1, number}
    faults, fuse, survived = [], 0, False
    while not survived:
        folder = root / str(fuse)
        shutil.copytree(base, folder)
        survived = bomb.survives(lambda folder=folder: save(folder, number), fuse, real)
        store = CheckpointStore(folder)
        fault = fault_of(store.load(), {number} if survived else allowed)
        # A second life: one more save, over whatever the kill has left behind.
        following = store.next_number()
        save(folder, following)
        fault = fault or fault_of(store.load(), {following})
        left = [name for name in os.listdir(folder) if ".tmp" in name]
        if fault or left:
            faults.append([fuse, fault, left])
        shutil.rmtree(folder)
        fuse += 1
    return {"operations": fuse - 1, "faults": faults}


def kill_at_random(root: Path) -> dict:
    """Kill -9 a process that saves one checkpoint after the other, again and again."""
    folder = root / "random"
    chance = random.Random(0)
    faults, last, saves = [], -1, 0
    for kill in range(KILLS):
        reader, writer = os.pipe()

        def work(writer: int = writer) -> None:
            os.write(writer, b"+")
            found = CheckpointStore(folder).load()
            number = 0 if found is None else found.number + 1
            while True:
                save(folder, number)
                os.write(writer, b".")
                number += 1

        pid = forked(work)
        os.close(writer)
        os.read(reader, 1)
        time.sleep(chance.uniform(0.0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told = b""
        while more := os.read(reader, 65536):
            told += more
        os.close(reader)
        saves += len(told)
        found = CheckpointStore(folder).load()
        # The kill may have come between a publication and the word of it.
        fault = fault_of(found, {last + len(told), last + len(told) + 1})
        if fault:
            faults.append([kill, fault])
        last = found.number if found else -1
    return {"saves": saves, "faults": faults}


CASES = {
    "the first save": ([], 0, False),
    "a save that deletes an old one": ([2, 3], 4, False),
    "the same, in a process that is really gone": ([2, 3], 4, True),
}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    bomb = Bomb()
    report = {
        name: kill_at_every_operation(bomb, root / f"case{index}", *case)
        for index, (name, case) in enumerate(CASES.items())
    }
    report["random"] = kill_at_random(root)
    print(json.dumps(report))


@pytest.mark.fault(1, 2)
def test_after_a_kill_at_any_moment_a_good_checkpoint_is_loaded(forks, tmp_path):
    done = forks.start(__file__, tmp_path)
    out, err = done.communicate()
    assert done.returncode == 0, err
    report = json.loads(out)
    chance = report.pop("random")
    assert report.keys() == CASES.keys()
    for name, found in report.items():
        assert found["faults"] == [], name
        # At least: folder; create, write and fsync of 4 files; publish; LATEST with its rename.
        assert found["operations"] >= 18, name
    assert chance["faults"] == []
    assert chance["saves"] > 3, "the kills came before anything was saved"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
