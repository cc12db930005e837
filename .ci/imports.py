"""Check the import contracts of pyproject.toml: python .ci/imports.py [ROOT].

grimp follows no links and needs an ``__init__.py``, so the linter reads a copy of the sources in
which spikeformer_lt/models, datasets and recipes are ordinary packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LINKED = ("models", "datasets", "recipes")


def copy_sources(root: Path, target: Path) -> None:
    """Copy every Python file of the library to `target`/spikeformer_lt as one plain package."""
    only = shutil.ignore_patterns("__pycache__", *LINKED)
    shutil.copytree(root / "spikeformer_lt", target / "spikeformer_lt", ignore=only)
    for name in LINKED:
        package = target / "spikeformer_lt" / name
        shutil.copytree(root / name, package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / "__init__.py").touch()
    shutil.copy(root / "pyproject.toml", target)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter in a folder that `copy_sources` made."""
    code = "import sys; from importlinter.cli import lint_imports_command as run; run(sys.argv[1:])"
    command = [sys.executable, "-P", "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def main(root: Path) -> int:
    """Print the linter's report if a contract is broken; return its exit status."""
    with tempfile.TemporaryDirectory(prefix="imports-") as name:
        copy_sources(root, Path(name))
        ended = lint(Path(name))
    if ended.returncode:
        print(ended.stdout, ended.stderr, sep="\n", file=sys.stderr)
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()))
