"""Exports that a stranger sealed again: refused by name, at once, in bounded memory."""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt.bundle import Stage
from spikeformer_lt.disk import read_tensors
from spikeformer_lt.errors import SpikeformerError
from spikeformer_lt.export.api import load_exported
from spikeformer_lt.export.file import CONFIG, EXPORT, TENSORS
from spikeformer_lt.reports import open_run
from spikeformer_lt.tickets import model_from_ticket

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "docs" / "results" / "digits-ticket"
REFUSED, SLOWEST_S, MEMORY = 100, 2.0, 2 << 30
ODD: list[Any] = [
    *(None, True, -1, 0, 10**12, 10**30, 1e300, float("nan"), "", "x" * 10_000, "conv_pep"),
    *([], {}, [[]], [1] * 50_000, [2**40] * 7, [1 << 20, 1 << 20], {"name": []}, ["one", 10**9]),
    *(["bits", -5], ["all", 2**35], [14, 10**9], "__class__", "float64", "complex128"),
]


def seal(folder: Path, body: dict[str, Any], streams: dict[str, torch.Tensor], own: Any) -> None:
    """Write an export with checksums and seal that fit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    stage = Stage(folder, EXPORT)
    stage.write_tensors(TENSORS, streams, own)
    drop = ("format", "format_version", "sha256", "seal")
    stage.seal({key: value for key, value in body.items() if key not in drop})


def places(tree: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values of nested dicts and lists."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in inside:
        found.append((*where, key))
        if isinstance(value, dict | list):
            found += places(value, (*where, key))
    return found


def put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = value


def mutate(draw: random.Random, folder: Path) -> str:
    """Write a mutation of the shipped export into `folder` and say what it is."""
    body = json.loads((SHIPPED / CONFIG).read_text())
    streams, own = read_tensors(SHIPPED / TENSORS)
    table = json.loads(zlib.decompress(streams["table"].numpy().tobytes()))
    kind = draw.choice(("row", "row", "table", "body", "arguments", "stream"))
    value, said = draw.choice(ODD), ""
    if kind == "row":
        place = draw.choice(places(table))
        put(table, place, value)
        said = f"{place} = {value!r:.60}"
    elif kind == "table":
        said = draw.choice(("dropped", "twice", "swapped", "lists", "text"))
        at = draw.randrange(len(table) - 1)
        changes: dict[str, Any] = {
            "dropped": table[:at] + table[at + 1 :],
            "twice": [*table, table[at]],
            "swapped": [*table[:at], table[at + 1], table[at], *table[at + 2 :]],
            "lists": [[]] * draw.choice((10, 3_000_000)),
            "text": "[" * draw.choice((10, 10**7)),
        }
        table = changes[said]
    elif kind in ("body", "arguments"):
        inside = body["provenance"]["model"] if kind == "arguments" else body
        place = draw.choice(places(inside))
        put(inside, place, value)
        said = f"{place} = {value!r:.60}"
    else:
        name = draw.choice([name for name in streams if name != "table"])
        part = streams[name]
        streams[name] = draw.choice(
            (part[:-1], part[:0], torch.cat([part, part[:1]]), part.flip(0))
        )
        said = f"{name}: {streams[name].shape}"
    text = table if isinstance(table, str) else json.dumps(table)
    packed = bytearray(zlib.compress(text.encode(), 1))
    streams["table"] = torch.frombuffer(packed, dtype=torch.uint8)
    seal(folder, body, streams, own)
    return f"{kind}: {said}"


def attack(folder: Path) -> None:
    """Load mutations until enough were refused; print what was not refused well."""
    load_exported(SHIPPED)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    draw, refused, accepted = random.Random(0), 0, 0
    while refused < REFUSED and accepted < REFUSED:
        said, begin = mutate(draw, folder), time.process_time()
        try:
            load_exported(folder)
            accepted += 1  # a value that decides nothing, such as a seed
        except SpikeformerError as fault:
            refused += 1
            if str(folder) not in str(fault) and "tensor" not in str(fault):
                print(f"NO NAME {said}: {fault}")
        except BaseException as fault:
            print(f"TRACEBACK {said}: {type(fault).__name__}: {fault!s:.200}")
        if (seconds := time.process_time() - begin) > SLOWEST_S:
            print(f"SLOW {said}: {seconds:.1f} s")
    print(f"refused {refused}")


@pytest.mark.fault(51)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux limits memory")
def test_exports_that_were_sealed_again_are_refused_by_name(forks: Any, tmp_path: Path) -> None:
    ended = forks.start(__file__, tmp_path / "export")
    out, err = ended.communicate()
    assert ended.returncode == 0, err[-2000:]
    assert out.splitlines() == [f"refused {REFUSED}"]


@pytest.mark.fault(53)
@pytest.mark.parametrize(
    ("name", "value"),
    [("data", -1), ("data", []), ("data_options", "x"), ("dataset", []), ("model", 3)],
)
def test_a_ticket_with_odd_words_about_its_data_is_refused(
    name: str, value: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "ticket"
    shutil.copytree(ROOT / "tests/golden/frozen/multisp/finished/ticket", folder)
    body = json.loads((folder / "ticket.json").read_text())
    body["provenance"][name] = value
    (folder / "ticket.json").write_text(json.dumps(body))
    with pytest.raises(SpikeformerError):
        open_run(folder, model_from_ticket)
    body = json.loads(
        (ROOT / "tests/golden/frozen/multisp/finished/ticket/ticket.json").read_text()
    )
    body["provenance"]["data"]["limit_test"] = str(value)
    (folder / "ticket.json").write_text(json.dumps(body))
    with pytest.raises(SpikeformerError, match=r"data\.limit_test="):
        open_run(folder, model_from_ticket)


if __name__ == "__main__":
    attack(Path(sys.argv[1]))
