"""Build the sdist and the wheel, install the wheel elsewhere, and use it there.

python .ci/wheel_check.py              # build, install, import: half a minute
python .ci/wheel_check.py --release    # also the metadata, and the console's commands from there

The second environment lies outside the checkout and gets the wheel alone. A ``.pth`` line lends it
the dependencies of the environment that runs this file; ``.pth`` files inside that folder are not
read then, so the editable install cannot stand in for the wheel.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

INSIDE = """
import importlib.metadata, importlib.util, pathlib, re, sys

import spikeformer_lt
from spikeformer_lt import list_datasets, list_models, list_searches

home = pathlib.Path(sys.prefix).resolve()
package = pathlib.Path(spikeformer_lt.__file__).resolve()
assert home in package.parents, f"{package} is not in {home}: another copy was imported"

files = importlib.metadata.files("spikeformer_lt")
commands = {path.name for path in files if path.parts[0] == ".."}
assert commands == {"spikeformer-lt"}, f"the wheel's commands are {sorted(commands)}"
top = {path.parts[0] for path in files} - {".."}
foreign = {name for name in top if name.split("-")[0] != "spikeformer_lt"}
assert not foreign, f"the wheel also installed {sorted(foreign)}"
for name in ("models", "datasets", "recipes", "tests"):
    found = importlib.util.find_spec(name)
    places = list(found.submodule_search_locations or [found.origin]) if found else []
    assert not any(str(home) in str(place) for place in places), f"top-level {name}: {places}"
assert (package.parent / "py.typed").is_file(), "py.typed is missing: users would get no types"

root = pathlib.Path(sys.argv[1])
linked = [path.name for path in (root / "spikeformer_lt").iterdir() if path.is_symlink()]
assert {"models", "datasets"} <= set(linked), f"spikeformer_lt/ links to {linked} only"
for folder in ("spikeformer_lt", *linked):
    for source in sorted((root / folder).rglob("*.py")):
        target = source.relative_to(root)
        if folder != "spikeformer_lt":
            target = "spikeformer_lt" / target
        assert (package.parents[1] / target).is_file(), f"the wheel lacks {target}"

about = importlib.metadata.metadata("spikeformer_lt").get_payload()
links = re.findall(r"\\]\\(([^)]*)\\)", about)
assert links and all(link.startswith("https://") for link in links), f"dead links: {links}"
assert "spikeformer-lt evaluate" in about, "the description names no command"

shelves = {"models": list_models(), "datasets": list_datasets(), "searches": list_searches()}
for shelf, names in shelves.items():
    assert names, f"list_{shelf}() is empty in the installed wheel"
print(", ".join(f"{len(names)} {shelf}" for shelf, names in shelves.items()), "in the wheel")
"""

SMALL = "--data.name digits --data.limit-train 200 --data.limit-test 60 --train.cpu"
COMMANDS = f"""
ls models
evaluate --run spikformer_digits --cpu
run multisp_cifar {SMALL} --multisp.epochs 2 --multisp.stem-epochs 1 --run.out runs/first
evaluate --run runs/first --cpu
export --run runs/first --out ticket
predict ticket zero.png one.png --json
bench ticket --calls 3
report --runs runs/first --out page
energy --runs runs/first ticket
compare --searches random snip --sparsities 0.9 --seeds 0 --epochs 2 --options="{SMALL}" --out both
find snip {SMALL} --epochs 1 --sparsity 0.9 --snip.images 64 --run.out runs/snip
reproduce 2311-tab1 --dry-run
watch runs
cp multisp_cifar mine.py
run mine.py {SMALL} --multisp.epochs 1 --multisp.stem-epochs 1 --run.out runs/mine
doctor
"""
"""What a user does after an installation, in an empty folder."""
PICTURES = """
import sys
from PIL import Image
from sklearn.datasets import load_digits

for image, name in zip(load_digits().images, ("zero", "one")):
    Image.fromarray((image * 15.9).astype("uint8")).resize((16, 16)).save(f"{name}.png")
"""


def run(what: str, *command: str | Path, cwd: Path) -> None:
    """Run one command away from the checkout; all its output is shown only when it fails."""
    print(what, flush=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}wheel check failed at: {what}")
    if last := done.stdout.strip().splitlines()[-1:]:
        print(f"  {last[0]}", flush=True)


def main() -> None:
    """Build, install, import; any failure is a non-zero exit status."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name).resolve()
        if ROOT in folder.parents:
            sys.exit(f"TMPDIR is inside the checkout ({folder}): the check would prove nothing")
        here = [sys.executable, "-P", "-m"]
        run(
            "Building the sdist, and the wheel from the sdist (half a minute)",
            *[*here, "build", "--outdir", folder / "dist", ROOT],
            cwd=folder,
        )
        (wheel,) = (folder / "dist").glob("*.whl")

        venv.create(folder / "venv", with_pip=False)
        python = folder / "venv" / "bin" / "python"
        run(
            f"Installing {wheel.name} in a fresh environment",
            *[*here, "pip", "--python", python, "install", "--quiet"],
            *["--no-deps", "--no-index", wheel],
            cwd=folder,
        )
        places = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        site = Path(sysconfig.get_path("purelib", "venv", vars=places))
        (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")

        run("Importing it from there", python, "-P", "-c", INSIDE, ROOT, cwd=folder)
        if "--release" in sys.argv[1:]:
            files = sorted((folder / "dist").iterdir())
            run("Reading the metadata", *here, "twine", "check", "--strict", *files, cwd=folder)
            work = folder / "work"
            work.mkdir()
            run("Drawing two pictures", python, "-P", "-c", PICTURES, cwd=work)
            for line in COMMANDS.strip().splitlines():
                words = shlex.split(line)
                program = folder / "venv" / "bin" / "spikeformer-lt"
                run(f"spikeformer-lt {line}", program, *words, cwd=work)
    print(f"The wheel works ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
