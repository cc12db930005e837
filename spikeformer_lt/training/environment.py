"""What a run's numbers depend on besides its configuration: versions, machine, threads, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_environment", "environment_changes"]

CPUINFO = Path("/proc/cpuinfo")  # Linux
PACKAGES = (
    "spikeformer_lt",
    "torch",
    "torchvision",
    "timm",
    "spikingjelly",
    "accelerate",
    "numpy",
    "numba",
    "safetensors",
    "scikit-learn",
    "tonic",
)
# Same numbers on another commit or under another command are what a resume is for.
_MAY_CHANGE = ("command", "git_commit", "git_clean", "cpu_count")


def describe_environment(seed: int | None = None, world_size: int = 1) -> dict[str, Any]:
    """Collect what the run's directory keeps in ``env.json``; values that JSON can hold.

    Args:
        seed: the run's seed.
        world_size: number of processes.
    """
    commit, clean = _git()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "seed": seed,
        "world_size": world_size,
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": _cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": devices,
        "git_commit": commit,
        "git_clean": clean,
        "command": shlex.join(sys.argv),
    }


def environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List what differs and may change results in their last bits, as "field: old -> new"."""
    before, after = _flat(old), _flat(new)
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name) and name not in _MAY_CHANGE
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    versions = tree.get("versions")
    own = {name: value for name, value in tree.items() if name != "versions"}
    return own | (dict(versions) if isinstance(versions, Mapping) else {})


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = str(torch.__version__)  # with its build, e.g. +cpu
    return found


def _cpu_model() -> str:
    try:
        text = CPUINFO.read_text("utf-8", "replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git() -> tuple[str | None, bool | None]:
    """Commit of our source tree and whether it is unchanged; None for an installed package."""
    home = Path(__file__).resolve().parents[2]
    try:
        top, commit = _run_git(home, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top).resolve() != home:
            return None, None
        return commit, not _run_git(home, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None


def _run_git(home: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(home), *words], capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout
