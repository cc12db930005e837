"""Odd values of every option of every recipe: one line, no traceback, nothing made."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import os
import random
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt import Mask, Ticket, cli, config
from spikeformer_lt.config import last_of_each
from spikeformer_lt.registry import create_dataset, search_names
from spikeformer_lt.tickets.levels import RULES

ROOT = Path(__file__).resolve().parents[2]
VALUES = ("0", "-1", "nan", "inf", "1e30", "1" + 20 * "0", "", 50_000 * "x", "a\0b")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
EVENTS = ("multisp_dvs128", "multisp_cifar10_dvs")
LINES = 100
Case = tuple[str, str, str]


def leaves(cls: Any, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Each option: its name, the class and field that define it, and its type."""
    for name, kind in config.field_kinds(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{where}{name}.")
        else:
            yield where + name, f"{cls.__qualname__}.{name}", kind


@functools.cache
def programs() -> dict[str, tuple[Any, type]]:
    """By command: what runs a configuration, and its class."""
    found: dict[str, tuple[Any, type]] = {}
    for recipe in RECIPES:
        module = importlib.import_module(f"spikeformer_lt.recipes.{recipe}")
        classes = [
            kind
            for kind in vars(module).values()
            if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
        ]
        if classes:
            found[f"run {recipe}"] = (module.main, classes[-1])
    for search in search_names():
        found[f"find {search}"] = (None, type(cli.read_find([search])[0]))
    return found


@functools.cache
def cases() -> list[Case]:
    """Every field of every configuration once, with each value: command, option, value."""
    seen, found = set[str](), list[Case]()
    for command, (_, cls) in programs().items():
        for option, field, kind in leaves(cls):
            if kind is bool or field in seen or option in ("data.name", "imp.sparsity"):
                continue
            seen.add(field)
            found += [(command, option, value) for value in VALUES]
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and data sets that are made once."""
    made: dict[str, Any] = {}

    def kept(name: str, **keywords: Any) -> Any:
        key = f"{name} {sorted(keywords.items(), key=str)}"
        if key not in made:
            made[key] = create_dataset(name, **keywords)
        return made[key]

    monkeypatch.setattr("spikeformer_lt.training.options.create_dataset", kept)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLAIN = {"nan": float("nan"), "inf": float("inf"), "1e30": 1e30}


def from_file(case: Case) -> None:
    """Run a recipe with the value as it would stand in a configuration file, under --dry-run."""
    command, option, value = case
    main, cls = programs()[command]
    options = {option for option, _, _ in leaves(cls)}
    values: dict[str, Any] = {option: int(value) if value.lstrip("-").isdigit() else value}
    values[option] = PLAIN.get(value, values[option])
    if "data.name" in options:
        values["data.name"] = "moving_digits" if command.split()[1] in EVENTS else "digits"
    values |= {name: True for name in ("run.dry_run", "dry_run") if name in options}
    tree: dict[str, Any] = {}
    for name, plain in values.items():
        *groups, leaf = name.split(".")
        functools.reduce(lambda at, group: at.setdefault(group, {}), groups, tree)[leaf] = plain
    cfg = config.from_dict(cls, tree)
    config.check_limits(cfg)
    if {"run.dry_run", "dry_run"} & options:
        main(cfg)


def try_out(case: Case, capsys: pytest.CaptureFixture[str], file: bool = False) -> tuple[int, str]:
    """Exit status and stderr of a command with one odd value, under --dry-run."""
    command, option, value = case
    kind, name = command.split()
    argv = [f"--{option.replace('_', '-')}={value}", "--dry-run"]
    main, cls = programs()[command]
    if "data.name" in {o for o, _, _ in leaves(cls)}:
        argv += ["--data.name", "moving_digits" if name in EVENTS else "digits"]

    def run() -> None:
        if file and kind == "run":
            config.exit_after(lambda: from_file(case))
        if kind == "run":
            config.run_recipe(main, cls, argv, prog=name)
        config.exit_after(lambda: cli.find_command([name, *argv], "find"), argv)

    with pytest.raises(SystemExit) as stop:
        run()
    return int(stop.value.code or 0), capsys.readouterr().err


def check(case: Case, folder: Path, capsys: Any, file: bool = False) -> bool:
    """Whether a command accepted its value; it must have answered in one line and made nothing."""
    code, said = try_out(case, capsys, file)
    shown = (case[0], case[1], case[2][:30], said)
    assert code in (0, 2), shown
    if code:
        assert said.startswith("error: ") and len(said.splitlines()) == 1, shown
        assert said.isprintable() or said[:-1].isprintable(), shown
        assert len(said) < 1500, shown
    assert not os.listdir(folder), shown
    return code == 0


def drawn(count: int) -> list[Case]:
    everything = cases()
    seed = hashlib.sha256(repr(len(everything)).encode()).digest()
    return random.Random(seed).sample(everything, count)


@pytest.mark.fault(101)
def test_odd_values_are_refused_in_one_line(quick: Path, capsys: Any) -> None:
    """Every sixteenth by the command line, whose parser takes most of the time."""
    cases = drawn(80)
    accepted = [check(case, quick, capsys, file=i % 16 > 0) for i, case in enumerate(cases)]
    assert 0 < sum(accepted) < 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_option_refuses_odd_values_in_one_line(quick: Path, capsys: Any) -> None:
    for case in cases():
        check(case, quick, capsys)


@pytest.mark.fault(101)
@pytest.mark.parametrize(
    ("search", "option", "words"),
    [
        ("multisp", "--multisp.ticket=0", "no ticket"),
        ("multisp", "--multisp.ticket=foreign", "no ticket"),
        ("multisp", "--multisp.ticket=wide", "a ticket of this network"),
        ("multisp", "--model.name=spiking_vgg9", "needs a model with a stem"),
        ("joint", "--model.name=spiking_vgg9", "needs a model with patches"),
        ("imp", "--imp.prune.inside=nowhere", "leaves nothing to prune"),
        ("early_time", "--imp.prune.inside=nowhere", "leaves nothing to prune"),
        ("snip", "--model.init-from=foreign", "a folder with model.safetensors"),
        ("snip", "--train.teacher=foreign", "--train.teacher='foreign': no ticket"),
        ("snip", "--train.phases=1x1@0", "='1x1@0': optim.lr=0.0 is not allowed: in (0, 1e3)"),
        ("snip", "--train.phases=1x1@1e-9", "='1x1@1e-9': optim.min_lr=1e-05 is not allowed"),
        ("snip", "--run.out=foreign", "holds no run"),
        ("snip", "--run.out=foreign/notes.txt", "is a file"),
        ("snip", "--run.out=foreign/notes.txt/run", "a folder that can be written"),
        ("snip", "--run.resume=foreign", "a directory that holds a run"),
        ("snip", "--run.extend=3", "0 but for a finished run"),
        ("snip", "--run.allow-config-change=nothing", "a field of the configuration"),
        ("snip", "--model.init-from=wide", "does not fit the model"),
        ("nm", "--nm.m=1000000", "it divides the inputs of no layer"),
        ("early_time", "--early-time.search=early-time", "another search than early_time"),
        ("biprop", "--biprop.floor=1", "in [0, 1)"),
        ("nm", "--budget.bytes=9", "the option of a sparsity, as nm has none of one"),
        ("imp", "--budget.over=imp.rewind --budget.sops=9", "over='imp.rewind' is not allowed"),
        ("snip", "--budget.ms=9", "run.out='' is not allowed: a directory, with a budget"),
        ("snip", "--plugins=leaves.py", "cannot be imported: SystemExit: 5"),
        ("snip", "--data.split-file=foreign", "still images"),
    ],
)
def test_what_a_run_would_refuse_of_places_and_networks_its_dry_run_refuses(
    search: str, option: str, words: str, quick: Path, capsys: Any
) -> None:
    (quick / "foreign").mkdir()
    (quick / "foreign" / "notes.txt").write_text("mine")
    (quick / "leaves.py").write_text("import sys; sys.exit(5)")
    Ticket(
        Mask(KEPT := {"head.weight": torch.ones(3, 7, dtype=torch.bool)}),
        {name: kept.float() for name, kept in KEPT.items()},
        {"search": "multisp"},
    ).save(quick / "wide")
    before = sorted(quick.rglob("*"))
    argv = [search, "--data.name", "digits", *option.split(), "--dry-run"]
    with pytest.raises(SystemExit) as stop:
        config.exit_after(lambda: cli.find_command(argv, "find"), argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and said.count("\n") == 1, said
    assert sorted(p for p in quick.rglob("*") if "__pycache__" not in p.parts) == before


BROKEN = """
import torch
from spikeformer_lt import register_model

@register_model
class Broken(torch.nn.Module):
    "A classifier of three inputs."

    def __init__(self, num_classes=10, in_channels=1, image_size=8, T=4):
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.flatten(1))
"""


def test_a_dry_run_passes_a_sample_through_the_network(recipes: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    argv = ["random", "--data.name", "digits", "--model.name", "Broken", "--dry-run"]
    tried = recipes.run("find_ticket", *argv, "--plugins", "broken.py", cwd=tmp_path)
    assert tried.code == 2, tried.err
    assert "Broken cannot be adapted" in tried.error
    assert "cannot be multiplied" in tried.error


FOREIGN = """
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from spikeformer_lt import register_model

@register_model
def Foreign(num_classes=10, T=4, in_channels=3, image_size=16):
    parts = [layer.Conv2d(in_channels, 4, 3), neuron.LIFNode(), layer.Flatten()]
    net = nn.Sequential(*parts, layer.Linear(4 * (image_size - 2) ** 2, num_classes))
    functional.set_step_mode(net, "m")
    return net
"""


def test_a_dry_run_adapts_a_network_as_its_run_does(recipes: Any, tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(FOREIGN)
    argv = ["random", "--data.name", "digits", "--model.name", "Foreign", "--dry-run"]
    tried = recipes.run("find_ticket", *argv, "--plugins", "foreign.py", cwd=tmp_path)
    assert tried.code == 0, tried.err


SMALL = shlex.split(
    "--data.name digits --data.limit-train 32 --data.limit-test 20 --data.image-size 16 "
    "--model.name spikformer_toy --model.embed-dim 16 --model.T 2 --train.cpu --train.batch-size 16"
)
ONE_EPOCH = {
    "imp": "--imp.epochs 1 --imp.rounds 1 --imp.rewind 1it",
    "early_bird": "--early-bird.epochs 1",
    "early_time": "--early-time.epochs 1 --imp.epochs 1 --imp.rounds 1 --imp.rewind 1it",
    "edge_popup": "--edge-popup.epochs 1",
    "biprop": "--biprop.epochs 1",
    "multisp": "--multisp.epochs 1",
    "sparse_training": "--every 1",
    "joint": "--joint.imp.epochs 1 --joint.imp.rounds 1 --joint.imp.rewind 1it",
}


SMALL_VALUES = ("0", "1", "2", "3.0", "0.5", "1e-9")


def trained_cases() -> list[Case]:
    """Every field once, with values that it may well take: small numbers, or its words."""
    fields, found = dict[str, Case](), list[Case]()
    for command, option, _ in cases():
        fields.setdefault(f"{command} {option}", (command, option, ""))
    for command, option, _ in fields.values():
        words = RULES.get(option.rpartition(".")[2])
        values = words if isinstance(words, tuple) else SMALL_VALUES
        found += [(command, option, str(value)) for value in values]
    return random.Random(0).sample(found, len(found))


def training_line(case: Case) -> list[str] | None:
    """A command that trains two steps a phase with one odd value; None for other programs."""
    command, option, value = case
    kind, name = command.split()
    search = name.removesuffix("_cifar")
    options = {o for o, _, _ in leaves(programs()[command][1])}
    if "run.out" not in options or name in (*EVENTS, "transfer_cifar"):
        return None
    if option.startswith("run.") or option.endswith(".ticket"):  # places
        return None
    if option.startswith("budget."):  # that a search cannot meet one is told by its trials alone
        return None
    words = [*SMALL, *shlex.split(ONE_EPOCH.get(search, ""))]
    words += ["--epochs", "1"] if "epochs" in options else []
    lacking = [w for w in words if w[:2] == "--" and w[2:].replace("-", "_") not in options]
    for flag in lacking:
        at = words.index(flag)
        del words[at : at + 2]
    words.append(f"--{option.replace('_', '-')}={value}")
    return [*([name] if kind == "find" else []), *last_of_each(words)]


@pytest.mark.slow
@pytest.mark.recipe
@pytest.mark.timeout(5400)
@pytest.mark.fault(101)
def test_accepted_lines_train_save_resume_and_report(
    recipes: Any, quick: Path, tmp_path: Path
) -> None:
    """What a dry run accepts trains, ends in a report, and is found finished the second time."""
    lines, faults = 0, []
    for case in trained_cases():
        argv = training_line(case)
        if argv is None:
            continue
        kind, name = case[0].split()
        recipe, run = "find_ticket" if kind == "find" else name, tmp_path / f"run-{lines}"
        tried = recipes.run(recipe, *argv, "--dry-run")
        assert tried.code in (0, 2), (argv, tried.err)
        if tried.code:
            continue
        reports = []
        for resume in ("never", "auto"):
            ended = recipes.run(recipe, *argv, "--run.out", run, "--run.resume", resume)
            report = run / "report.json"
            reports.append(report.read_bytes() if report.exists() else b"")
            if ended.code or b'"test_accuracy"' not in reports[-1]:
                faults.append((case, resume, ended.code, ended.err[-500:]))
                break
        lines += 1
        shutil.rmtree(run, ignore_errors=True)
        if lines == LINES:
            break
    assert lines == LINES and not faults, faults
