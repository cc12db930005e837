"""Configurations as plain values: there and back, compared and named."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.config import (
    check,
    differences,
    from_dict,
    load_config,
    run_id,
    save_config,
    to_dict,
)
from spikeformer_lt.errors import ConfigError


@dataclass(frozen=True)
class Model:
    """Sizes."""

    T: int = 4
    dim: int = 64
    heads: int = 4
    sparsity: float = 0.0
    patch: int = 4
    stem: Literal["lif", "relu"] = "lif"

    def __post_init__(self) -> None:
        check(self.T >= 1, "model.T", self.T, "1 or more time steps")
        check(self.dim % self.heads == 0, "model.dim", self.dim, f"a multiple of {self.heads}")
        check(0 <= self.sparsity < 1, "model.sparsity", self.sparsity, "[0, 1), fraction removed")
        check(self.patch in (4, 16), "model.patch", self.patch, "4 or 16")


@dataclass(frozen=True)
class Train:
    """Training."""

    lr: float = 1e-3
    epochs: int = 10
    ema: float | None = None
    keep: int = 1
    milestones: tuple[int, ...] = (3, 6)
    betas: tuple[float, float] = (0.9, 0.999)
    resume: bool = False

    def __post_init__(self) -> None:
        check(0 < self.lr < float("inf"), "train.lr", self.lr, "a finite number above 0")
        check(self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        check(self.keep >= 1, "train.keep", self.keep, "1 or more")


@dataclass(frozen=True)
class Config:
    """An experiment."""

    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    name: str = "toy"
    out: Path = Path("runs")


CONFIGS = st.builds(
    Config,
    st.builds(
        Model,
        T=st.integers(1, 8),
        dim=st.sampled_from([32, 64]),
        sparsity=st.floats(0, 1, exclude_max=True),
        stem=st.sampled_from(["lif", "relu"]),
    ),
    st.builds(
        Train,
        lr=st.floats(1e-9, 10),
        ema=st.none() | st.floats(0, 1),
        milestones=st.lists(st.integers(0, 99), max_size=3).map(tuple),
        resume=st.booleans(),
    ),
    st.text(),
    st.sampled_from([Path("a"), Path("/x/y")]),
)


@given(CONFIGS)
def test_plain_values_and_configuration_are_inverse(cfg: Config) -> None:
    assert from_dict(Config, to_dict(cfg)) == cfg


@given(CONFIGS)
def test_a_saved_configuration_comes_back(cfg: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_config(cfg, f"{folder}/config.json")
        assert load_config(Config, f"{folder}/config.json") == cfg


def test_what_is_not_named_keeps_its_default_and_dashes_are_underscores() -> None:
    cfg = from_dict(Config, {"model": {"T": 2}, "train": {"lr": 1, "betas": [0.5, 1]}})
    assert cfg == Config(model=Model(T=2), train=Train(lr=1.0, betas=(0.5, 1.0)))
    assert type(cfg.train.lr) is float

    @dataclass(frozen=True)
    class Local:
        weight_decay: float = 0.0

    assert from_dict(Local, {"weight-decay": 2}) == Local(2.0)
    with pytest.raises(ConfigError, match="'weight_decay' is there twice"):
        from_dict(Local, {"weight-decay": 2, "weight_decay": 1})


ROW_35: list[tuple[dict[str, Any], str]] = [
    ({"model": {"T": 0}}, r"model\.T=0 is not allowed: 1 or more"),
    ({"model": {"T": -1}}, r"model\.T=-1 is not allowed"),
    ({"model": {"patch": 8}}, r"model\.patch=8 is not allowed: 4 or 16"),
    ({"model": {"dim": 65}}, r"model\.dim=65 is not allowed: a multiple of 4"),
    ({"model": {"sparsity": 1.0}}, r"model\.sparsity=1\.0 is not allowed: \[0, 1\)"),
    ({"model": {"sparsity": -0.1}}, r"model\.sparsity=-0\.1 is not allowed"),
    ({"model": {"sparsity": "90"}}, r"model\.sparsity='90' is not allowed: a number"),
    ({"model": {"sparsity": True}}, r"model\.sparsity=True is not allowed: a number"),
    ({"model": {"T": 4.0}}, r"model\.T=4\.0 is not allowed: an integer"),
    ({"model": {"T": True}}, r"model\.T=True is not allowed: an integer"),
    ({"model": {"T": None}}, r"model\.T=None is not allowed: an integer"),
    ({"model": {"stem": "lfi"}}, r"'lfi' is not allowed; did you mean 'lif'\? one of lif, relu"),
    ({"model": {"stem": 1}}, r"model\.stem=1 is not allowed: one of lif, relu"),
    ({"model": 3}, r"model=3 is not allowed: 'key: value' lines"),
    ({"model": None}, r"model=None is not allowed"),
    ({"train": {"lr": float("nan")}}, r"train\.lr=nan is not allowed: a finite number above 0"),
    ({"train": {"lr": -1}}, r"train\.lr=-1\.0 is not allowed"),
    ({"train": {"lr": float("inf")}}, r"train\.lr=inf is not allowed"),
    ({"train": {"epochs": 0}}, r"train\.epochs=0 is not allowed"),
    ({"train": {"keep": 0}}, r"train\.keep=0 is not allowed"),
    ({"train": {"ema": "x"}}, r"train\.ema='x' is not allowed: a number or None"),
    ({"train": {"milestones": 3}}, r"train\.milestones=3 is not allowed: a list, each entry an"),
    ({"train": {"milestones": [1, "2"]}}, r"train\.milestones\[1\]='2' is not allowed: an integer"),
    ({"train": {"betas": [1]}}, r"train\.betas=\[1\] is not allowed: a list of 2: a number, a"),
    ({"train": {"resume": "yes"}}, r"train\.resume='yes' is not allowed: true or false"),
    ({"train": {"resume": 1}}, r"train\.resume=1 is not allowed: true or false"),
    ({"name": 10}, r"name=10 is not allowed: a text \(quote it"),
    ({"train": {"epoch": 3}}, r"unknown key 'train\.epoch'; did you mean 'train\.epochs'\?"),
    ({"trian": {}}, r"unknown key 'trian'; did you mean 'train'\?"),
    ({"zzz": 1}, r"unknown key 'zzz'; allowed are model, train, name, out"),
    ({3: 1}, r"unknown key '3'"),
    ({"a\nb": 1}, r"unknown key 'a\\nb'"),
]


@pytest.mark.parametrize(("values", "words"), ROW_35)
def test_a_wrong_value_is_refused_with_field_value_and_allowed(
    values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        from_dict(Config, values)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model:\n  T: 2\n  T: 3\n", r"line 3: the key 'T' is there twice"),
        ("model:\n\tT: 2\n", "line 2: a tab"),
        ("a: &a [x]\nb: *a\n", "line 1: an anchor"),
        ("name: !!python/object/apply:os.system [id]\n", "line 1: the tag"),
        ("model:\n  T: zero\n", r"model\.T='zero' is not allowed: an integer"),
        ("modle: {}\n", "did you mean 'model'"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"c\.yaml.*{words}"):
        load_config(Config, tmp_path / "c.yaml")


def test_numbers_of_a_yaml_file_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {lr: 5e-4, epochs: 3}\nname: 'on'\nout: null\n")
    with pytest.raises(ConfigError, match="out=None is not allowed: a path"):
        load_config(Config, tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("train: {lr: 5e-4, epochs: 3, ema: null}\nname: on\n")
    assert load_config(Config, tmp_path / "c.yaml") == Config(
        train=Train(lr=5e-4, epochs=3), name="on"
    )


def test_differences_name_each_field_old_and_new() -> None:
    old = Config()
    new = Config(model=Model(T=2), train=Train(lr=2, milestones=()), name="x\n" + "y" * 99)
    found = differences(old, new)
    assert found[:3] == [
        "model.T: 4 -> 2",
        "train.lr: 0.001 -> 2",
        "train.milestones: [3, 6] -> []",
    ]
    assert found[3].startswith(r"name: 'toy' -> 'x\ny")
    assert len(found) == 4
    assert not differences(old, old)
    assert not differences(Config(train=Train(lr=1.0)), Config(train=Train(lr=1)))


def test_true_is_not_one_among_literals() -> None:
    @dataclass(frozen=True)
    class Bits:
        bits: Literal[1, 8] = 8

    assert from_dict(Bits, {"bits": 1}) == Bits(1)
    for odd in (True, 1.0, "1"):
        with pytest.raises(ConfigError, match="is not allowed: one of 1, 8"):
            from_dict(Bits, {"bits": odd})


def test_a_missing_field_without_default_is_named() -> None:
    @dataclass(frozen=True)
    class Needs:
        seed: int

    with pytest.raises(ConfigError, match="the key seed is missing"):
        from_dict(Needs, {})
    assert run_id(Needs(1), "x") != run_id(Needs(2), "x")


def test_run_ids_are_stable() -> None:
    # Hex digits of '[{}, {"model.T": 4, ... "train.lr": 0.001, ...}]', found with sha256sum.
    assert run_id(Config(), "toy") == "toy-88229144"
    written = from_dict(Config, {"model": {"T": 4}, "train": {"lr": 1e-3}, "out": "runs"})
    assert run_id(written, "toy") == "toy-88229144"


def test_a_run_id_counts_every_field_and_what_the_run_is_besides() -> None:
    @dataclass(frozen=True)
    class OtherDefault(Config):
        name: str = "other"

    assert run_id(Config(), "x") != run_id(OtherDefault(), "x")
    assert run_id(Config(train=Train(lr=1)), "x") == run_id(Config(train=Train(lr=1.0)), "x")
    kinds = [{}, {"search": "imp"}, {"search": "biprop"}, {"recipe": "imp"}, {"split": "imp"}]
    assert len({run_id(Config(), "x", (), kind) for kind in kinds}) == len(kinds)


@given(CONFIGS, CONFIGS)
def test_other_configurations_have_other_run_ids(one: Config, two: Config) -> None:
    assert (run_id(one, "x") == run_id(two, "x")) == (not differences(one, two))


def test_excluded_fields_and_groups_do_not_count() -> None:
    moved = Config(train=Train(resume=True, keep=3), out=Path("elsewhere"))
    for out in (("out", "train.resume", "train.keep"), ("out", "train")):
        assert run_id(moved, "x", exclude=out) == run_id(Config(), "x", exclude=out)
    assert run_id(moved, "x", exclude=("out",)) != run_id(Config(), "x", exclude=("out",))
    with pytest.raises(ConfigError, match=r"exclude='train.resum' names no field; did you mean"):
        run_id(moved, "x", exclude=("train.resum",))


@pytest.mark.parametrize(
    "slug", ["../../etc", "a/b", "a\nb", "", "n" * 300, "日本", "=cmd()", "-rf", "."]
)
def test_a_hostile_slug_becomes_one_name_inside_the_folder(slug: str, tmp_path: Path) -> None:
    name = run_id(Config(), slug)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name.isascii()
    assert len(name) < 120
    (tmp_path / name).mkdir()
