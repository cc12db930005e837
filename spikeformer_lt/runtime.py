"""What an import and a run do to the process, and what a run's numbers depend on besides options.

Importing this module shares one OpenMP runtime between torch and the kernels, whose threads wait
without spinning. Public names are imported when they are first used (PEP 562); deep imports that
README and docs printed at version 0.1.0.dev0 still work and say where the name is now.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import importlib.metadata
import logging
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from spikeformer_lt.errors import ConfigError

CPUINFO = Path("/proc/cpuinfo")  # Linux
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
PACKAGES = (
    "spikeformer_lt", "torch", "torchvision", "timm", "spikingjelly", "accelerate", "numpy",
    "numba", "safetensors", "scikit-learn", "tonic",
)  # fmt: skip
_LIBGOMP = "libgomp.so.1.0.0"  # the name by which numba asks for it
_TRIM, _MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
# Same numbers on another commit or under another command are what a resume is for.
_MAY_CHANGE = ("command", "git_commit", "git_clean", "cpu_count", "date")


def share_openmp() -> str:
    """Load the system's OpenMP before torch loads its own copy, so that both use this one.

    Idle threads of OpenMP spin, and those of two runtimes keep each other from the processor: one
    image through an exported ticket was measured at 13 to 30 % less time with one. Return
    "shared", or "own" with the reason.

    Raises:
        ConfigError: SPIKEFORMER_OPENMP is neither "share" nor "own".
    """
    if _mode("SPIKEFORMER_OPENMP", "share", "own") == "own":
        return "own (SPIKEFORMER_OPENMP)"
    if sys.platform != "linux":
        return "own (not Linux)"
    if "torch" in sys.modules:
        return "own (torch was imported first)"
    try:
        ctypes.CDLL(_LIBGOMP, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return f"own (no {_LIBGOMP})"
    return "shared"


def _mode(variable: str, usual: str, other: str) -> str:
    mode = os.environ.get(variable, usual)
    if mode not in (usual, other):
        raise ConfigError(f"{variable}={mode!r} is not allowed: {usual} or {other}")
    return mode


def wait_passively() -> str:
    """Let idle threads of GNU's OpenMP sleep at once, so that a busy processor is not kept busier.

    By default they spin for milliseconds, in the time of the thread that they wait for where
    another program runs beside. It must be asked for before the runtime is loaded; a choice in the
    environment stays. Return "passive", or the user's.
    """
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    os.environ["OMP_WAIT_POLICY"] = "passive"
    return "passive"


def threads_chosen(threads: int) -> bool:
    """Whether somebody chose this number of threads of torch: in the environment, or by a call."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return threads != cpu_count() or any(os.environ.get(name) for name in names)


WAITING = wait_passively()
OPENMP = share_openmp()
"""What was done when this package was imported, for the log."""


def keep_heap() -> str:
    """Tell the C library to keep freed memory; the whole process is concerned, peaks are not.

    By default glibc returns large blocks to the system, which zeroes each page that it hands out
    again: measured at 4 to 27 % of a step's processor time. Return "kept", or "system" with the
    reason.

    Raises:
        ConfigError: SPIKEFORMER_HEAP is neither "keep" nor "system".
    """
    if _mode("SPIKEFORMER_HEAP", "keep", "system") == "system":
        return "system (SPIKEFORMER_HEAP)"
    return "kept" if _keep() else "system (no glibc)"


@cache
def _keep() -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, ctypes.c_int(2**31 - 1)) for option in (_MMAP, _TRIM))


console_level = logging.INFO
"""Of the messages that a run shows on stderr; its log.txt has them from INFO."""
program = ""
"""The command as it was typed, while the console runs a recipe."""
words, needs = "", tuple[str, ...]()
"""What that command takes before its options, and options that it needs beside the recipe's own."""

only_prints = False
"""Whether the console runs a command whose output is all it does: a closed pipe is no fault."""


def command_line() -> str:
    """The command of this process, as it can be typed again."""
    ours = map(Path(sys.argv[0]).match, ("spikeformer-lt", "spikeformer_lt/__main__.py"))
    own = "spikeformer-lt" if any(ours) else sys.argv[0]
    return f"{program or shlex.quote(own)} {shlex.join(sys.argv[1:])}".rstrip()


def describe_environment(seed: int | None = None, world_size: int = 1) -> dict[str, Any]:
    """Collect what a run of so many processes keeps in ``env.json``; values that JSON can hold."""
    import torch

    commit, clean = _git()
    return {
        "seed": seed,
        "world_size": world_size,
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git_commit": commit,
        "git_clean": clean,
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List what differs and may change results in their last bits, as "field: old -> new"."""
    before, after = _flat(old), _flat(new)
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in before | after
        if before.get(name) != after.get(name) and name not in _MAY_CHANGE
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    versions = tree.get("versions")
    own = {name: value for name, value in tree.items() if name != "versions"}
    return own | (dict(versions) if isinstance(versions, Mapping) else {})


def _versions() -> dict[str, str | None]:
    import torch

    found = {name: installed_version(name) for name in PACKAGES}
    return found | {"torch": str(torch.__version__)}  # with its build, e.g. +cpu


def installed_version(package: str) -> str | None:
    """Return the version that a package was installed with; None if none is known."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Count the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_files() -> int:
    """Return how many files this process may have open at a time."""
    try:
        import resource
    except ImportError:  # Windows
        return sys.maxsize
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def memory_bytes() -> int | None:
    """Return the memory that this process may have, by the machine and by its control group."""
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for place in CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(place.read_text()))
    return min(found, default=None)


def _git() -> tuple[str | None, bool | None]:
    """Commit of our source tree and whether it is unchanged; None for an installed package."""
    home = Path(__file__).resolve().parents[1]

    def git(words: str) -> str:
        line = ["git", "-C", str(home), *words.split()]
        return subprocess.run(line, capture_output=True, text=True, timeout=5, check=True).stdout

    try:
        top, commit = git("rev-parse --show-toplevel HEAD").split()
        if Path(top).resolve() != home:
            return None, None
        return commit, not git("status --porcelain --untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None


def lazy(
    package: str, wrap: Callable[[Any], Any] | None = None, wrapped: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, while its ``__init__`` is being run.

    The names are those that the ``__init__`` imports under ``if TYPE_CHECKING:``, where type
    checkers see them as they are; its ``__all__`` lists the same names. Functions whose names begin
    as one of `wrapped` are given as `wrap` makes them, and are pickled by their name here.
    """
    source = Path(str(sys.modules[package].__file__)).read_text("utf-8")
    homes = {
        alias.asname or alias.name: (node.module, alias.name)
        for guard in ast.parse(source).body
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    class Door(ModuleType):
        """A package whose submodule does not take the place of a public name that it has."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in homes or not isinstance(value, ModuleType):
                super().__setattr__(name, value)

    sys.modules[package].__class__ = Door

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = homes[name]
        value = getattr(importlib.import_module(str(module)), original)
        if wrap is not None and name.startswith(wrapped):
            value = wrap(value)
            value.__module__, value.__name__, value.__qualname__ = package, name, name
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, listed


PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    "images.arrays": {"ArrayImages": "images.loader"},
    "layers.cnn_units": {"ConvLayer": "layers.units"},
    "plugins": {"use_plugins": "registry"},
    "reports.run_report": {"write_report": "reports.run_page"},
    "tickets.base": {"OneShotConfig": "tickets.configs"},
    "tickets.rebuild": {"model_from_ticket": "tickets.surgery"},
    "training.settings": {"TrainConfig": "training.options"},
}
"""Old module -> name -> the module that has it now."""


def moved(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module from which names of `MOVED` have moved away."""
    names = MOVED[module.removeprefix(f"{PACKAGE}.")]

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = f"{PACKAGE}.{names[name]}"
        warnings.warn(f"{module}.{name} is now {home}.{name}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), name)

    return find


for _old in MOVED.keys() - {"tickets.base"}:  # that module is still there
    _module = ModuleType(f"{PACKAGE}.{_old}", "A module whose names have moved.")
    vars(_module).update(__getattr__=moved(_module.__name__), __all__=list(MOVED[_old]))
    sys.modules[_module.__name__] = _module
