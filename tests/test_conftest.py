"""The guards that all tests stand behind."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch


def test_a_connection_to_another_machine_fails_the_test() -> None:
    with socket.socket() as client, pytest.raises(pytest.fail.Exception, match="no network"):
        client.connect(("192.0.2.1", 80))


def test_a_name_of_another_machine_is_not_looked_up() -> None:
    with pytest.raises(pytest.fail.Exception, match="no network"):
        socket.create_connection(("example.invalid", 80), timeout=1)


def test_this_machine_can_be_reached() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_home_is_an_empty_folder_of_this_run(tmp_path: Path) -> None:
    home = Path.home()
    assert home.name.startswith("spikeformer-lt-home-")
    assert os.environ["HF_HOME"].startswith(str(home))


@pytest.mark.parametrize("time", [1, 2])
def test_each_test_starts_from_the_same_random_state(time: int) -> None:
    # Seed 0 of each generator; the second round shows that the first one's draws left no trace.
    drawn = random.random(), np.random.rand(), float(torch.rand(()))
    assert drawn == pytest.approx((0.8444218515250481, 0.5488135039273248, 0.4962565898895264))


@pytest.mark.parametrize("time", [1, 2])
def test_what_a_test_sets_for_all_of_torch_is_given_back(time: int) -> None:
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)


def test_property_tests_are_the_same_in_every_run() -> None:
    assert hypothesis.settings.default.derandomize
    assert hypothesis.settings.default.deadline is None
