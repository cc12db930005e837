"""The generic command: which options it takes, what it refuses, and that help needs no torch."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikeformer_lt import cli, registry
from spikeformer_lt.config import (
    differences,
    flat_values,
    given_options,
    load_config,
    parse,
    to_dict,
)
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import search_names
from spikeformer_lt.tickets import GraspConfig, ImpConfig, SnipConfig

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def test_a_search_brings_its_own_options() -> None:
    cfg, groups = cli.read_find(["snip", "--snip.images", "64", "--data.name", "digits"])
    assert cfg.snip == SnipConfig(images=64) and list(groups) == ["snip"]
    assert given_options(cfg) == {"snip.images", "data.name"}
    assert cli.read_find(["grasp", "--grasp.step=0.1"])[0].grasp == GraspConfig(step=0.1)


def test_the_sparsity_is_common_to_the_searches_of_one_rate() -> None:
    cfg, _ = cli.read_find(["imp", "--sparsity", "0.9"])
    assert cfg.imp == ImpConfig(sparsity=0.9, epochs=300, rewind="20ep")
    assert cli.read_find(["imp"])[0].imp.sparsity == 0.0
    with pytest.raises(ConfigError, match=r"--imp\.sparsity is written --sparsity"):
        cli.read_find(["imp", "--imp.sparsity", "0.9"])
    with pytest.raises(ConfigError, match="sparsity=3.0 is not allowed"):
        cli.read_find(["imp", "--sparsity", "3"])


@pytest.mark.parametrize(
    ("search", "named"),
    [
        ("multisp", r"--multisp\.patches\.sparsity and --multisp\.weights\.sparsity"),
        ("joint", r"--joint\.patches\.sparsity"),
        ("nm", r"--nm\.n and --nm\.m"),
    ],
)
def test_a_search_without_one_rate_names_its_own(search: str, named: str) -> None:
    with pytest.raises(ConfigError, match=f"{search} has no single rate; give {named}"):
        cli.read_find([search, "--sparsity", "0.9"])


def test_a_search_around_another_has_the_options_of_both() -> None:
    line = "early-time --early-time.search biprop --biprop.epochs 3 --sparsity 0.7"
    cfg, groups = cli.read_find(line.split())
    assert list(groups) == ["early_time", "biprop"]
    assert cfg.early_time.search == "biprop"
    assert (cfg.biprop.epochs, cfg.biprop.sparsity) == (3, 0.7)


@pytest.mark.parametrize("way", ["flag", "assigned", "dashed", "file"])
def test_the_search_inside_is_the_one_that_is_named(way: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("early_time:\n  search: early-bird\n")
    said = {"flag": "--early-time.search early-bird", "assigned": "early_time.search=early-bird"}
    said["dashed"] = "early-time.search=early-bird"
    line = f"early_time {said.get(way, '')} --config {tmp_path / 'a.yaml'}"
    cfg, groups = cli.read_find((line if way == "file" else line.partition(" --config")[0]).split())
    assert list(groups) == ["early_time", "early_bird"]
    assert cfg.early_time.search.replace("-", "_") == "early_bird"
    file = tmp_path / "b.yaml"
    file.write_text("imp:\n  sparsity: 0.5\nsparsity: 0.7\n")
    one = tmp_path / "c.json"  # as a run's own config.json, which has every option
    one.write_text('{"sparsity": 0.7, "imp": {"sparsity": 0.7}}')
    for more, rate in (("", 0.7), (" --sparsity 0.8", 0.8)):
        assert cli.read_find(f"imp --config {one}{more}".split())[0].imp.sparsity == rate
    given = {"flag": "--imp.sparsity 0.5", "assigned": "imp.sparsity=0.5 sparsity=0.7"}
    given["dashed"] = given["flag"]
    with pytest.raises(ConfigError, match=r"--imp\.sparsity is written --sparsity"):
        cli.read_find(["imp", *given.get(way, f"--config {file}").split()])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("snpi", "unknown search 'snpi'; did you mean 'snip'?"),
        ("", "name a search: find SEARCH"),
        ("--sparsity 0.9", "name a search: find SEARCH"),
        ("snip --snip.imags 3", r"unknown option '--snip\.imags'; did you mean '--snip\.images'"),
        ("snip --images 3", r"unknown option '--images'; did you mean --snip\.images\?"),
        ("snip --imp.rounds 3", r"unknown option '--imp\.rounds'"),
        ("snip --snip.images 1", "images=1 is not allowed: at least 2"),
    ],
)
def test_a_wrong_line_is_refused_in_one_line(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        cli.read_find(line.split())
    assert str(caught.value).isprintable()


def test_every_search_can_be_named() -> None:
    for name in search_names():
        cfg, groups = cli.read_find([name])
        assert all(getattr(cfg, group) == config for group, config in groups.items())


PLUGIN = """
from dataclasses import dataclass
from spikeformer_lt import register_dataset, register_model

@dataclass(frozen=True)
class Wide:
    "A net."
    width: int = 3

@register_model("cli_net", Wide)
def cli_net(config, num_classes=10):
    "A net of a test."
    return config

@register_dataset("cli_set", Wide)
def cli_set(config, root="data"):
    "A set of a test."
    return config
"""


@pytest.fixture
def own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers: others go through all entries."""
    registry.list_models(), registry.list_datasets()
    for shelf in (registry._models, registry._datasets):
        for field in ("_factories", "_configs"):
            monkeypatch.setattr(shelf, field, dict(getattr(shelf, field)))


@pytest.mark.usefixtures("own_entries")
def test_a_named_model_and_data_set_bring_their_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registry.VARIABLE, "")  # as it is again afterwards
    path = tmp_path / "cli_plugin.py"
    path.write_text(PLUGIN)
    plugins = ["--plugins", str(path)]
    named = [*plugins, "--model.name", "cli_net", "--data.name=cli_set"]
    cfg = parse(cli.ImageRecipe, [*named, "--cli-net.width", "5", "--cli-set.width=7"])
    assert (cfg.cli_net.width, cfg.cli_set.width) == (5, 7)  # type: ignore[attr-defined]
    (tmp_path / "c.json").write_text('{"model": {"name": "cli_net"}, "cli_net": {"width": 9}}')
    cfg = parse(cli.ImageRecipe, ["--config", str(tmp_path / "c.json")])
    assert cfg.cli_net.width == 9  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"unknown option '--cli-net\.width'"):
        parse(cli.ImageRecipe, ["--cli-net.width", "5"])
    with pytest.raises(ConfigError, match=r"--cli-net\.width='x' is not allowed: an integer"):
        parse(cli.ImageRecipe, [*named, "--cli-net.width", "x"])


NO_TORCH = """
import contextlib, importlib.abc, io, json, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise AssertionError("torch is imported")

sys.meta_path.insert(0, Absent())
for argv in map(str.split, sys.argv[1:]):
    sys.argv, code = argv, 0
    run = runpy.run_path if argv[0].endswith(".py") else runpy.run_module
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                run(argv[0], run_name="__main__")
            except SystemExit as stop:
                code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def test_help_and_errors_need_no_torch() -> None:
    """One process, where torch cannot be imported, does all that a user types."""
    lines = {
        "spikeformer_lt find --help": (0, "sparse_training"),
        "spikeformer_lt find snip --help": (0, "--snip.images INT"),
        "spikeformer_lt find snip --snip.images 1": (2, "at least 2"),
        "spikeformer_lt fnd": (2, "did you mean 'find'"),
        "spikeformer_lt run imp_cifar --help": (0, "--imp.rounds INT"),
        "spikeformer_lt run imp_cfar": (2, "did you mean 'imp_cifar'"),
        **{f"recipes/{path.name} --help": (0, "--") for path in sorted(RECIPES.glob("*.py"))},
        "recipes/find_ticket.py --help": (0, "SEARCH"),
    }
    ended = subprocess.run(
        [sys.executable, "-P", "-c", NO_TORCH, *lines], cwd=RECIPES.parent,
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = map(json.loads, ended.stdout.splitlines())
    for (line, (code, told)), (status, out, err) in zip(lines.items(), found, strict=True):
        assert status == code and told in (err if code else out), (line, out, err)
        assert "Traceback" not in err


@pytest.mark.parametrize("search", ["imp", "multisp", "joint", "snip"])
def test_a_file_that_names_one_option_of_a_group_changes_no_other(
    search: str, tmp_path: Path
) -> None:
    """The defaults of a group are those of the program, whose own lengths and sizes differ."""
    usual, _ = cli.read_find([search])
    for group, values in to_dict(usual).items():
        if isinstance(values, dict):
            (name, value), *_ = flat_values(values)
            for part in reversed(name.split(".")):
                value = {part: value}
            (tmp_path / "one.json").write_text(json.dumps({group: value}))
            named = load_config(type(usual), tmp_path / "one.json", usual=type(usual)())
            assert differences(usual, named) == [], group


def test_a_recipe_keeps_its_own_defaults_beside_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "seed.yaml").write_text("train: {seed: 1}\nmodel: {depth: 1}\n")
    module = importlib.import_module("spikeformer_lt.recipes.multisp_dvs128")
    named = load_config(module.MultiSpDvs128, tmp_path / "seed.yaml", usual=module.MultiSpDvs128())
    assert differences(module.MultiSpDvs128(), named) == [
        "model.depth: None -> 1",
        "train.seed: 42 -> 1",
    ]
