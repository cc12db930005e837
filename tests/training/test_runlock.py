from __future__ import annotations

import errno
import fcntl
import os
import signal

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.run import in_use, take_lock

HOLD = """
import os, sys, time
from pathlib import Path
from spikeformer_lt.training.run import take_lock
lock = take_lock(Path(sys.argv[1]))
worker = os.fork()
if worker == 0:
    time.sleep(60)
    os._exit(0)
print(worker, flush=True)
time.sleep(60)
"""


def test_a_living_process_keeps_others_out_and_a_killed_one_does_not(forks, tmp_path):
    other = forks.start("-c", HOLD, tmp_path)
    worker = int(other.readline())
    try:
        assert in_use(tmp_path)
        with pytest.raises(ConfigError, match=f"is in use by process {other.pid}; wait for it"):
            take_lock(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        os.kill(worker, 0)  # the forked worker is still there
        assert not in_use(tmp_path)
        take_lock(tmp_path).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        other.kill()
        other.wait(10)


def test_a_process_does_not_lock_itself_out(tmp_path):
    first, second = take_lock(tmp_path), take_lock(tmp_path)
    first.close()
    second.close()


def test_a_file_system_without_locks_lets_everybody_in(tmp_path, monkeypatch):
    def refuse(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert take_lock(tmp_path) is None


def test_a_place_that_nobody_has_had_is_free(tmp_path):
    assert not in_use(tmp_path) and not in_use(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())  # asking leaves nothing behind
