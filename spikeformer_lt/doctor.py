"""``python -m spikeformer_lt.doctor``: what is installed, found and wrong, each with its fix.

Exit status: 0 where everything needed works, 1 where something does not.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt.runtime import cpu_count, installed_version
from spikeformer_lt.usage import Parser

NEEDED = {
    **{name: name for name in ("torch", "torchvision", "timm", "numpy", "spikingjelly", "einops")},
    **{name: name for name in ("tonic", "numba", "accelerate", "safetensors", "matplotlib")},
    **{"tqdm": "tqdm", "tyro": "tyro", "jinja2": "jinja2"},
    **{"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"},
    **{"huggingface_hub": "huggingface_hub"},
}
"""Module that must load -> the package that has it."""
EXTRAS = {
    **{"tensorboard": "trackers", "onnx": "onnx", "onnxruntime": "onnx"},
    **{"nir": "nir", "lz4": "aedat", "zstandard": "aedat", "h5py": "hdf5"},
}
"""Optional module -> the extra that brings it."""
TORCH_MINORS = range(11, 16)
PAIR_OFFSET = 15
"""torchvision 0.(n + 15) is built for torch 2.n."""
DISK_GB = 2.0
DEPTH, MOST_FOLDERS = 4, 500
"""How far data sets are looked for below the folder that was given."""
HELP = """
Look at this installation, its data and its processes; print what to do.

%(prog)s
%(prog)s --data /srv/data    # which of its data sets can be opened
%(prog)s --no-data           # packages, threads and disk alone
"""
INSTALL = "pip install --constraint constraints.txt --editable ."


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is empty where nothing is to be done."""

    state: str
    """ok, note or FAIL."""
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.state:4}  {self.what:17}  {self.found}"
        return f"{line}\n{'':25}fix: {self.fix}" if self.fix else line


def check_imports(modules: Mapping[str, str] = NEEDED) -> Iterator[Finding]:
    """Import what is needed: a version that is installed may still fail to load."""
    for module, package in modules.items():
        found = Finding("ok", package, version_of(package))
        try:
            importlib.import_module(module)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as fault:  # torchvision raises RuntimeError, a Rust wheel may panic
            words = (str(fault).splitlines() or [type(fault).__name__])[0]
            found = Finding("FAIL", package, words, INSTALL)
        yield found


def check_pair(torch_version: str, vision_version: str) -> Finding:
    """Whether torch and torchvision belong together, and are of a range that is tested."""
    both = (torch_version, vision_version)
    one, other = (re.match(r"(\d+)\.(\d+)", version) for version in both)
    builds = {re.sub(r"\d+$", "", version.partition("+")[2]) for version in both} - {""}
    minor = int(one[2]) if one else 0
    state, words = "FAIL", ""
    if one is None or other is None:
        words = ": no version numbers"
    elif (int(other[1]), int(other[2])) != (0, minor + PAIR_OFFSET):
        words = f": torchvision 0.{minor + PAIR_OFFSET} for torch 2.{minor} is needed"
    elif len(builds) > 1:
        words = ": one is of another build"
    elif one[1] != "2" or minor not in TORCH_MINORS:
        state = "note"
        words = f"; tested with 2.{TORCH_MINORS.start} to 2.{TORCH_MINORS.stop - 1}"
    else:
        state, words = "ok", ": matched"
    found = f"torch {torch_version}, torchvision {vision_version}{words}"
    return Finding(state, "torch pair", found, "" if state == "ok" else INSTALL)


def check_extras(extras: Mapping[str, str] = EXTRAS) -> Iterator[Finding]:
    """Which optional packages are there; none is needed to train."""
    for module, extra in extras.items():
        if importlib.util.find_spec(module) is not None:
            yield Finding("ok", module, version_of(module))
            continue
        fix = f"pip install 'spikeformer_lt[{extra}]' (only if you use it)"
        yield Finding("note", module, "not installed", fix)


def check_threads(threads: int, cpus: int, omp: str | None) -> Finding:
    """How many CPU threads a run would use."""
    fix = f"export OMP_NUM_THREADS={cpus}" if threads > cpus else ""
    if threads < cpus:
        fix = f"OMP_NUM_THREADS={cpus}, or accelerate launch --num_cpu_threads_per_process {cpus}"
    found = f"{threads} of {cpus} CPUs (OMP_NUM_THREADS {omp or 'not set'})"
    return Finding("note" if fix else "ok", "threads", found, fix)


def check_disk(folder: Path, need_gb: float = DISK_GB) -> Finding:
    """Free space where runs are written."""
    free = shutil.disk_usage(folder).free / 1e9
    fix = "give another disk by --run.out DIR" if free < need_gb else ""
    return Finding("note" if fix else "ok", "disk", f"{free:.1f} GB free in {folder}", fix)


def check_data(root: str) -> Iterator[Finding]:
    """Open every registered data set in `root`, or say in which folder below it is; no network.

    Sets whose folder or class a user names, such as image_folder, are left out.
    """
    from spikeformer_lt.errors import SpikeformerError
    from spikeformer_lt.registry import create_dataset, list_datasets

    for name in (n for n in list_datasets() if n not in ("event_folder", "image_folder", "tonic")):
        try:
            made = create_dataset(name, root=root)
            found = f"{len(made.train)} train, {len(made.val)} val, {len(made.test)} test"
            yield Finding("ok", name, f"{found} (split {made.split_sha256[:12]})")
        except SpikeformerError as fault:
            fix = re.sub(r" \((\d+ bytes, )?md5 [^)]*\)", "", str(fault).splitlines()[0])
            asked, where = fix.partition("Put there")[2], f"not in {root}/"
            below = find_below(Path(root), set(re.findall(r"[\w.-]{4,}", asked)))
            if below is not None:
                fix = f"--data.name {name} --data.root {below}"
                where += f" itself, perhaps in {below}/"
            yield Finding("note", name, where, fix)


def find_below(root: Path, names: set[str]) -> Path | None:
    """First folder below `root` that holds a file or folder of one of these names.

    At most `DEPTH` levels and `MOST_FOLDERS` folders are looked at: a data set may hold a million.
    """
    waiting = deque([(root, 1)])
    for _ in range(MOST_FOLDERS):
        if not waiting:
            break
        folder, depth = waiting.popleft()
        with contextlib.suppress(OSError):
            entries = sorted(folder.iterdir())
            if folder != root and any(entry.name in names for entry in entries):
                return folder
            if depth < DEPTH:
                below = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
                waiting.extend((entry, depth + 1) for entry in below)
    return None


def check_world(env: Mapping[str, str], gpus: int) -> Finding:
    """How many processes there would be, and whether a launcher was asked for more."""
    world = env.get("WORLD_SIZE", "1")
    found, fix = f"{world} process(es), {gpus} CUDA device(s)", ""
    if "WORLD_SIZE" not in env and "MASTER_ADDR" in env:
        found += ", but a launcher set an address"
        fix = "torchrun --nproc_per_node N recipes/... (accelerate starts one process on a CPU)"
    elif gpus > 1 and world == "1":
        fix = f"accelerate launch --multi_gpu --num_processes {gpus} recipes/..."
    return Finding("note" if fix else "ok", "world size", found, fix)


def version_of(package: str) -> str:
    """Installed version, or words where a module comes without metadata."""
    return installed_version(package) or "present, version unknown"


def examine(root: str = "data", data: bool = True) -> Iterator[Finding]:
    """Every check, in order."""
    yield Finding("ok", "python", platform.python_version())
    yield from (imports := list(check_imports()))
    broken = {finding.what for finding in imports if finding.state == "FAIL"}
    if "torch" not in broken:
        import torch

        yield check_pair(str(torch.__version__), version_of("torchvision"))
        omp = os.environ.get("OMP_NUM_THREADS")
        yield check_threads(torch.get_num_threads(), cpu_count(), omp)
        yield check_world(os.environ, torch.cuda.device_count())
    yield from check_extras()
    yield check_disk(Path.cwd())
    if data and not broken:
        yield from check_data(root)


def main(argv: Sequence[str] | None = None, prog: str = "python -m spikeformer_lt.doctor") -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog=prog, description=HELP)
    parser.add_argument("--data", metavar="DIR", default="data", help="folder of data sets")
    parser.add_argument("--no-data", action="store_true", help="do not open any data set")
    options = parser.parse_args(argv)
    failed = 0
    for finding in examine(options.data, not options.no_data):
        print(finding, flush=True)
        failed += finding.state == "FAIL"
    print(f"{failed} thing(s) to repair" if failed else "everything that is needed works")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
