"""The shape of the repository: links, packages, mirrors, sizes, and calls that nobody may write."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("spikeformer_lt", "models", "datasets")
CODE = (*LIBRARY, "recipes", "benchmarks")
LINKED = ("models", "datasets")

LIBRARY_LINES = 250
RECIPE_LINES = 120
BINARY_LIMIT = 500_000  # bytes; more than that in a clone needs a reason
BINARIES = {".safetensors", ".pkl", ".pickle", ".pt", ".pth", ".tar", ".bin", ".npz", ".npy", ".h5"}
BINARY_HOMES = ("tests/golden", "docs/results")
# Library files without a test file of their own name, and why. Empty is the aim.
UNTESTED: dict[str, str] = {}


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
    for folder in LIBRARY:
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root).parent.parts
            found.add(
                ".".join(parts if parts[0] == "spikeformer_lt" else ("spikeformer_lt", *parts))
            )
    return found


def test_the_hand_written_package_list_equals_the_tree() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert config["packages"] == sorted(set(config["packages"]))
    assert set(config["packages"]) == packages_of(ROOT)
    assert config["package-dir"] == {
        "spikeformer_lt": "spikeformer_lt",
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


def mirror(path: Path) -> Path:
    """Test file of a library file: spikeformer_lt/a/b.py -> tests/a/test_b.py."""
    parts = path.parts[1:] if path.parts[0] == "spikeformer_lt" else path.parts
    return Path("tests", *parts[:-1], f"test_{path.stem.strip('_')}.py")


def test_every_library_file_has_a_test_file_that_tests() -> None:
    lacking = []
    for path in python_files(*LIBRARY):
        if path.name == "__init__.py":  # doors: they hold names, and test_floors.py reads them
            continue
        test = ROOT / mirror(path)
        if not (test.is_file() and re.search(r"^\s*def test_", test.read_text(), re.MULTILINE)):
            lacking.append(str(path))
    assert sorted(lacking) == sorted(UNTESTED), f"no {[str(mirror(Path(p))) for p in lacking]}"


def test_every_recipe_is_run_by_a_test() -> None:
    tests = [ROOT / path for path in python_files("tests") if path.parts[1] == "recipes"]
    text = "\n".join(path.read_text() for path in tests)
    recipes = [path for path in python_files("recipes") if path.name != "__init__.py"]
    assert recipes
    assert not [str(path) for path in recipes if not re.search(rf"\b{path.stem}\b", text)]


def test_a_file_holds_one_thing() -> None:
    limits = dict.fromkeys(python_files(*LIBRARY), LIBRARY_LINES)
    limits |= dict.fromkeys(python_files("recipes"), RECIPE_LINES)
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in limits}
    too_long = {str(path): count for path, count in lines.items() if count > limits[path]}
    assert not too_long, "past its limit a file holds two things: split it"


def test_a_file_is_named_for_what_it_holds() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
    found = [
        p
        for p in python_files(*CODE)
        if p.stem in vague and str(p) != "spikeformer_lt/tickets/base.py"
    ]
    assert not found


def _keywords(node: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}


def _restricted_readers(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """Classes that unpickle, and decide themselves which names a file may call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            if bases & {"pickle.Unpickler", "Unpickler"} and "find_class" in methods:
                yield node


def _call_fault(node: ast.Call) -> str | None:
    name, given = ast.unparse(node.func), _keywords(node)
    tail = name.rpartition(".")[2]
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True runs whatever the file says"
    if name in {"torch.save", "pickle.dump", "pickle.dumps"}:
        return f"{name}: tensors are saved as safetensors only"
    if name in {"pickle.load", "pickle.loads", "pickle.Unpickler", "Unpickler", "joblib.load"}:
        return f"{name}: unpickling goes through the restricted reader"
    if name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"} and "Safe" not in str(given):
        return f"{name}: use yaml.safe_load, or a loader derived from SafeLoader"
    if tail == "load" and given.get("allow_pickle") == "True":
        return "allow_pickle=True runs whatever the file says"
    if tail == "cuda" and name != "torch.cuda":
        return ".cuda(): the device is accelerate's to choose, use .to(device)"
    if given.get("shell") == "True" or name in {"os.system", "eval", "exec"}:
        return f"{name}: runs text as a program"
    if re.fullmatch(r".+\.data\.\w+[a-z]_", name):
        return "Tensor.data hides the write from autograd: use torch.no_grad()"
    return None


def banned(source: str) -> list[str]:
    """List the banned statements of one file, each with its line."""
    tree = ast.parse(source)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (fault := _call_fault(node)):
            found.append((node.lineno, fault))
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append((node.lineno, f"from {node.module} import *"))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names.add(getattr(node, "module", None) or "")
            if names & {"pickle", "cPickle", "dill", "cloudpickle"} and not any(
                _restricted_readers(tree)
            ):
                found.append((node.lineno, "pickle, without a find_class that restricts it"))
        elif isinstance(node, ast.Assign):
            targets = [ast.unparse(target) for target in node.targets]
            found += [
                (node.lineno, f"{target} = ...: Tensor.data hides the write from autograd")
                for target in targets
                if target.endswith(".data") and not target.startswith("self.")
            ]
    return [f"line {line}: {fault}" for line, fault in sorted(found)]


@pytest.mark.parametrize("path", python_files(*CODE), ids=str)
def test_no_banned_call(path: Path) -> None:
    assert banned((ROOT / path).read_text()) == []


def test_there_is_at_most_one_restricted_reader() -> None:
    files = [
        p
        for p in python_files(*CODE)
        if any(_restricted_readers(ast.parse((ROOT / p).read_text())))
    ]
    assert len(files) <= 1, files


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.save(model, path)",
        "import pickle",
        "from pickle import loads",
        "pickle.load(file)",
        "from torch import *",
        "model.cuda()",
        "x.to(y).cuda(0)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
        "layer.weight.data.mul_(mask)",
        "p.data = q",
    ],
)
def test_a_planted_banned_call_is_found(source: str) -> None:
    assert len(banned(f"def f():\n    {source}" if "import" not in source else source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "torch.cuda.is_available()",
        "yaml.safe_load(text)",
        "self.data = data",
        "cfg.data.name",
        "import pickle\nclass R(pickle.Unpickler):\n    def find_class(self, a, b): raise",
        "model.eval()",
    ],
)
def test_an_allowed_call_is_let_through(source: str) -> None:
    assert banned(source) == []


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
