"""Imports only go down: which file may import what, read from the source without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A new file in the root of the package takes a place here; a folder is a shelf with a floor.
ROOT_FILES = {
    0: {
        "config",
        "configtree",
        "doctor",
        "errors",
        "openmp",
        "paths",
        "plugins",
        "registry",
        "rng",
        "step",
        "tensorfile",
        "textfile",
    }
    | {"archive", "fetch", "timm_bridge", "unzip"},
    1: {"mask", "selection", "ticket"},
}
SHELVES = {
    **{"layers": 2, "criteria": 2, "events": 2, "images": 2},
    **{"training": 3},
    **{"tickets": 4, "reports": 4},
    **{"export": 5},  # rebuilds any ticket, so it stands on the searches; models it knows by name
    **{"models": 5, "datasets": 5},
}
RECIPES = 6
# Models and datasets stand on the top floor but lean on 0 to 2 only: they can be written, read and
# tested without the loop.
HIGHEST_USED = {"models": 2, "datasets": 2}

LAZY = {"accelerate", "matplotlib", "sklearn", "timm", "tonic", "torchvision", "tyro"}
# Who may name a dependency at all; a dependency that is not listed is free.
OWNERS = {
    "accelerate": ("training", "reports", "export"),
    "spikingjelly": ("layers.neuron", "reports"),
    "tonic": ("events", "datasets"),
    "tyro": ("config",),
}
OUR_TOP_FOLDERS = {"models", "datasets", "recipes", "tests", "benchmarks"}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, its line, and when it is imported."""

    target: str
    line: int
    lazy: bool  # inside a function, or only for type checkers

    @property
    def top(self) -> str:
        return self.target.split(".")[0]


def _is_typing_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def read_imports(module: str, source: str, modules: frozenset[str]) -> list[Import]:
    """Every import statement of one file; ``from a import b`` names a.b where that is a module."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")[: -node.level]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append(Import(full if full in modules else base, node.lineno, lazy))
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.append(Import(str(node.args[0].value), node.lineno, True))
        later = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if _is_typing_guard(node):
            assert isinstance(node, ast.If)
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, later)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, later)

    visit(ast.parse(source), False)
    return found


def place(module: str) -> tuple[str, int] | None:
    """Give the shelf and the floor of a module of ours; None for the package's door."""
    if module.startswith("recipes."):
        return "recipes", RECIPES
    parts = module.split(".")
    if parts[1:] in ([], ["__init__"]):
        return None
    if parts[1] in SHELVES:
        return parts[1], SHELVES[parts[1]]
    for floor, names in ROOT_FILES.items():
        if parts[1] in names:
            return f"floor {floor}", floor
    raise LookupError(f"{module} has no floor: give it one in tests/test_floors.py, or a shelf")


def faults(module: str, source: str, modules: frozenset[str] = frozenset()) -> list[str]:
    """List what one file imports and must not."""
    here = place(module)
    inside = module.removeprefix("spikeformer_lt.")
    out: list[str] = []
    for item in read_imports(module, source, modules):
        say = f"{module}:{item.line} imports {item.target}: "
        if item.top in OUR_TOP_FOLDERS:
            # The Hugging Face package of this name is none of our dependencies either.
            out.append(say + "write spikeformer_lt.models.x or spikeformer_lt.datasets.x")
        if here is None:
            continue
        shelf, floor = here
        if item.top in OWNERS and floor < RECIPES:
            owners = OWNERS[item.top]
            if not any(inside == name or inside.startswith(f"{name}.") for name in owners):
                out.append(say + f"only {', '.join(owners)} may")
        if item.target.startswith("spikingjelly.datasets"):
            out.append(say + "it loads torchaudio and torchvision; use tonic or our own reader")
        # The loop is built on accelerate; whoever loads training waits for it anyway.
        at_home = (item.top, shelf) == ("accelerate", "training")
        if item.top in LAZY and not item.lazy and floor < RECIPES and not at_home:
            out.append(say + "import it inside the function that uses it")
        if item.top != "spikeformer_lt":
            continue
        there = place(item.target)
        if there is None:
            if floor < RECIPES:
                out.append(say + "the library names the module, not the package's door")
            continue
        other, below = there
        if other == shelf and shelf != "recipes":
            continue
        if below >= floor:
            out.append(say + f"{other} (floor {below}) is not below {shelf} (floor {floor})")
        elif below > HIGHEST_USED.get(shelf, RECIPES):
            out.append(say + f"{shelf} use floors 0 to {HIGHEST_USED[shelf]} only")
    return out


@cache
def library() -> dict[str, Path]:
    """Every Python file that ships or runs, by module name, recipes included."""
    files: dict[str, Path] = {}
    for folder in ("spikeformer_lt", "models", "datasets", "recipes"):
        prefix = () if folder in ("spikeformer_lt", "recipes") else ("spikeformer_lt",)
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [*prefix, *path.relative_to(ROOT).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            files.setdefault(".".join(parts), path)  # once, should rglob follow the two links
    return files


@pytest.mark.parametrize("module", sorted(library()))
def test_a_file_imports_only_from_floors_below_its_own(module: str) -> None:
    source = library()[module].read_text()
    # `from .x import y` in an __init__.py starts at the package itself, one level lower.
    name = f"{module}.__init__" if library()[module].name == "__init__.py" else module
    found = faults(name, source, frozenset(library()))
    assert not found, "\n".join(found)


def test_every_floor_is_inhabited_by_files_that_were_read() -> None:
    floors = {here[1] for module in library() if (here := place(module))}
    assert floors == set(range(RECIPES + 1))


def test_no_two_modules_wait_for_each_other() -> None:
    modules = frozenset(library())
    graph = {
        module: {
            item.target
            for item in read_imports(module, path.read_text(), modules)
            if not item.lazy and item.target in modules and item.target != module
        }
        for module, path in library().items()
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for target in graph.get(module, ()):
            walk(target, (*trail, module))
        done.add(module)

    for module in graph:
        walk(module, ())


PLANTED = {
    "layers on training": ("layers.x", "from spikeformer_lt.training import loop"),
    "upward inside a function": ("mask", "def f():\n    import spikeformer_lt.layers.neuron"),
    "upward by a relative import": ("mask", "from .layers import neuron"),
    "upward by a parent's import": ("layers.x", "from ..training.loop import fit"),
    "upward for types only": (
        "layers.x",
        "import typing\nif typing.TYPE_CHECKING:\n    import spikeformer_lt.tickets.imp",
    ),
    "upward by name": ("step", "import importlib\nimportlib.import_module('spikeformer_lt.mask')"),
    "a neighbour shelf": ("criteria.x", "from spikeformer_lt.layers import neuron"),
    "a model on a dataset": ("models.x", "import spikeformer_lt.datasets.digits"),
    "a dataset on a model": ("datasets.x", "from spikeformer_lt.models.spikformer import f"),
    "a model on training": ("models.x", "from spikeformer_lt.training.loop import fit"),
    "a model on a ticket search": ("models.x", "from spikeformer_lt.tickets import imp"),
    "the door from inside": ("layers.x", "from spikeformer_lt import Mask"),
    "a recipe from the library": ("training.x", "import recipes.multisp_cifar"),
    "top-level models": ("tickets.x", "from models.spikformer import f"),
    "top-level datasets": ("datasets.x", "import datasets"),
    "accelerate below training": ("layers.x", "def f():\n    import accelerate"),
    "accelerate in a search": ("tickets.x", "def f():\n    from accelerate import Accelerator"),
    "accelerate at the top of a report": ("reports.x", "import accelerate"),
    "timm at the top": ("models.x", "import timm.data"),
    "torchvision at the top": ("images.x", "from torchvision import transforms"),
    "matplotlib at the top in a try": (
        "reports.x",
        "try:\n    import matplotlib\nexcept ImportError:\n    pass",
    ),
    "sklearn in a class body": ("datasets.x", "class A:\n    from sklearn import datasets"),
    "tyro outside config": ("registry", "def f():\n    import tyro"),
    "tonic outside events": ("images.x", "def f():\n    import tonic"),
    "spikingjelly beside neuron": ("layers.attention", "import spikingjelly"),
    "spikingjelly in a model": ("models.x", "from spikingjelly.activation_based import neuron"),
    "spikingjelly's datasets": ("reports.x", "def f():\n    import spikingjelly.datasets"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_upward_import_is_found(name: str) -> None:
    module, source = PLANTED[name]
    modules = frozenset({"spikeformer_lt.layers", "spikeformer_lt.layers.neuron"})
    assert faults(f"spikeformer_lt.{module}", source, modules)


ALLOWED = {
    "downward": ("training.loop", "from spikeformer_lt.layers.neuron import LIF\nimport torch"),
    "the same shelf": ("layers.x", "from spikeformer_lt.layers import neuron"),
    "the same floor's root": ("ticket", "from spikeformer_lt.mask import Mask"),
    "accelerate where the loop is": ("training.loop", "from accelerate import Accelerator"),
    "timm inside a function": ("training.optim", "def f():\n    import timm"),
    "types of a lazy library": (
        "reports.x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import matplotlib",
    ),
    "the one neuron file": ("layers.neuron", "from spikingjelly.activation_based import neuron"),
    "a name that only begins like ours": ("layers.x", "import datasets_of_mine, modelscope"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_an_allowed_import_is_let_through(name: str) -> None:
    module, source = ALLOWED[name]
    modules = frozenset({"spikeformer_lt.layers", "spikeformer_lt.layers.neuron"})
    assert faults(f"spikeformer_lt.{module}", source, modules) == []


def test_a_recipe_may_use_the_door_and_no_other_recipe() -> None:
    assert faults("recipes.a", "from spikeformer_lt import Mask\nimport timm") == []
    assert faults("recipes.a", "import recipes.b")


def test_a_file_without_a_floor_is_refused() -> None:
    with pytest.raises(LookupError, match="has no floor"):
        place("spikeformer_lt.misc")


def loaded_after(statements: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statements`."""
    script = f"{statements}\nimport sys\nprint('loaded', *{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = LAZY | {"torch", "numpy", "numba", "spikingjelly"}
    assert not loaded_after("import spikeformer_lt") & heavy


def test_models_datasets_and_all_below_load_no_lazy_library() -> None:
    names = [m for m in library() if (here := place(m)) and (here[1] <= 2 or here[1] == 5)]
    assert len(names) > 20
    loaded = loaded_after("import " + ", ".join(sorted(names)))
    assert {"torch", "spikeformer_lt"} <= loaded
    assert not loaded & LAZY
