from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from spikeformer_lt.errors import STOPS
from spikeformer_lt.training.ranks import StopRequest


@pytest.mark.parametrize("signum", STOPS)
@pytest.mark.fault(5)
def test_the_first_signal_only_sets_a_flag(signum, capfd, request):
    before = signal.signal(signum, signal.SIG_DFL)  # under nohup a hang-up stays ignored
    request.addfinalizer(lambda: signal.signal(signum, before))
    with StopRequest() as stop:
        assert not stop.requested
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        assert stop.requested
        assert stop.signum == signum
    assert signal.Signals(signum).name in capfd.readouterr().err


def test_handlers_are_given_back_also_after_an_exception_and_when_nested():
    before = {s: signal.getsignal(s) for s in STOPS}
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner.requested
        assert not outer.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.signum == signal.SIGINT
    assert {s: signal.getsignal(s) for s in before} == before


def test_a_handler_that_was_set_outside_python_becomes_the_default(monkeypatch):
    given = []
    monkeypatch.setattr(signal, "signal", lambda signum, handler: given.append(handler))
    with StopRequest([signal.SIGTERM]):
        pass
    assert given[1] == signal.SIG_DFL


def test_outside_the_main_thread_it_is_there_and_does_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


LOOP = """
import os, signal, sys, time
from spikeformer_lt.training import ranks
from spikeformer_lt.training.ranks import StopRequest
ranks.AGAIN_S = float(sys.argv[2])
with StopRequest() as stop:
    child = os.fork() if sys.argv[1] == "fork" else 1
    if child:
        print("ready", flush=True)
    while not (child and stop.requested):
        time.sleep(0.005)
    if child > 1:
        time.sleep(0.2)
        alive = os.waitpid(child, os.WNOHANG) == (0, 0)
        print("child", "alive" if alive else "gone", flush=True)
        os.kill(child, signal.SIGKILL)
        os._exit(0)
    print("saving", flush=True)
    time.sleep(float(sys.argv[3]))
    print("saved", flush=True)
"""


@pytest.fixture
def started(forks: Any) -> Callable[..., Any]:
    def start(how: str, again_s: float = 10.0, save_s: float = 30.0) -> Any:
        process = forks.start("-c", LOOP, how, again_s, save_s, session=True)
        assert process.readline() == "ready\n"
        return process

    return start


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGTERM, signal.SIGINT, 130),
    ],
)
@pytest.mark.fault(5)
def test_a_later_signal_ends_the_process_at_once(started, first, second, status):
    process = started("alone", again_s=0.0)
    process.send_signal(first)
    assert process.readline() == "saving\n"
    process.send_signal(second)
    out, err = process.communicate(timeout=10)
    assert process.returncode == status
    assert out == "", "the save was cut off"
    assert f"{first.name}: saving after this step" in err
    assert "Traceback" not in err


@pytest.mark.fault(5)
def test_the_signals_that_a_tree_of_processes_gets_at_once_let_it_save(started):
    process = started("alone", save_s=0.3)
    for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process.send_signal(signum)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0 and out == "saving\nsaved\n"
    assert err.count("saving after this step") == 1


def test_forked_workers_survive_a_signal_to_the_whole_group_and_stay_silent(started):
    process = started("fork")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert out == "child alive\n"
    assert err.count("SIGINT") == 1
