"""benchmarks/peers.py at a tiny size: its equality check, and its table of ratios."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"
TINY = {"image_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 4}


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the benchmark as a module, with a size of its own."""
    monkeypatch.syspath_prepend(str(FILE.parent))
    spec = importlib.util.spec_from_file_location("peers", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SIZES["tiny"] = {**module.IMAGE, **TINY, "T": 2}
    module.SIZES["tiny events"] = {
        **module.EVENT, **TINY, "T": 2, "pools": (False, False, True, True)
    }  # fmt: skip
    return module


def options(size: str, published: bool) -> argparse.Namespace:
    return argparse.Namespace(
        size=size, batch=2, device="cpu", published_stem=published, precision="fp32",
        patch_sparsity=0.314, weight_sparsity=0.5, compact_dense=False, old_spikingjelly=None,
    )  # fmt: skip


def gaps(text: str) -> list[float]:
    """What a check printed: how far logits and gradients are apart."""
    return [float(number) for number in re.findall(r"within ([0-9.e+-]+)", text)]


@pytest.mark.parametrize("size", ["tiny", "tiny events"])
@pytest.mark.parametrize("published", [False, True])
def test_training_is_equal_in_float64(
    size: str, published: bool, peers: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    peers.compare_training(options(size, published))
    text = capsys.readouterr().out
    assert len(gaps(text)) == 2 and max(gaps(text)) <= 1e-9, text
    if published:
        assert re.search(r"^0 of [1-9][0-9,]* spikes differ", text, re.MULTILINE), text


def test_a_difference_stops_the_benchmark(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = peers.translated

    def spoiled(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = original(model)
        return {**state, "head.bias": state["head.bias"] + 1e-6}

    monkeypatch.setattr(peers, "translated", spoiled)
    with pytest.raises(SystemExit):
        peers.compare_training(options("tiny", False))


@pytest.mark.slow
def test_one_command_prints_the_table_of_ratios(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["peers.py", "--size", "tiny", "--batch", "2", "--rounds", "1", "--no-memory"]
    monkeypatch.setattr(sys, "argv", command)
    peers.main()
    text = capsys.readouterr().out
    lines = {line[:20].strip(): line for line in text.splitlines() if re.search(r"[0-9]x$", line)}
    assert {peers.PEER, *peers.OURS} <= set(lines)
    assert all(column in text for column in ("train ms", "infer ms", "saved MB", "file kB"))
    assert max(gaps(text)) <= 1e-2 and "exported MultiSp heaviside" in text
    assert lines[peers.PEER].count("1.00x") == 4
