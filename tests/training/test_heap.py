"""The heap is kept where the C library can, said so, and left alone on request."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from spikeformer_lt import runtime
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.runtime import keep_heap

FAULTS = """
import resource, torch
from spikeformer_lt.runtime import keep_heap
keep_heap()
def step():
    blocks = [torch.ones(2_000_000) for _ in range(8)]
counts = []
for _ in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(counts)[7])  # the heap settles after some steps, more where blocks lie badly
"""


def faults(monkeypatch: pytest.MonkeyPatch, mode: str) -> int:
    """Pages that the middle one of 15 steps faults in."""
    monkeypatch.setenv("SPIKEFORMER_HEAP", mode)
    done = subprocess.run(
        [sys.executable, "-P", "-c", FAULTS], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")
def test_a_kept_heap_faults_no_page_in_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = 8 * 2_000_000 * 4 // resource.getpagesize()
    assert faults(monkeypatch, "keep") < pages / 10


def test_the_system_keeps_it_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEFORMER_HEAP", "system")
    monkeypatch.setattr(runtime, "_keep", lambda: pytest.fail("the heap was touched"))
    assert keep_heap().startswith("system")


def test_another_c_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKEFORMER_HEAP", raising=False)
    monkeypatch.setattr(runtime.platform, "libc_ver", lambda: ("", ""))
    runtime._keep.cache_clear()
    try:
        assert keep_heap() == "system (no glibc)"
    finally:
        runtime._keep.cache_clear()


def test_other_modes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEFORMER_HEAP", "mine")
    with pytest.raises(ConfigError, match="keep or system"):
        keep_heap()
