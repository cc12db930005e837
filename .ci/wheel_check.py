"""Build the sdist and the wheel, install the wheel elsewhere, and use it there.

python .ci/wheel_check.py                       # build, install, import: half a minute
python .ci/wheel_check.py --release             # also metadata, types, and every command from there
python .ci/wheel_check.py --release --borrow    # the same without an index of packages

The second environment lies outside the checkout. For a release pip installs the wheel there with
its dependencies, as a user's does (6 GB in TMPDIR; PIP_EXTRA_INDEX_URL may name an index of smaller
ones). Else, and where no index answers, which is said, a ``.pth`` line lends it those of the
environment that runs this file; ``.pth`` files inside that folder are not read then, so that the
editable install cannot stand in for the wheel.
"""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Sequence
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
ls datasets
completion bash
evaluate --run spikformer_digits --cpu
run multisp_cifar {SMALL} --multisp.epochs 2 --multisp.stem-epochs 1 --run.out runs/first
evaluate --run runs/first --cpu
export --run runs/first --out ticket --license mit
predict ticket zero.png one.png --json
bench ticket --calls 3
report --runs runs/first --out page
energy --runs runs/first ticket
push ticket me/ticket
compare --searches random snip --sparsities 0.9 --seeds 0 --epochs 2 --options="{SMALL}" --out both
find snip {SMALL} --epochs 1 --sparsity 0.9 --snip.images 64 --run.out runs/snip
reproduce 2311-tab1 --dry-run
watch runs
cp multisp_cifar mine.py
run mine.py {SMALL} --multisp.epochs 1 --multisp.stem-epochs 1 --run.out runs/mine
convert --source published.pth --model spikformer_toy --out converted
export --run converted --out converted-ticket --data digits
events write gestures --form npy --limit-train 3 --limit-test 2
events check gestures --data dvs128_gesture
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


PUBLISHED = """
import runpy, sys
import torch
from spikeformer_lt import create_model

known = runpy.run_path(sys.argv[1])["published"](create_model("spikformer_toy", num_classes=10))
torch.save({"state_dict": known}, sys.argv[2])
"""
LOADED = """
import spikeformer_lt as lt

found = lt.from_pretrained("me/ticket").predict("zero.png")
assert len(found) == 1 and found == lt.load_exported("ticket").predict("zero.png"), found
print(found)
"""
MISTAKE = "\nwrong: int = lt.create_model('spikformer_toy')\n"
SHORT = {
    "import spikeformer_lt": ("python -P -c 'import spikeformer_lt'", 0.3),
    "spikeformer-lt --help": ("spikeformer-lt --help", 0.5),
    "spikeformer-lt find imp --help": ("spikeformer-lt find imp --help", 0.5),
    "the first accuracy": ("spikeformer-lt evaluate --run spikformer_digits", 15),
}
"""Commands of the installed wheel, and the seconds that each may take."""


def run(what: str, *command: str | Path, cwd: Path, **more: str) -> None:
    """Run one command away from the checkout; all its output is shown only when it fails."""
    print(what, flush=True)
    done = ended(*command, cwd=cwd, **more)
    if done.returncode:
        sys.exit(f"{done.stdout}wheel check failed at: {what}")
    if last := done.stdout.strip().splitlines()[-1:]:
        print(f"  {last[0]}", flush=True)


def ended(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command with `more` of an environment, and return it with all its output."""
    ours = ("PYTHON", "NUMBA_CACHE_DIR", "HF_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.run(
        command,
        cwd=cwd,
        env=env | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def borrows(pip: Sequence[str], cwd: Path) -> bool:
    """Tell whether dependencies are to be borrowed, and say why."""
    asked = "--borrow" in sys.argv[1:]
    probe = ["download", "--no-deps", "--no-cache-dir", "--retries=0", "--timeout=10", "einops"]
    if asked or ended(*pip, *probe, cwd=cwd).returncode:
        why = "--borrow" if asked else "no index of packages answers"
        print(
            f"NOTICE: dependencies are borrowed from {sys.prefix} ({why}): this run does not show"
        )
        print("        that those which the wheel names are enough")
        return True
    return False


def check_types(here: Sequence[str], python: Path, folder: Path) -> None:
    """A user's script passes ``mypy --strict`` against the installed wheel; a mistake does not."""
    script = folder / "user_script.py"
    source = (ROOT / "tests" / "user_script.py").read_text("utf-8")
    how = [
        "--strict",
        "--config-file=",
        "--ignore-missing-imports",
        f"--cache-dir={folder / 'mypy'}",
    ]
    command = [*here, "mypy", *how, "--python-executable", python, script]
    script.write_text(source + MISTAKE)
    said = ended(*command, cwd=folder).stdout
    if "Found 1 error in 1 file" not in said:
        sys.exit(f"{said}wheel check failed: mypy does not see the types of the installed wheel")
    script.write_text(source)
    run("Checking the types of a user's script by mypy --strict", *command, cwd=folder)


def check_short(programs: Path, cwd: Path) -> None:
    """What a user waits for first is quick: processor seconds, the best of five."""
    for what, (line, limit) in SHORT.items():
        first, *words = shlex.split(line)
        spans = []
        for _ in range(5):
            start, before = time.monotonic(), os.times()
            done = ended(programs / first, *words, cwd=cwd)
            after = os.times()
            spans.append((sum(after[2:4]) - sum(before[2:4]), time.monotonic() - start))
            if done.returncode:
                sys.exit(f"{done.stdout}wheel check failed at: {line}")
        busy, clock = map(min, zip(*spans, strict=True))
        print(
            f"{what}: {busy:.2f} s of a processor, {clock:.2f} s by the clock"
            f" (the first call {spans[0][0]:.2f} and {spans[0][1]:.2f} s)",
            flush=True,
        )
        if busy > limit:
            sys.exit(f"wheel check failed: {what} takes more than {limit} s")


def use(here: Sequence[str], programs: Path, folder: Path) -> None:
    """Run every command of the console in an empty folder, against a stub of the hub."""
    work, python, program = folder / "work", programs / "python", programs / "spikeformer-lt"
    work.mkdir()
    run("Drawing two pictures", python, "-P", "-c", PICTURES, cwd=work)
    names = ROOT / "tests" / "recipes" / "test_convert.py"
    published = [*here[:-1], "-c", PUBLISHED, names, work / "published.pth"]
    run("Writing a checkpoint with the published names", *published, cwd=folder)
    with runpy.run_path(str(ROOT / "tests" / "hub.py"))["Hub"]() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_stub", "HOME": str(folder)}
        lines = COMMANDS.strip().splitlines()
        for line in lines:
            run(f"spikeformer-lt {line}", program, *shlex.split(line), cwd=work, **env)
        run("from_pretrained", python, "-P", "-c", LOADED, cwd=work, **env)
        hub.shutdown()
    known = set(ended(program, "complete", "", cwd=work).stdout.split())
    if left := known - {line.split()[0] for line in lines}:
        sys.exit(f"wheel check failed: it ran no {', '.join(sorted(left))}")


def main() -> None:
    """Build, install, import; any failure is a non-zero exit status."""
    start, release = time.monotonic(), "--release" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name).resolve()
        if ROOT in folder.parents:
            sys.exit(f"TMPDIR is inside the checkout ({folder}): the check would prove nothing")
        here = [sys.executable, "-P", "-m"]
        lent = not release or borrows([*here, "pip"], folder)
        builder = ["build", "--no-isolation"] if release and lent else ["build"]
        run(
            "Building the sdist, and the wheel from the sdist (half a minute)",
            *[*here, *builder, "--outdir", folder / "dist", ROOT],
            cwd=folder,
        )
        (wheel,) = (folder / "dist").glob("*.whl")

        venv.create(folder / "venv", with_pip=False)
        programs = folder / "venv" / "bin"
        pip = [*here, "pip", "--python", str(programs / "python")]
        if lent:
            places = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
            site = Path(sysconfig.get_path("purelib", "venv", vars=places))
            (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        how = ["--no-deps", "--no-index"] if lent else []
        what = f"Installing {wheel.name} in a fresh environment"
        what += "" if lent else " with its dependencies (minutes)"
        run(what, *pip, "install", "--quiet", *how, wheel, cwd=folder)
        run("Importing it from there", programs / "python", "-P", "-c", INSIDE, ROOT, cwd=folder)
        if release:
            print(f"  {time.monotonic() - start:.0f} s until here", flush=True)
            files = sorted((folder / "dist").iterdir())
            run("Reading the metadata", *here, "twine", "check", "--strict", *files, cwd=folder)
            check_types(here, programs / "python", folder)
            check_short(programs, folder)
            use(here, programs, folder)
    print(f"The wheel works ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
