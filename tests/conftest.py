"""What all tests share: few threads, fixed seeds, a private home, no network."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Generator, Iterator, Sequence
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

    if not torch.cuda.is_available():  # before any library imports triton
        os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    hypothesis.settings.register_profile(
        "spikeformer_lt", derandomize=True, deadline=None, database=None, print_blob=True
    )
    hypothesis.settings.load_profile("spikeformer_lt")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the private home."""
    if home := _private.pop("home", None):
        shutil.rmtree(home, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")


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
    return of_tests("event_files")


def of_tests(name: str) -> ModuleType:
    """A file of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sample_events(files: ModuleType) -> Any:
    """A thousand valid events on 128 x 128 pixels over a second."""
    return files.some_events()


class Child:
    """A process that the fork server has started, used as one of subprocess."""

    def __init__(self, pid: int, status: Path, files: list[Path]) -> None:
        self.pid, self.files, self.returncode = pid, files, None
        self._status, self._read = status, 0

    def poll(self) -> int | None:
        if self.returncode is None and self._status.exists():
            self.returncode = int(self._status.read_text())
            self._status.unlink()
        return self.returncode

    def wait(self, timeout: float = 280) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return code

    def readline(self, timeout: float = 60) -> str:
        """The next line of stdout; what there is of it if the process has ended."""
        until = time.monotonic() + timeout
        while True:
            ended = self.poll() is not None
            text = self.files[0].read_text("utf-8")[self._read :] if self.files[0].exists() else ""
            line, newline, _ = text.partition("\n")
            if newline or ended:
                self._read += len(line + newline)
                return line + newline
            assert time.monotonic() < until, self.files[1].read_text("utf-8")
            time.sleep(0.005)

    def communicate(self, timeout: float = 280) -> tuple[str, str]:
        """What it wrote to stdout and has not been read yet, and to stderr, when it has ended."""
        self.wait(timeout)
        out, err = (file.read_text("utf-8") for file in self.files)
        return out[self._read :], err

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """Starts Python by forks of a process that has imported everything: see fork_server.py."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, "-P", str(ROOT / "tests" / "fork_server.py"), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        )  # fmt: skip

    def start(
        self,
        *argv: object,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        session: bool = False,
        signals: Sequence[tuple[str, int, int]] = (),
        file_limit: int | None = None,
        fork_jobs: bool = False,
    ) -> Child:
        """Start ``python ARGV``."""
        self.count += 1
        files = [self.folder / f"{self.count}.{name}" for name in ("out", "err")]
        job = {
            "argv": list(map(str, argv)), "out": str(files[0]), "err": str(files[1]),
            "cwd": str(cwd), "env": env or {}, "session": session, "signals": list(signals),
            "file_limit": file_limit, "fork_jobs": fork_jobs,
        }  # fmt: skip
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        return Child(pid, self.folder / f"{pid}.status", files)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.server.communicate("end\n", timeout=60)


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


@contextlib.contextmanager
def _terminal() -> Iterator[list[str]]:
    ours, theirs = pty.openpty()
    found: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 65536):
                found.append(part)

    reader, told = threading.Thread(target=read), [""]
    reader.start()
    with open(theirs, "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield told
    reader.join()
    os.close(ours)
    told[0] = b"".join(found).decode().replace("\r", "")


@pytest.fixture
def terminal() -> Any:
    """A terminal as standard output and error: ``with terminal() as told``, then told[0]."""
    return _terminal


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A stub of the hub, and an empty cache."""
    import huggingface_hub.constants

    with of_tests("hub").Hub() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        constants, place = huggingface_hub.constants, "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", made.url)  # read when it was imported
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{made.url}{place}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield made
        made.shutdown()
