"""``python -m spikeformer_lt.doctor``: what is installed, found and wrong, each with its fix.

Exit status: 0 where everything needed works, 1 where something does not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt.runtime import cpu_count

NEEDED = {
    **{"torch": "torch", "torchvision": "torchvision", "timm": "timm", "numpy": "numpy"},
    **{"spikingjelly": "spikingjelly", "einops": "einops", "tonic": "tonic", "numba": "numba"},
    **{"accelerate": "accelerate", "safetensors": "safetensors", "sklearn": "scikit-learn"},
    **{"matplotlib": "matplotlib", "tqdm": "tqdm", "tyro": "tyro", "yaml": "pyyaml"},
    "jinja2": "jinja2",
}
EXTRAS = {
    **{"tensorboard": "trackers", "onnx": "onnx", "onnxruntime": "onnx"},
    **{"nir": "nir", "nirtorch": "nir", "lz4": "aedat", "zstandard": "aedat", "h5py": "hdf5"},
}
"""Optional module -> the extra that brings it."""
TORCH_MINORS = range(11, 16)
PAIR_OFFSET = 15
"""torchvision 0.(n + 15) is built for torch 2.n."""
DISK_GB = 2.0
DEPTH, MOST_FOLDERS = 4, 500
"""How far data sets are looked for below the folder that was given."""
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


def check_python() -> Finding:
    """Python's version; pip refuses to install below the oldest that is supported."""
    return Finding("ok", "python", platform.python_version())


def check_imports(modules: Mapping[str, str] = NEEDED) -> Iterator[Finding]:
    """Import what is needed: a version that is installed may still fail to load."""
    for module, package in modules.items():
        try:
            importlib.import_module(module)
        except BaseException as fault:  # torchvision raises RuntimeError, a Rust wheel may panic
            if isinstance(fault, (KeyboardInterrupt, SystemExit)):
                raise
            words = (str(fault).splitlines() or [type(fault).__name__])[0]
            yield Finding("FAIL", package, words, INSTALL)
        else:
            yield Finding("ok", package, version_of(package))


def check_pair(torch_version: str, vision_version: str) -> Finding:
    """Whether torch and torchvision belong together, and are of a range that is tested."""
    found = f"torch {torch_version}, torchvision {vision_version}"
    one, other = (re.match(r"(\d+)\.(\d+)", v) for v in (torch_version, vision_version))
    if one is None or other is None:
        return Finding("FAIL", "torch pair", found, INSTALL)
    minor = int(one[2])
    if (int(other[1]), int(other[2])) != (0, minor + PAIR_OFFSET):
        wanted = f"torchvision 0.{minor + PAIR_OFFSET} for torch 2.{minor}"
        return Finding("FAIL", "torch pair", f"{found}: {wanted} is needed", INSTALL)
    builds = {re.sub(r"\d+$", "", v.partition("+")[2]) for v in (torch_version, vision_version)}
    if len(builds - {""}) > 1:
        return Finding("FAIL", "torch pair", f"{found}: one is of another build", INSTALL)
    if one[1] != "2" or minor not in TORCH_MINORS:
        tested = f"tested with 2.{TORCH_MINORS.start} to 2.{TORCH_MINORS.stop - 1}"
        return Finding("note", "torch pair", f"{found}; {tested}", INSTALL)
    return Finding("ok", "torch pair", f"{found}: matched")


def check_extras(extras: Mapping[str, str] = EXTRAS) -> Iterator[Finding]:
    """Which optional packages are there; none is needed to train."""
    for module, extra in extras.items():
        if importlib.util.find_spec(module) is None:
            fix = f"pip install 'spikeformer_lt[{extra}]' (only if you use it)"
            yield Finding("note", module, "not installed", fix)
        else:
            yield Finding("ok", module, version_of(module))


def check_threads(threads: int, cpus: int, omp: str | None) -> Finding:
    """How many CPU threads a run would use."""
    found, fix = f"{threads} of {cpus} CPUs (OMP_NUM_THREADS {omp or 'not set'})", ""
    if threads > cpus:
        fix = f"export OMP_NUM_THREADS={cpus}"
    elif threads < cpus:
        fix = f"OMP_NUM_THREADS={cpus}, or accelerate launch --num_cpu_threads_per_process {cpus}"
    return Finding("note" if fix else "ok", "threads", found, fix)


def check_disk(folder: Path, need_gb: float = DISK_GB) -> Finding:
    """Free space where runs are written."""
    free = shutil.disk_usage(folder).free / 1e9
    fix = "give another disk by --run.out DIR" if free < need_gb else ""
    return Finding("note" if fix else "ok", "disk", f"{free:.1f} GB free in {folder}", fix)


def check_data(root: str) -> Iterator[Finding]:
    """Open every registered data set in `root`, or say in which folder below it is; no network."""
    from spikeformer_lt.errors import SpikeformerError
    from spikeformer_lt.registry import create_dataset, list_datasets

    for name in list_datasets():
        try:
            made = create_dataset(name, root=root)
        except SpikeformerError as fault:
            words = re.sub(r" \((\d+ bytes, )?md5 [^)]*\)", "", str(fault).splitlines()[0])
            asked = words.partition("Put there")[2]
            below = find_below(Path(root), set(re.findall(r"[\w.-]{4,}", asked)))
            if below is None:
                yield Finding("note", name, f"not in {root}/", words)
            else:
                fix = f"--data.name {name} --data.root {below}"
                yield Finding("note", name, f"not in {root}/ itself, perhaps in {below}/", fix)
        else:
            found = f"{len(made.train)} train, {len(made.val)} val, {len(made.test)} test"
            yield Finding("ok", name, f"{found} (split {made.split_sha256[:12]})")


def find_below(root: Path, names: set[str]) -> Path | None:
    """First folder below `root` that holds a file or folder of one of these names.

    At most `DEPTH` levels and `MOST_FOLDERS` folders are looked at: a data set may hold a million.
    """
    level, seen = [root], 0
    for _ in range(DEPTH):
        below: list[Path] = []
        for folder in level:
            try:
                entries = sorted(folder.iterdir())
            except OSError:
                continue
            seen += 1
            if folder != root and any(entry.name in names for entry in entries):
                return folder
            if seen < MOST_FOLDERS:
                below += [e for e in entries if e.is_dir() and not e.name.startswith(".")]
        level = below[:MOST_FOLDERS]
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
    """Installed version; empty words where a module comes without metadata."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "present, version unknown"


def examine(root: str = "data", data: bool = True) -> Iterator[Finding]:
    """Every check, in order."""
    yield check_python()
    imports = list(check_imports())
    yield from imports
    broken = {finding.what for finding in imports if finding.state == "FAIL"}
    if "torch" not in broken:
        import torch

        vision = version_of("torchvision")
        yield check_pair(str(torch.__version__), vision)
        omp = os.environ.get("OMP_NUM_THREADS")
        yield check_threads(torch.get_num_threads(), cpu_count(), omp)
        yield check_world(os.environ, torch.cuda.device_count())
    yield from check_extras()
    yield check_disk(Path.cwd())
    if data and not broken:
        yield from check_data(root)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m spikeformer_lt.doctor",
        description="Look at this installation, its data and its processes; print what to do.",
    )
    parser.add_argument("--data", default="data", help="folder of data sets (default: data)")
    parser.add_argument("--no-data", action="store_true", help="do not open any data set")
    options = parser.parse_args(argv)
    failed = 0
    for finding in examine(options.data, not options.no_data):
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
        failed += finding.state == "FAIL"
    words = f"{failed} thing(s) to repair" if failed else "everything that is needed works"
    sys.stdout.write(f"{words}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
