from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from spikeformer_lt.config import save_config
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.run import CONFIG, RunChoice, RunDir, holds_run


@dataclass(frozen=True)
class Train:
    epochs: int = 3
    lr: float = 0.1


@dataclass(frozen=True)
class Run:
    out: str = ""
    resume: str = "never"


@dataclass(frozen=True)
class Config:
    train: Train = field(default_factory=Train)
    run: Run = field(default_factory=Run)


def choice(root: Path, resume: str = "never", **given) -> RunChoice:
    fields = {"config": Config(), "run_id": "x-0123abcd", "allow": ()}
    return RunChoice(**{**fields, "resume": resume, "root": root, **given})


def begun(folder: Path, config: Config | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config or Config(), folder / CONFIG)
    return folder


def test_without_a_path_each_run_gets_its_own_folder(tmp_path):
    asked = choice(tmp_path / "runs")
    assert [asked.choose("")[0].name for _ in range(3)] == [
        "x-0123abcd",
        "x-0123abcd-2",
        "x-0123abcd-3",
    ]
    assert all(not holds_run(folder) for folder in (tmp_path / "runs").iterdir())


def test_runs_that_begin_in_the_same_instant_get_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: choice(tmp_path).choose(""), range(40)))
    assert len({folder for folder, _ in found}) == 40
    assert not any(resumed for _, resumed in found)


def test_auto_goes_on_in_the_newest_folder_of_the_same_configuration(tmp_path):
    assert choice(tmp_path / "none", "auto").choose("")[1] is False
    begun(tmp_path / "x-0123abcd")
    begun(tmp_path / "x-0123abcd-2")
    begun(tmp_path / "x-0123abcd-10", Config(train=Train(lr=0.5)))
    begun(tmp_path / "x-0123abcd-old")
    (tmp_path / "x-0123abcd-11").mkdir()
    (begun(tmp_path / "x-0123abcd-12") / CONFIG).write_text("{")
    assert choice(tmp_path, "auto").choose("") == (tmp_path / "x-0123abcd-2", True)
    assert choice(tmp_path, "never").choose("") == (tmp_path / "x-0123abcd-3", False)


def test_a_path_is_taken_new_or_empty_or_with_the_leftovers_of_a_killed_start(tmp_path):
    for name, make in {
        "new": lambda p: None,
        "empty": lambda p: p.mkdir(),
        "killed": lambda p: (p.mkdir(), (p / ".lock").touch(), (p / ".config.json.tmp-1").touch()),
    }.items():
        make(tmp_path / name)
        for resume in ("never", "auto"):
            assert choice(tmp_path, resume).choose(str(tmp_path / name)) == (tmp_path / name, False)


@pytest.mark.fault(4)
def test_a_path_that_holds_a_run_is_resumed_by_auto_and_never_overwritten(tmp_path):
    folder = begun(tmp_path / "mine", Config(train=Train(lr=0.5, epochs=4)))
    assert choice(tmp_path, "auto").choose(str(folder)) == (folder, True)
    with pytest.raises(ConfigError) as caught:
        choice(tmp_path).choose(str(folder))
    message = str(caught.value)
    assert "already holds a run" in message
    assert "train.epochs: 4 -> 3; train.lr: 0.5 -> 0.1" in message
    assert "--run.resume auto" in message
    begun(folder)
    with pytest.raises(
        ConfigError, match="already holds a run, and nothing is ever overwritten; go"
    ):
        choice(tmp_path).choose(str(folder))


def test_what_is_no_run_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter\n1.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for resume in ("never", "auto"):
        with pytest.raises(ConfigError, match=r"not empty \('chapter\\n1.tex', 1 in all\)"):
            choice(tmp_path, resume).choose(str(tmp_path / "thesis"))
        with pytest.raises(ConfigError, match="is a file, not a directory"):
            choice(tmp_path, resume).choose(str(tmp_path / "file"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter\n1.tex", "file", "thesis"]


def test_resume_by_path_wants_a_run_there_and_no_other_path(tmp_path):
    folder = begun(tmp_path / "mine")
    asked = choice(tmp_path, str(folder))
    assert asked.choose("") == (folder, True)
    assert asked.choose(f"{tmp_path}/x/../mine") == (folder, True)
    with pytest.raises(ConfigError, match="two directories; give one of them"):
        asked.choose(str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"holds a run, which has a config\.json"):
        choice(tmp_path, str(tmp_path)).choose("")
    with pytest.raises(ConfigError, match="resume='atuo' .*did you mean 'auto'"):
        choice(tmp_path, "atuo").choose("")


def test_own_fields_are_not_compared_and_allowed_ones_are_told_by_field_or_group(tmp_path):
    folder = begun(tmp_path / "mine", Config(run=Run(out="elsewhere")))
    new = replace(Config(), train=Train(epochs=9, lr=0.2))
    lines = choice(tmp_path, config=new).changes(folder)
    assert lines == ["train.epochs: 3 -> 9", "train.lr: 0.1 -> 0.2"]
    for allow, refused in {"train.epochs": lines[1:], "train": [], "tra": None}.items():
        asked = partial(RunDir.open, folder, new, resume="auto", allow=[allow])
        words = "is not allowed" if refused is None else f"configuration: {'; '.join(refused)};"
        with pytest.raises(ConfigError, match=words) if refused != [] else nullcontext():
            asked().close()
