"""The command line: options, help, files, exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from spikeformer_lt.config import adapted, check, given_options, parse, run_recipe
from spikeformer_lt.errors import ConfigError, Interrupted, NonFiniteError


@dataclass(frozen=True)
class Data:
    """Where the images come from."""

    name: str = "digits"
    """Data set by name; see list_datasets()."""
    num_workers: int = 2
    """Loader processes, 0 or more."""
    download: bool = False
    """May the network be used?"""
    split: Literal["val", "test"] = "val"
    """Which part to evaluate."""

    def __post_init__(self) -> None:
        check(self.num_workers >= 0, "data.num_workers", self.num_workers, "0 or more")


@dataclass(frozen=True)
class Train:
    """How weights are learned."""

    lr: float = 1e-3
    """Learning rate per optimizer step."""
    ema: float | None = None
    """Decay of the weight average per step, or None for no average."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments per step."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the rate falls."""

    def __post_init__(self) -> None:
        check(0 < self.lr < float("inf"), "train.lr", self.lr, "a finite number above 0")


@dataclass(frozen=True)
class Recipe:
    """Train a toy.

    A second paragraph.
    """

    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    seed: int = 0
    """Seed of everything drawn."""

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", self.seed, "0 or more")


def options(text: str) -> Recipe:
    return parse(Recipe, text.split(), prog="toy.py")


def test_without_options_everything_has_its_default() -> None:
    assert options("") == Recipe()


def test_options_of_every_kind_are_read() -> None:
    found = options(
        "--data.name cifar10 --data.download --data.split=test --train.lr 5e-4 --train.ema 0.99 "
        "--train.betas 0.5 0.6 --train.milestones 3 6 9 --seed 7"
    )
    assert found == Recipe(
        Data("cifar10", download=True, split="test"),
        Train(5e-4, 0.99, (0.5, 0.6), (3, 6, 9)),
        seed=7,
    )
    assert options("--train.ema None --data.no-download") == Recipe()


def test_dashes_and_underscores_are_alike() -> None:
    expected = Recipe(Data(num_workers=3))
    for text in ("--data.num_workers 3", "--data.num-workers 3", "--data.num-workers=3"):
        assert options(text) == expected
    assert options("--data.no_download") == Recipe()


def test_what_is_assigned_is_an_option_if_there_is_one_of_this_name() -> None:
    for text in ("seed=7 data.num-workers=3", "data.num_workers=3 --seed=7"):
        assert options(text) == Recipe(Data(num_workers=3), seed=7)
    assert options("--data.name sead=7") == Recipe(Data("sead=7"))  # the name of no option
    with pytest.raises(ConfigError, match="sead=7"):
        options("sead=7")


def test_a_tilde_is_the_home_folder_wherever_no_shell_was(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("data: {name: ~/x}")
    expected = Recipe(Data(f"{tmp_path}/x"))
    for text in ("--data.name=~/x", "--data.name ~/x", "data.name=~/x", "--config=~/a.yaml"):
        assert options(text) == expected
    for text in ("a~/x", "~x", "/~/x"):
        assert options(f"--data.name={text}") == Recipe(Data(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--seed x", r"--seed='x' is not allowed: an integer; see toy\.py --help"),
        ("--seed 1.5", "--seed='1.5' is not allowed: an integer"),
        ("--train.lr abc", "--train.lr='abc' is not allowed: a number"),
        ("--train.ema abc", r"--train\.ema='abc' is not allowed: a number or None"),
        ("--train.betas 0.5", r"--train\.betas.*; allowed: a list of 2: a number, a number"),
        ("--data.split tset", "'tset'.*; allowed: one of val, test"),
        ("--seed", "--seed.*; allowed: an integer"),
        ("stray", "stray"),
        ("--data.download true", "true"),
        ("--seeds 3", r"unknown option '--seeds'; did you mean '--seed'\? see --help"),
        ("--data.worker 3", r"'--data\.worker'; did you mean '--data\.num-workers'\?"),
        ("--lr 3", r"unknown option '--lr'; did you mean --train\.lr\?"),
        ("--zzz", r"unknown option '--zzz'; see --help"),
        ("--data.no-name", r"unknown option '--data\.no-name'"),
        ("--seed -1", "seed=-1 is not allowed: 0 or more"),
        ("--data.num_workers -1", r"^data\.num_workers=-1 is not allowed: 0 or more$"),
        ("--train.lr nan", r"^train\.lr=nan is not allowed: a finite number above 0$"),
        ("--train.lr -1", r"^train\.lr=-1\.0 is not allowed"),
        ("--config", "--config needs a file"),
        ("--config --seed 3", "--config needs a file"),
        ("--config a.yaml --config b.yaml", "--config is there twice: 'a.yaml' and 'b.yaml'"),
        ("--config none.yaml", r"cannot read 'none\.yaml': No such file"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        options(text)
    assert str(caught.value).isprintable()
    assert not any(capsys.readouterr())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_line_is_the_same_on_every_terminal(encoding: str) -> None:
    code = (
        "from dataclasses import dataclass\n"
        "from spikeformer_lt.config import run_recipe\n"
        "@dataclass(frozen=True)\n"
        "class C:\n"
        "    seed: int = 0\n"
        "run_recipe(print, C, ['--seed', 'x'], prog='toy.py')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: --seed='x' is not allowed: an integer; see .*\n", done.stderr)


def test_a_long_hostile_value_stays_on_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, ["--seed", "1\n\x1b[31m" + "9x" * 300], prog="toy.py")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_options_override_the_file_and_the_file_the_defaults(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"c.{ending}"
    path.write_text('{"data": {"num_workers": 5, "name": "cifar10"}, "train": {"lr": 0.5}}')
    for argv in (["--config", str(path)], [f"--config={path}"]):
        found = parse(Recipe, [*argv, "--data.num-workers", "1"], prog="toy.py")
        assert found == Recipe(Data("cifar10", 1), Train(0.5))


def test_a_wrong_key_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data:\n  worker: 5\n")
    with pytest.raises(ConfigError, match=r"c\.yaml'?: unknown key 'data\.worker'; did you mean"):
        parse(Recipe, ["--config", str(tmp_path / "c.yaml")])


def test_help_lists_each_option_with_its_words_and_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        options("--help")
    assert stop.value.code in (0, None)
    out, err = capsys.readouterr()
    assert not err
    text = re.sub(r"[\s│]+", " ", out)
    assert "Train a toy. A second paragraph." in text
    assert "--config FILE" in text
    assert "--debug" in text
    for option, words in (
        ("--data.name STR", "Data set by name; see list_datasets(). (default: digits)"),
        ("--data.num-workers INT", "Loader processes, 0 or more. (default: 2)"),
        ("--data.download, --data.no-download", "May the network be used? (default: False)"),
        ("--data.split {val,test}", "Which part to evaluate. (default: val)"),
        ("--train.lr FLOAT", "Learning rate per optimizer step. (default: 0.001)"),
        ("--train.betas FLOAT FLOAT", "Decay of the two moments per step. (default: 0.9 0.999)"),
        ("--seed INT", "Seed of everything drawn. (default: 0)"),
    ):
        assert f"{option} {words}" in text
    assert "Where the images come from." in text


def status(main: object, *argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        run_recipe(main, Recipe, argv, prog="toy.py")  # type: ignore[arg-type]
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_recipe_that_ends_has_status_0() -> None:
    seen: list[Recipe] = []
    assert status(seen.append, "--seed", "3") == 0
    assert seen == [Recipe(seed=3)]


def test_an_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: Recipe) -> None:
        raise NonFiniteError("loss is nan\nin step 3")

    assert status(main) == 2
    assert status(main, "--seed", "x") == 2
    out, err = capsys.readouterr()
    assert not out
    lines = err.splitlines()
    assert lines[0] == "error: loss is nan in step 3"
    assert lines[1].startswith("error: --seed='x' is not allowed: ")
    assert len(lines) == 2


def test_under_accelerates_launcher_its_traceback_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which the launcher sets
    assert status(print, "--seed", "x") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert (
        first.startswith("error: --seed='x' is not allowed: ")
        and "accelerate launch --quiet leaves" in second
    )
    monkeypatch.setenv("WORLD_SIZE", "2")  # of several processes it cannot be quiet
    assert status(print, "--seed", "x") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("argv", [("--debug", "--seed", "1"), ("--seed", "1", "--debug")])
def test_debug_anywhere_gives_the_traceback(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(cfg: Recipe) -> None:
        assert cfg.seed == 1
        raise ConfigError("words")

    assert status(main, *argv) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: words"


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Interrupted(2, "saved"), 130), (Interrupted(15, "saved"), 143), (KeyboardInterrupt(), 130)],
)
def test_a_stopped_run_has_the_signals_status(
    fault: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Recipe) -> None:
        raise fault

    assert status(main) == code
    assert capsys.readouterr().err.startswith("stopped: ")


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (ZeroDivisionError("by\nzero"), 1, "bug or plug-in: ZeroDivisionError: by\\nzero; --debug"),
        (OSError(28, "No space left", "runs/x"), 2, "error: the system refuses 'runs/x': No space"),
        (MemoryError(), 2, "error: the memory does not suffice"),
        (RuntimeError("CUDA out of memory"), 2, "error: the memory does not suffice"),
        (RuntimeError("shape"), 1, "bug or plug-in: RuntimeError: shape"),
        (ConfigError("lr=3 is not allowed"), 2, "error: --train.lr=3 is not allowed"),
    ],
)
@pytest.mark.fault(100)
def test_every_fault_ends_in_one_line_and_its_status(fault, code, line, capsys) -> None:
    def main(_: Recipe) -> None:
        raise fault

    argv = ["--train.lr", "3"] if isinstance(fault, ConfigError) else []
    assert status(main, *argv) == code
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1


@pytest.mark.fault(101)
def test_an_option_with_two_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--train\.lr is there twice: '1' and '2'"):
        parse(Recipe, ["--train.lr", "1", "--train.lr=2"])
    assert parse(Recipe, ["--train.lr", "1", "--train.lr=1"]).train.lr == 1


def test_a_configuration_error_waits_for_no_heavy_library() -> None:
    code = (
        "import sys; from dataclasses import dataclass\n"
        "from spikeformer_lt.config import parse\n"
        "@dataclass(frozen=True)\n"
        "class C:\n"
        "    seed: int = 0\n"
        "try:\n"
        "    parse(C, ['--sed', '3'], prog='x')\n"
        "except ValueError as fault:\n"
        "    print(fault)\n"
        "print(sorted({'torch', 'numpy', 'timm', 'accelerate', 'tonic'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "unknown option '--sed'; did you mean '--seed'? see --help",
        "[]",
    ]


def test_what_the_user_named_is_known_even_where_it_is_the_default(tmp_path) -> None:
    assert given_options(options("")) == given_options(Recipe()) == frozenset()
    found = options("--seed 0 --data.num-workers=0 --data.no-download --train.betas 0.5 0.6")
    assert given_options(found) == {"seed", "data.num_workers", "data.download", "train.betas"}
    file = tmp_path / "c.yaml"
    file.write_text("seed: 0\ntrain:\n  lr: 1.0e-3\n")
    found = options(f"--config {file} --data.name digits")
    assert given_options(found) == {"seed", "train.lr", "data.name"}


def test_an_adapted_configuration_still_knows_what_the_user_named() -> None:
    cfg = parse(Adaptable, ["--name", "b"])
    changed = adapted(cfg, size=7)
    assert (changed.name, changed.size) == ("b", 7)
    assert given_options(changed) == given_options(cfg) == {"name"}
    assert given_options(replace(cfg, size=7)) == frozenset()


@dataclass(frozen=True)
class Adaptable:
    """Two fields."""

    name: str = "a"
    """A word."""
    size: int = 1
    """A number."""


def test_plugins_are_imported_and_leave_the_other_options_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKEFORMER_LT_PLUGINS", "")
    for name in "abc":
        text = f"import os\nos.environ['SEEN_BY_A_TEST'] = os.environ['SEEN_BY_A_TEST'] + '{name}'"
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("SEEN_BY_A_TEST", "")
    a, b, c = (str(tmp_path / f"{name}.py") for name in "abc")
    cfg = parse(Recipe, ["--plugins", a, b, "--train.lr", "0.5", f"--plugins={c}"])
    assert cfg.train.lr == 0.5 and os.environ["SEEN_BY_A_TEST"] == "abc"
    for bad in (["--plugins"], ["--plugins", "--train.lr", "0.5"]):
        with pytest.raises(ConfigError, match=r"--plugins needs files"):
            parse(Recipe, bad)
    with pytest.raises(ConfigError, match=r"lost\.py.*a Python file that exists"):
        parse(Recipe, ["--plugins", str(tmp_path / "lost.py")])
