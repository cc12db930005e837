"""The laws of the house: sizes, links, packages, doors, test folders and calls that are banned."""

from __future__ import annotations

import ast
import importlib
import os
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = tuple(sorted(p.name for p in (ROOT / "spikeformer_lt").iterdir() if p.is_symlink()))
LIBRARY = ("spikeformer_lt", "models", "datasets", "recipes")
CODE = (*LIBRARY, "benchmarks", ".ci")
ENTRIES = (  # a file that users import is an entry of its own
    *("models", "datasets", "testing"),
    *("cli", "config", "disk", "errors", "registry", "ticket"),
)
DOORS = ("layers", "training", "tickets", "reports", "export", "events", "images")


@dataclass(frozen=True)
class Budget:
    """What some folders may hold together, and each of their files and functions."""

    lines: int
    files: int
    file_lines: int = 600
    function_lines: int = 81


# The one table of sizes. Raising a number needs a reason in the commit that does it.
BUDGETS = {
    ("spikeformer_lt",): Budget(lines=37_000, files=114),
    ("models",): Budget(lines=4_600, files=28),
    ("datasets",): Budget(lines=2_100, files=24),
    ("recipes",): Budget(lines=1_150, files=27, file_lines=62),
    ("benchmarks",): Budget(lines=7_300, files=39),
    (".ci",): Budget(lines=545, files=6),
}
TEST_LINES = 1.2  # lines of tests to a line of the library; the design asks for 1.1

BINARY_LIMIT = 500_000  # bytes; more than that in a clone needs a reason
BINARIES = {".safetensors", ".pkl", ".pickle", ".pt", ".pth", ".tar", ".bin", ".npz", ".npy", ".h5"}
BINARY_HOMES = ("tests/golden", "docs/results")


def generated() -> set[str]:
    """Folders of the root that .gitignore leaves out of every commit."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    return {line.strip("/") for line in lines if line.startswith("/") and line.endswith("/")}


@cache
def committed() -> tuple[Path, ...]:
    """Every file that belongs to the repository, relative to its root; links are not followed."""
    skipped = generated() | {".git"}
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [
            name
            for name in folders
            if not (here == Path() and name in skipped)
            and name not in {"__pycache__", ".hypothesis"}
            and not name.endswith((".egg-info", "_cache"))
        ]
        found += [here / name for name in files if not (Path(folder) / name).is_symlink()]
    return tuple(sorted(found))


def python_files(*folders: str) -> list[Path]:
    """Committed Python files below the given folders."""
    return [p for p in committed() if p.suffix == ".py" and p.parts[0] in folders]


def test_the_walk_sees_the_repository() -> None:
    names = {str(path) for path in committed()}
    assert {"pyproject.toml", "Makefile", "spikeformer_lt/mask.py", "tests/test_layout.py"} <= names
    assert not any(name.startswith((".venv", ".git/", ".cache")) for name in names)


def test_the_root_holds_known_folders_alone() -> None:
    """What a run leaves beside the sources is not committed with them."""
    known = {*LIBRARY, "tests", "benchmarks", "docs", ".ci", ".github"}
    assert {path.parts[0] for path in committed() if len(path.parts) > 1} == known


def test_models_and_datasets_are_linked() -> None:
    assert {"models", "datasets"} <= set(LINKED)


@pytest.mark.parametrize("name", LINKED)
def test_the_package_reaches_the_root_folder_through_a_link(name: str) -> None:
    link = ROOT / "spikeformer_lt" / name
    assert link.is_symlink(), (
        f"{link} is a plain file: on Windows, clone with git -c core.symlinks=true"
    )
    assert os.readlink(link).replace(os.sep, "/") == f"../{name}"
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", LINKED)
def test_a_root_folder_is_no_package_of_its_own(name: str) -> None:
    found = list((ROOT / name).rglob("__init__.py"))
    assert not found, "with an __init__.py, `import datasets` would find ours, not Hugging Face's"


def packages_of(root: Path) -> set[str]:
    """Every folder with Python files that users can import, by its dotted name."""
    found = set()
    for folder in ("spikeformer_lt", *LINKED):
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root).parent.parts
            found.add(
                ".".join(parts if parts[0] == "spikeformer_lt" else ("spikeformer_lt", *parts))
            )
    return found


def test_the_hand_written_package_list_equals_the_tree() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert config["packages"] == sorted(set(config["packages"]))
    tables = "spikeformer_lt.benchmarks.papers"  # which the recipe of the same name reads
    assert set(config["packages"]) == packages_of(ROOT) | {tables}
    assert config["package-dir"] == {
        "spikeformer_lt": "spikeformer_lt",
        tables: "benchmarks/papers",
        **{f"spikeformer_lt.{name}": name for name in LINKED},
    }


def test_every_folder_of_the_package_but_the_links_has_an_init() -> None:
    folders = {path.parent for path in python_files("spikeformer_lt")}
    missing = [
        str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()
    ]
    assert not missing, "without __init__.py an installed package of this name could be merged in"


def test_types_are_promised_to_users() -> None:
    assert (ROOT / "spikeformer_lt" / "py.typed").is_file()


def test_the_tests_are_no_package() -> None:
    assert not [p for p in python_files("tests") if p.name == "__init__.py"]


def test_version_is_the_same_in_all_places() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_torch_pair_is_pinned_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line.startswith("torch")]
    assert [re.sub(r"===[\d.]+$", "", pin) for pin in pins] == ["torch", "torchvision"], pins


@cache
def text_of(path: Path) -> str:
    """Text of a committed file."""
    return (ROOT / path).read_text("utf-8")


def count(paths: Iterable[Path]) -> int:
    """Lines of several files together."""
    return sum(len(text_of(path).splitlines()) for path in paths)


def over_budget(files: Mapping[Path, str], budget: Budget) -> list[str]:
    """List what a budget does not allow, of files with their text."""
    total = sum(len(text.splitlines()) for text in files.values())
    found = [f"{total} lines of {budget.lines}"] if total > budget.lines else []
    if len(files) > budget.files:
        found.append(f"{len(files)} files of {budget.files}")
    for path, text in files.items():
        if (lines := len(text.splitlines())) > budget.file_lines:
            found.append(f"{path}: {lines} lines of {budget.file_lines}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > budget.function_lines:
                    found.append(f"{path}: {node.name} has {lines} of {budget.function_lines}")
    return found


@pytest.mark.parametrize("folders", BUDGETS, ids="-".join)
def test_the_folders_keep_their_budget(folders: tuple[str, ...]) -> None:
    files = {path: text_of(path) for path in python_files(*folders)}
    assert files
    assert not over_budget(files, BUDGETS[folders])


def test_what_passes_a_budget_is_named() -> None:
    small = Budget(lines=5, files=1, file_lines=3, function_lines=2)
    files = {Path("a.py"): "def f():\n    a = 1\n    return a\n", Path("b.py"): "1\n2\n3\n4\n"}
    assert over_budget(files, small) == [
        "7 lines of 5",
        "2 files of 1",
        "a.py: f has 3 of 2",
        "b.py: 4 lines of 3",
    ]
    assert over_budget({Path("c.py"): "1\n"}, small) == []


def test_the_tests_keep_their_budget() -> None:
    assert count(python_files("tests")) <= TEST_LINES * count(python_files(*LIBRARY))


def public_names(source: str) -> set[str]:
    """Public classes and functions of one file."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = {node.name for node in ast.parse(source).body if isinstance(node, kinds)}
    return {name for name in names if not name.startswith("_")}


def unexercised(rooms: Mapping[str, str], tests: str) -> list[str]:
    """List the modules of a folder that its tests name neither by path nor by a public name."""
    words = set(re.findall(r"\w+", tests))
    return [
        module
        for module, source in rooms.items()
        if not re.search(rf"\b{re.escape(module)}\b", tests) and not words & public_names(source)
    ]


def folders_of_rooms() -> dict[str, dict[str, str]]:
    """Every module of the library by the test folder that answers to it: folder -> name -> text."""
    found: dict[str, dict[str, str]] = {}
    for path in python_files(*LIBRARY):
        parts = path.with_suffix("").parts
        parts = parts[1:] if parts[0] == "spikeformer_lt" else parts
        if parts[-1].startswith("__"):  # doors and mains
            continue
        name = path.stem if parts[0] == "recipes" else ".".join(parts)
        found.setdefault(parts[0] if len(parts) > 1 else "", {})[name] = text_of(path)
    return found


@pytest.mark.parametrize("folder", sorted(folders_of_rooms()))
def test_every_room_is_exercised_by_a_test_of_its_folder(folder: str) -> None:
    tests = [
        text_of(path)
        for path in python_files("tests")
        if path.name.startswith("test_")
        and (path.parts[1] == folder if folder else len(path.parts) == 2)
    ]
    assert any(re.search(r"^\s*def test_", text, re.MULTILINE) for text in tests)
    assert not unexercised(folders_of_rooms()[folder], "\n".join(tests))


def test_a_room_that_no_test_names_is_found() -> None:
    rooms = {"layers.norm": "class Norm: ...\ndef _fold(): ...\n", "layers.lif": "class LIF: ...\n"}
    assert unexercised(rooms, "from spikeformer_lt.layers import LIF") == ["layers.norm"]
    assert unexercised(rooms, "import spikeformer_lt.layers.norm; LIF()") == []


def test_a_file_is_named_for_what_it_holds() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in python_files(*CODE, "tests") if path.stem.strip("_") in vague]


def through_no_door(source: str) -> list[str]:
    """List the imports of our package that use another place than a door, or a name it lacks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            parts = [alias.name.partition(".") for alias in node.names]
            found += [
                f"{top}.{place}"
                for top, _, place in parts
                if top == "spikeformer_lt" and place not in {"", *DOORS, *ENTRIES}
            ]
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
            "spikeformer_lt"
        ):
            continue
        _, _, place = (node.module or "").partition(".")
        if place.partition(".")[0] in ENTRIES:
            continue
        if place not in {"", *DOORS}:
            found.append(f"{node.module}")
            continue
        shown = {*getattr(importlib.import_module(node.module or ""), "__all__", ())}
        shown |= {*DOORS, *ENTRIES} if not place else set()
        found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in shown]
    return found


def guides() -> list[Path]:
    """The pages that show Python to users, and the recipes."""
    pages = [path for path in committed() if path.suffix == ".md" and path.parts[0] != "tests"]
    return [*pages, *python_files("recipes")]


@pytest.mark.parametrize("path", guides(), ids=str)
def test_users_are_shown_doors_only(path: Path) -> None:
    blocks = [text_of(path)]
    if path.suffix == ".md":
        fence = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
        blocks = [textwrap.dedent(block) for _, block in fence.findall(text_of(path))]
    assert not [fault for block in blocks for fault in through_no_door(block)]


def test_an_import_beside_the_door_is_found() -> None:
    assert through_no_door("from spikeformer_lt.layers.neuron import LIF") == [
        "spikeformer_lt.layers.neuron"
    ]
    assert through_no_door("import spikeformer_lt.mask") == ["spikeformer_lt.mask"]
    assert through_no_door("from spikeformer_lt import mask") == ["spikeformer_lt.mask"]
    assert through_no_door("from spikeformer_lt import no_such") == ["spikeformer_lt.no_such"]
    assert through_no_door("import spikeformer_lt.layers") == []
    assert through_no_door("import spikeformer_lt as lt\nfrom spikeformer_lt import Mask") == []


@pytest.mark.parametrize("door", ["", *DOORS])
def test_a_door_lists_names_that_it_has(door: str) -> None:
    module = importlib.import_module(f"spikeformer_lt.{door}".rstrip("."))
    names = module.__all__
    assert names and len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    assert not [name for name in names if not hasattr(module, name)]
    assert set(names) <= set(dir(module))


def banned(source: str) -> list[str]:
    """List what ruff's rules cannot see; pyproject.toml bans the rest."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append("torch.load without weights_only=True runs whatever the file says")
            if name.endswith(".load") and given.get("allow_pickle", "False") != "False":
                found.append("allow_pickle=True runs whatever the file says")
            if name.endswith(".cuda") and name != "torch.cuda":
                found.append(".cuda(): accelerate chooses the device, use .to(device)")
            if re.fullmatch(r".+\.data\.\w+[a-z]_", name):
                found.append("Tensor.data hides the write from autograd: use torch.no_grad()")
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [ast.unparse(target) for target in targets]
            if any(re.fullmatch(r"(?!self\.data$).+\.data(\[.*\])?", name) for name in names):
                found.append("Tensor.data hides the write from autograd: use torch.no_grad()")
    return found


@pytest.mark.parametrize("folder", CODE)
def test_no_banned_call(folder: str) -> None:
    calls = {str(path): banned(text_of(path)) for path in python_files(folder)}
    assert calls
    assert not {path: found for path, found in calls.items() if found}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "model.cuda()",
        "x.to(y).cuda(0)",
        "layer.weight.data.mul_(mask)",
        "layer.weight.data *= mask",
        "layer.weight.data[0] = 0",
        "p.data = q",
    ],
)
def test_a_planted_banned_call_is_found(source: str) -> None:
    assert len(banned(source)) == 1


def test_an_allowed_call_is_let_through() -> None:
    allowed = "torch.load(path, weights_only=True); torch.cuda.is_available(); self.data = data"
    assert banned(f"{allowed}; cfg.data.name; np.load(path, allow_pickle=False)") == []


def test_no_large_binary_outside_golden_and_results() -> None:
    large = {
        str(path): size
        for path in committed()
        if path.suffix in BINARIES
        and not str(path.as_posix()).startswith(BINARY_HOMES)
        and (size := (ROOT / path).stat().st_size) > BINARY_LIMIT
    }
    assert not large


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    own = re.compile(r"(?<![\w.}])/(?:home|root|work|Users)/\w+")
    found = {
        f"{path}: {match.group()}"
        for path in committed()
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".cff", ".sh"}
        for match in own.finditer((ROOT / path).read_text())
    }
    assert not found


def test_ci_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    # The tests come last and replace the shell: nothing is printed after pytest's summary.
    assert text.rstrip().splitlines()[-1].startswith("exec make") and "test" in text


def test_what_contributors_are_told_is_there() -> None:
    text, made = text_of(Path("CONTRIBUTING.md")), text_of(Path("Makefile"))
    targets = set(re.findall(r"^([\w-]+):", made, re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)", text))
    assert named and named <= targets
    assert f"at most {TEST_LINES} lines to a line of the library" in " ".join(text.split())
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    (line,) = re.findall(r"^SLOW_LINE := (.*)$", made, re.MULTILINE)
    assert len(re.findall(rf"^{re.escape(line)} .+$", text, re.MULTILINE)) == 1
