"""The help of programs: every option with its type and the default that holds, examples first."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spikeformer_lt import cli, console
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import search_names
from spikeformer_lt.usage import ALWAYS, field_docs, help_text, options_of

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.py"))


def programs() -> Iterator[tuple[str, Any]]:
    for path in RECIPES:
        module = importlib.import_module(f"spikeformer_lt.recipes.{path.stem}")
        for kind in vars(module).values():
            if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__:
                yield path.name, kind
    for search in search_names():
        yield f"spikeformer-lt find {search}", type(cli.read_find([search])[0])
    yield from ((f"spikeformer-lt {name}", kind) for name, kind in console.OPTIONS.items())


EVERY_PROGRAM = pytest.mark.parametrize(
    ("prog", "cls"), [*programs()], ids=lambda one: one if isinstance(one, str) else one.__name__
)


@EVERY_PROGRAM
def test_each_option_is_listed_once_with_its_default_and_none_is_said_in_words(
    prog: str, cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text(cls, prog)
    for name, kind in options_of(cls):
        flag = f"--{name.replace('_', '-')}"
        start = rf"^  {re.escape(flag)}{',' if kind is bool else ' '}"
        assert len(re.findall(start, text, re.MULTILINE)) == 1, flag
    plain = " ".join(text.split())
    assert plain.count("(default: ") == len([*options_of(cls)])
    assert not re.search(r"\bNone\b|MISSING|<class|<factory", text)
    told = text.partition("\nbasic options:")[2]  # examples are commands: they are not wrapped
    assert max(map(len, told.splitlines())) <= 100
    assert all(text.count(f"\n  {flag}") == 1 for flag in ALWAYS if flag != "--quick")
    examples = text.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples and text.index("examples:") < text.index("basic options:")
    if prog.startswith("spikeformer-lt"):  # whose user may have no checkout
        assert all(line.startswith("  spikeformer-lt ") for line in examples)


def groups(at: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Configurations inside one, by the start of their options' names."""
    yield where, at
    for field in dataclasses.fields(at):
        if dataclasses.is_dataclass(inner := getattr(at, field.name)):
            yield from groups(inner, f"{where}{field.name}.")


@EVERY_PROGRAM
def test_words_that_are_refused_otherwise_are_shown(
    prog: str, cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option that takes text is given another one; what the error allows is in the help."""
    monkeypatch.setenv("COLUMNS", "100")
    text, shown = help_text(cls, prog), set()
    for where, at in groups(cls()):
        for field in dataclasses.fields(at):
            value = getattr(at, field.name)
            if type(value) not in (str, tuple, type(None)):
                continue
            try:
                dataclasses.replace(at, **{field.name: ("?",) if type(value) is tuple else "?"})
            except (ConfigError, TypeError) as fault:
                said = str(fault).partition(" is not allowed: ")[2].removeprefix("one of ")
                words = re.split(", | or ", said)
                if len(words) > 1 and all(re.fullmatch(r"[\w.-]+", word) for word in words):
                    flag = f"--{where}{field.name}".replace("_", "-")
                    assert f"  {flag} {{{','.join(words)}}}" in text.replace("[{", "{"), flag
                    shown.add(flag)
    if "--train.optim.sched " in text:
        assert {"--train.optim.sched", "--train.loss", "--train.mixed-precision"} <= shown


def test_searches_of_a_comparison_are_named_where_they_are_chosen() -> None:
    from spikeformer_lt.recipes.compare_tickets import SEARCHES, CompareTickets

    words = re.split(r"[ ,.:;]+", field_docs(CompareTickets)["searches"])
    assert not {*SEARCHES} - {*words}


def test_augmentations_of_ours_are_named_where_they_are_chosen() -> None:
    from spikeformer_lt.events import EventAugment
    from spikeformer_lt.images import Augment
    from spikeformer_lt.training.options import DataConfig, EventDataConfig

    for cls, kinds in ((DataConfig, [Augment]), (EventDataConfig, [Augment, EventAugment])):
        words = re.split(r"[ ,.;]+", field_docs(cls)["augment"])
        assert not {name for kind in kinds for name in kind.presets} - {*words, "auto"}


def test_a_recipe_of_the_console_speaks_of_the_command_that_was_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        console.main(["energy", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: spikeformer-lt energy DIR ... [options]\n")
    assert "  spikeformer-lt energy --runs" in text and "recipes/" not in text
    with pytest.raises(SystemExit):
        console.main(["run", "imp_cifar", "--imp.round", "3"])
    assert "did you mean '--imp.rounds'" in capsys.readouterr().err
