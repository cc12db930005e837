"""Imports only go down, and what ruff bans is banned: the contracts of pyproject.toml hold.

Every law is shown to work by a violation that is planted in a copy of the sources.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAZY = {"accelerate", "matplotlib", "sklearn", "timm", "tonic", "torchvision", "tyro"}

PLANTED = {  # contract -> file in the copy, its source, and the import that the report names
    "Imports go down": {
        "layers on training": ("layers/x1", "from spikeformer_lt.training import optim"),
        "upward inside a function": ("rng", "def f():\n    import spikeformer_lt.layers.neuron"),
        "upward by a relative import": ("rng", "from .layers import neuron"),
        "upward for types only": (
            "images/x2",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    import spikeformer_lt.tickets.imp",
        ),
        "a neighbour on the floor": ("events/x3", "from spikeformer_lt.layers import neuron"),
        "a model on a data set": ("models/x4", "import spikeformer_lt.datasets.digits"),
        "a data set on a model": ("datasets/x5", "from spikeformer_lt.models import spikformer"),
        "the library on a recipe": ("training/x6", "import spikeformer_lt.recipes.convert"),
        "a file without a floor": ("homeless", ""),
    },
    "Models and datasets need neither the loop nor the searches": {
        "a model on the loop": ("models/x7", "from spikeformer_lt.training import optim"),
        "a data set on a search": ("datasets/x8", "from spikeformer_lt.tickets import imp"),
    },
    "No package and no module waits for itself": {
        "a circle of two": ("training/x9", "from . import x10"),
        "its other half": ("training/x10", "def f():\n    from . import x9"),
    },
    "The library names the module, not the package's door": {
        "the door from inside": ("layers/x11", "from spikeformer_lt import Mask"),
    },
    "Root folders are reached through spikeformer_lt alone": {
        "top-level models": ("tickets/x12", "from models.spikformer import f"),
        "top-level datasets": ("tickets/x13", "def f():\n    import datasets"),
    },
    "accelerate belongs to training": {
        "accelerate in a search": ("tickets/x14", "def f():\n    import accelerate"),
    },
    "spikingjelly belongs to layers.neuron": {
        "spikingjelly in a model": ("models/x15", "import spikingjelly.activation_based"),
    },
    "tonic belongs to events and datasets": {
        "tonic for images": ("images/x16", "def f():\n    import tonic"),
    },
    "tyro belongs to config": {"tyro for a recipe": ("recipes/x17", "import tyro")},
}
UNREPORTED = {"its other half", "a circle of two", "a file without a floor"}  # named another way


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The linter's reports of the sources as they are, and with everything planted."""
    spec = importlib.util.spec_from_file_location("imports", ROOT / ".ci" / "imports.py")
    assert spec and spec.loader
    imports = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imports)
    folder = tmp_path_factory.mktemp("imports")
    imports.copy_sources(ROOT, folder)
    clean = imports.lint(folder)
    for cases in PLANTED.values():
        for name, source in cases.values():
            with (folder / "spikeformer_lt" / f"{name}.py").open("a") as file:
                file.write(f"\n{source}\n")
    planted = imports.lint(folder)
    assert planted.returncode == 1, planted.stderr
    return clean.stdout + clean.stderr, planted.stdout


@pytest.mark.parametrize("contract", PLANTED)
def test_the_sources_keep_the_contract(contract: str, reports: tuple[str, str]) -> None:
    assert f"{contract} KEPT" in reports[0], reports[0]


@pytest.mark.parametrize("contract", PLANTED)
def test_a_planted_import_breaks_the_contract(contract: str, reports: tuple[str, str]) -> None:
    assert f"{contract} BROKEN" in reports[1]
    details = reports[1].partition("Broken contracts")[2]
    for what, (name, _) in PLANTED[contract].items():
        module = f"spikeformer_lt.{name.replace('/', '.')}"
        if what not in UNREPORTED:
            assert f"{module} -> " in details, what
        else:
            assert name.rpartition("/")[2] in details, what


BANNED = {  # rule -> statements that it refuses in the library
    "TID253": [*(f"import {name}" for name in sorted(LAZY)), "from timm.data import mixup"],
    "TID251": [
        "import torch\ntorch.save(1, 'a')",
        "from torch import save\nsave(1, 'a')",
        "import pickle",
        "from pickle import dumps",
        "import joblib",
        "def f():\n    import spikingjelly.datasets",
    ],
    "F403": ["from torch import *"],
    "S301": ["import pickle\npickle.load(open('a'))", "import pickle\npickle.Unpickler(1)"],
    "S307": ["eval('1')"],
    "S102": ["exec('1')"],
    "S506": ["import yaml\nyaml.load('', Loader=yaml.Loader)"],
    "S602": ["import subprocess\nsubprocess.run('ls', shell=True)"],
    "S605": ["import os\nos.system('ls')"],
    "T201": ["print()"],
}


def ruff(source: str, name: str = "spikeformer_lt/layers/x.py") -> str:
    """Rules that ruff finds broken in a source that stands in a file of this name."""
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache"]
    command += ["--output-format", "concise", "--stdin-filename", name, "-"]
    return subprocess.run(
        command, input=source, cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


@pytest.mark.parametrize("rule", BANNED)
def test_ruff_refuses_what_is_planted(rule: str) -> None:
    for source in BANNED[rule]:
        assert f" {rule} " in ruff(source), source


def test_ruff_lets_through_what_is_allowed() -> None:
    typed = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import matplotlib\n"
    inside = "def f():\n    import timm\n\n    return timm\n"
    for source in (typed, inside, "import yaml\n\nyaml.safe_load('')\n"):
        found = ruff(source)
        assert not [rule for rule in ("TID253", "TID251", "S506") if rule in found], found
    assert "TID253" not in ruff("import timm\n", "recipes/x.py")


def loaded_after(statements: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statements`."""
    script = f"{statements}\nimport sys\nprint('loaded', *{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_doors_loads_nothing_heavy() -> None:
    doors = sorted(path.parent.name for path in (ROOT / "spikeformer_lt").glob("*/__init__.py"))
    assert "layers" in doors
    heavy = LAZY | {"torch", "numpy", "numba", "spikingjelly"}
    names = ["spikeformer_lt", *(f"spikeformer_lt.{door}" for door in doors)]
    assert not loaded_after("import " + ", ".join(names)) & heavy


def test_models_datasets_and_all_below_load_no_lazy_library() -> None:
    package = ROOT / "spikeformer_lt"
    files = [*package.glob("*.py")]
    for folder in ("layers", "events", "images", "models", "datasets"):
        inside = (package / folder).resolve()  # rglob follows no link
        files += [package / folder / path.relative_to(inside) for path in inside.rglob("*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
        if path.name != "__main__.py"
    }
    assert len(names) > 40
    loaded = loaded_after("import " + ", ".join(sorted(names)))
    assert {"torch", "spikeformer_lt"} <= loaded
    assert not loaded & LAZY
