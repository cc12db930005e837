"""The error classes and the words of a message."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt import errors
from spikeformer_lt.errors import (
    Interrupted,
    NonFiniteError,
    SpikeformerError,
    emphasised,
    near,
    shown,
)

INPUT_ERRORS = ("Config", "Data", "Mask", "Ticket", "Checkpoint", "Export")


@pytest.mark.parametrize("name", INPUT_ERRORS)
def test_a_wrong_input_is_one_of_ours_and_a_value_error(name: str) -> None:
    kind = getattr(errors, f"{name}Error")
    assert issubclass(kind, SpikeformerError)
    assert issubclass(kind, ValueError)


def test_a_non_finite_number_and_a_signal_are_no_wrong_input() -> None:
    assert not issubclass(NonFiniteError, ValueError)
    assert not issubclass(Interrupted, ValueError)
    assert issubclass(Interrupted, SpikeformerError)


def test_an_interruption_knows_its_signal() -> None:
    assert Interrupted(signal.SIGTERM).signum == 15
    assert str(Interrupted(signal.SIGTERM)) == "stopped by SIGTERM"
    assert str(Interrupted(2, "saved last/")) == "saved last/"
    assert "signal 200" in str(Interrupted(200))


def test_the_nearest_name_is_offered_and_nothing_when_none_is_near() -> None:
    names = ["spikformer_cifar", "qkformer", "vgg"]
    assert near("spikfomer", names) == "; did you mean 'spikformer_cifar'?"
    assert near("VGG", names) == "; did you mean 'vgg'?"
    assert near("zzz", names) == ""
    assert near("x" * 100_000, names) == ""
    assert near("a", []) == ""


@given(st.text() | st.binary())
def test_whatever_is_shown_is_one_short_printable_line(value: str | bytes) -> None:
    text = shown(value, 60)
    assert text.isprintable()
    assert len(text.splitlines()) == 1
    assert len(text) <= 90


def test_a_hostile_name_is_escaped_and_a_long_one_loses_its_middle() -> None:
    assert shown("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    long = shown("n" * 300)
    assert "..." in long
    assert "302 characters" in long
    assert shown("épée") == "'épée'"


def test_headings_and_heads_of_tables_are_bold_on_a_terminal_alone(
    terminal: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "# Energy\n\n| run | pJ |\n|-----|----|\n| # a | 1  |\n"
    monkeypatch.delenv("NO_COLOR", raising=False)
    print(emphasised(text), end="")
    assert capsys.readouterr().out == text
    with terminal() as told:
        print(emphasised(text), end="")
    bold = text.replace("# Energy", "\x1b[1m# Energy\x1b[0m")
    assert told[0] == bold.replace("| run | pJ |", "\x1b[1m| run | pJ |\x1b[0m")
