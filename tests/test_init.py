"""The door of the package: light, lazy, complete."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import spikeformer_lt
from spikeformer_lt.runtime import MOVED

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "door", ["", "events", "export", "images", "layers", "reports", "tickets", "training"]
)
def test_a_door_lists_the_names_that_it_loads_and_no_others(door: str) -> None:
    init = Path(spikeformer_lt.__file__).parent / door / "__init__.py"
    tree = ast.parse(init.read_text("utf-8"))
    (guard,) = (n for n in tree.body if isinstance(n, ast.If) and "TYPE" in ast.unparse(n.test))
    loaded = [a.asname or a.name for n in guard.body for a in n.names]
    (listed,) = (ast.literal_eval(n.value) for n in tree.body if "__all__ =" in ast.unparse(n))
    assert sorted(listed) == sorted(loaded + ["__version__"] * (not door))


def test_a_submodule_does_not_take_the_place_of_a_public_name() -> None:
    importlib.import_module("spikeformer_lt.events.validate")
    from spikeformer_lt.events import validate

    assert callable(validate) and validate.__name__ == "validate"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = spikeformer_lt.create_modle


def test_the_version_is_that_of_the_installed_package() -> None:
    assert spikeformer_lt.__version__ == importlib.metadata.version("spikeformer_lt")


TWO_STEPS = """
import importlib, importlib.machinery, pkgutil, runpy, sys

finder = importlib.machinery.PathFinder
find_spec = finder.find_spec

def absent(name, path=None, target=None):
    hidden = name.partition(".")[0] in ("tonic", "librosa", "scienceplots")
    return None if hidden else find_spec(name, path, target)

finder.find_spec = absent
assert not importlib.util.find_spec("tonic")

import spikeformer_lt
from spikeformer_lt.runtime import MOVED

for module in pkgutil.walk_packages(spikeformer_lt.__path__, "spikeformer_lt."):
    importlib.import_module(module.name)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_it_trains_without_tonic_librosa_and_scienceplots(tmp_path: Path) -> None:
    """Dependencies that pip installs and that no training needs."""
    options = (
        "--data.name digits --data.limit-train 64 --data.limit-test 20 --data.image-size 16 "
        "--model.name spikformer_toy --model.embed-dim 16 --model.T 2 --train.batch-size 32 "
        "--multisp.epochs 1 --multisp.stem-epochs 1 --train.cpu"
    )
    recipe = Path(__file__).resolve().parents[1] / "recipes" / "multisp_cifar.py"
    run = tmp_path / "run"
    argv = [str(recipe), *options.split(), "--run.out", str(run)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", TWO_STEPS, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (run / "report.json").is_file()


def test_the_description_of_the_package_needs_no_checkout() -> None:
    root = Path(__file__).resolve().parents[1]
    made, readme = runpy.run_path(str(root / "setup.py"))["description"], root / "README.md"
    text = made(readme.read_text("utf-8"))
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)
    for part in ("evaluate --run spikformer_digits", "## Limits", "Python 3.11", "GPL-3.0-only"):
        assert part in text
    assert not re.search("in this folder|checkout|make [dt]|accelerate launch|random masks", text)
    paths = set(re.findall(r"`(docs/[^`]*)`", text))
    assert {"docs/commands.md", "docs/lab/speed.md", "docs/results/README.md"} <= paths
    assert all((root / path).exists() for path in paths)
    assert "graft docs" in (root / "MANIFEST.in").read_text().splitlines()
    words = "# t\n\n![a](b.png)\n\nWhat is\nseen.\n\nsee [c](d.md#e), [f](https://g)\n"
    assert made(words).startswith("# t\n\nsee c (`d.md`), [f](https://g)\n")


@pytest.mark.parametrize("old", MOVED)
def test_an_old_import_works_with_a_warning_and_is_listed(old: str) -> None:
    listed = (ROOT / "CHANGELOG.md").read_text("utf-8").partition("### Deprecated")[2]
    for name, new in MOVED[old].items():
        with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now .*{new}.{name}$"):
            found = getattr(importlib.import_module(f"spikeformer_lt.{old}"), name)
        assert found is getattr(importlib.import_module(f"spikeformer_lt.{new}"), name)
        assert f"\n| `{old}.{name}` | `{new}.{name}` |\n" in listed
