"""Which rank was lost, told from its process; two real ranks are in recipes/test_two_ranks.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from spikeformer_lt.errors import RankError
from spikeformer_lt.training.ranks import Peer, gather_peers, lost_ranks, name_lost

HERE = socket.gethostname()


@pytest.fixture
def other():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait(10)


def test_a_dead_and_a_stopped_process_are_told_from_one_that_runs(other):
    peers = [Peer(HERE, os.getpid()), Peer(HERE, other.pid), Peer("elsewhere", other.pid)]
    assert lost_ranks(peers) == {}
    os.kill(other.pid, signal.SIGSTOP)
    until = time.monotonic() + 5
    while not (found := lost_ranks(peers)) and time.monotonic() < until:
        time.sleep(0.01)
    assert found == {1: f"rank 1 (process {other.pid} on {HERE}) is stopped"}
    other.kill()
    while "died" not in lost_ranks(peers).get(1, "") and time.monotonic() < until:
        time.sleep(0.01)  # a zombie until it is waited for: dead all the same
    assert list(lost_ranks(peers)) == [1]
    other.wait(10)
    assert "died" in lost_ranks(peers)[1]


def test_a_broken_collective_becomes_a_sentence_with_the_rank(other):
    other.kill()
    peers = [Peer(HERE, os.getpid()), Peer(HERE, other.pid)]
    fault = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RankError, match=r"rank 1 .* died; .*--run\.resume auto"):
        name_lost(peers, fault, 5)


def test_who_cannot_be_told_is_said_with_the_hosts(monkeypatch):
    monkeypatch.setattr("spikeformer_lt.training.ranks.PATIENCE_S", 0.1)
    peers = [Peer(HERE, os.getpid()), Peer("node2", 1)]
    with pytest.raises(RankError, match=r"time-out 7 s.*node2"):
        name_lost(peers, RuntimeError("Timed out waiting 7000ms"), 7)


def test_other_faults_and_single_processes_are_left_alone():
    peers = [Peer(HERE, os.getpid())]
    name_lost(peers, RuntimeError("shapes differ"), 5)
    name_lost(peers, ValueError("connection"), 5)
    name_lost([], RuntimeError("connection"), 5)
    name_lost(peers, None, 5)
    assert gather_peers() == []
