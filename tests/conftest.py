"""What all tests share: few threads, fixed seeds, a private home, no network."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import tempfile
import tracemalloc
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SPIKEFORMER_LT_SHARED", ROOT.parent / "shared"))
LOOPBACK = {"127.0.0.1", "::1", "localhost", "", None}

_private: dict[str, Path] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Point every cache away from the user's home, before anything that reads it is imported."""
    home = Path(tempfile.mkdtemp(prefix="spikeformer-lt-home-"))
    _private["home"] = home
    for name in ("HOME", "USERPROFILE"):
        os.environ[name] = str(home)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "TORCH_HOME"):
        os.environ[name] = str(home / name.lower())
    # Compiled kernels are worth keeping between runs: they stay in the checkout.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".cache" / "numba"))
    os.environ.setdefault("MPLCONFIGDIR", str(ROOT / ".cache" / "matplotlib"))
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["HF_HUB_OFFLINE"] = "1"

    import hypothesis
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    hypothesis.settings.register_profile(
        "spikeformer_lt", derandomize=True, deadline=None, database=None, print_blob=True
    )
    hypothesis.settings.load_profile("spikeformer_lt")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the private home."""
    if home := _private.pop("home", None):
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Seed the global generators, and give back what a test may have set for all of torch."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    grad = torch.is_grad_enabled()
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing leave this machine: a test that would download fails, by name."""
    connect = socket.socket.connect
    resolve = socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            pytest.fail(f"a test tried to reach {address[0]}: tests use no network")
        connect(self, address)  # type: ignore[arg-type]

    def guarded_resolve(host: str | None, *args: object, **kwargs: object) -> object:
        if host not in LOOPBACK and host != socket.gethostname():
            pytest.fail(f"a test tried to look up {host}: tests use no network")
        return resolve(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the optional folder of real data and reference tensors, or skip the test.

    It lies beside the checkout as ``shared``, or where ``SPIKEFORMER_LT_SHARED`` says.
    """
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}: real data and reference tensors are optional")
    return SHARED


@pytest.fixture(scope="session")
def files() -> ModuleType:
    """The writers of tests/event_files.py: event files in their true forms."""
    spec = importlib.util.spec_from_file_location("event_files", ROOT / "tests" / "event_files.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sample_events(files: ModuleType) -> Any:
    """A thousand valid events on 128 x 128 pixels over a second."""
    return files.some_events()


class StopAfter:
    """A stop request that comes true when it has been asked `count` times."""

    def __init__(self, count: int) -> None:
        self.left = count

    @property
    def signum(self) -> int:
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else 0


@pytest.fixture(scope="session")
def stop_after() -> type[StopAfter]:
    """Makes a stop request that comes true when a trainer has asked so many times."""
    return StopAfter


class Traced:
    """Largest memory that Python held inside, in bytes."""

    bytes = 0

    def __enter__(self) -> Self:
        tracemalloc.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@pytest.fixture
def traced() -> type[Traced]:
    """Measures the memory of what is done inside: ``with traced() as peak``, then peak.bytes."""
    return Traced


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no captured text stop the tests: half a surrogate pair crosses to no process."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
