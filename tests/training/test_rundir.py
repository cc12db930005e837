from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spikeformer_lt.config import load_config
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.run import RunDir


@dataclass(frozen=True)
class Train:
    epochs: int = 3
    batch_size: int = 8
    seed: int = 42


@dataclass(frozen=True)
class Run:
    out: str = ""
    resume: str = "never"


@dataclass(frozen=True)
class Config:
    train: Train = field(default_factory=Train)
    run: Run = field(default_factory=Run)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_run_has_its_configuration_environment_and_log(tmp_path):
    config = Config(train=Train(epochs=5))
    with RunDir.open(tmp_path / "mine", config, slug="toy-digits", seed=42) as run:
        assert run.path == tmp_path / "mine"
        assert not run.resumed
        assert run.rows() == 0
        logging.getLogger("spikeformer_lt.x").info("hello")
    assert names(run.path) == [".lock", "config.json", "env.json", "log.txt"]
    assert load_config(Config, run.path / "config.json") == config
    env = json.loads((run.path / "env.json").read_text())
    assert env["seed"] == 42
    assert env["world_size"] == 1
    assert env["versions"]["torch"]
    assert "hello" in (run.path / "log.txt").read_text()


def test_the_name_is_the_slug_and_a_hash_of_what_was_changed_and_not_of_the_folder(tmp_path):
    def name(config: Config) -> str:
        with RunDir.open("", config, slug="toy", root=tmp_path) as run:
            return run.run_id

    plain = name(Config())
    assert plain.startswith("toy-")
    assert name(Config(run=Run(out="elsewhere", resume="auto"))) == plain
    other = name(Config(train=Train(epochs=4)))
    assert other.startswith("toy-")
    assert other != plain
    assert names(tmp_path) == sorted([plain, f"{plain}-2", other])


@pytest.mark.parametrize(
    "slug",
    ["../../etc", "/etc/passwd", "..", "a\nb", "é" * 300, "", "CON", "=cmd", "a" * 300, "x\x00y"],
)
def test_a_hostile_name_stays_inside_the_root(tmp_path, slug):
    root = tmp_path / "runs"
    with RunDir.open("", Config(), slug=slug, root=root) as run:
        assert run.path.parent == root
        assert run.path.resolve().parent == root.resolve()
        assert run.path.name.isascii()
        assert len(run.path.name) < 130
    assert names(tmp_path) == ["runs"]


def test_two_runs_of_one_configuration_get_two_folders(tmp_path):
    with (
        RunDir.open("", Config(), root=tmp_path) as first,
        RunDir.open("", Config(), root=tmp_path) as second,
    ):
        assert first.path != second.path
        assert first.run_id == second.run_id


def test_auto_resumes_what_is_there(tmp_path):
    for again in (False, True, True):
        with RunDir.open(tmp_path / "a", Config(), resume="auto") as run:
            assert run.resumed is again
            run.append_row({"epoch": 1})
    assert RunDir(tmp_path / "a").rows() == 3
    with RunDir.open("", Config(), resume=str(tmp_path / "a")) as run:
        assert run.resumed
    assert "changed_on_resume" in json.loads((tmp_path / "a" / "env.json").read_text())


@pytest.mark.fault(7)
def test_resuming_with_another_configuration_names_each_field_and_changes_nothing(tmp_path):
    RunDir.open(tmp_path / "a", Config()).close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    other = Config(train=Train(epochs=9, batch_size=16), run=Run(resume="auto"))
    with pytest.raises(ConfigError) as caught:
        RunDir.open(tmp_path / "a", other, resume="auto")
    message = str(caught.value)
    assert "train.epochs: 3 -> 9; train.batch_size: 8 -> 16" in message
    assert "--run.allow-config-change train.epochs train.batch_size" in message
    with pytest.raises(ConfigError) as caught:
        RunDir.open(tmp_path / "a", other, resume="auto", allow=["train.batch_size"])
    assert "batch_size: 8" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_an_allowed_change_is_logged_noted_and_becomes_the_configuration(tmp_path):
    RunDir.open(tmp_path / "a", Config()).close()
    other = Config(train=Train(epochs=9))
    RunDir.open(tmp_path / "a", other, resume="auto", allow=["train.epochs"]).close()
    assert load_config(Config, tmp_path / "a" / "config.json") == other
    assert "resumed with a change: train.epochs: 3 -> 9" in (tmp_path / "a/log.txt").read_text()
    RunDir.open(tmp_path / "a", other, resume="auto").close()
    env = json.loads((tmp_path / "a" / "env.json").read_text())
    assert env["changed_on_resume"] == ["train.epochs: 3 -> 9"]


def edit_env(folder: Path, **changes: object) -> None:
    env = json.loads((folder / "env.json").read_text())
    env["versions"] |= changes.pop("versions", {})
    (folder / "env.json").write_text(json.dumps(env | changes))


@pytest.mark.fault(53)
def test_an_environment_that_is_none_of_ours_is_refused_by_field(tmp_path):
    RunDir.open(tmp_path / "a", Config()).close()
    odd = {"changed_on_resume": 3, "identity": [1], "world_size": "two", "versions": "x"}
    sound = json.loads((tmp_path / "a" / "env.json").read_text())
    for name, value in odd.items():
        (tmp_path / "a" / "env.json").write_text(json.dumps({**sound, name: value}))
        with pytest.raises(ConfigError, match=f"env.json.*{name}="):
            RunDir.open(tmp_path / "a", Config(), resume="auto")
    empty = dict.fromkeys(("changed_on_resume", "identity", "versions"))
    (tmp_path / "a" / "env.json").write_text(json.dumps(sound | empty))
    RunDir.open(tmp_path / "a", Config(), resume="auto").close()


@pytest.mark.fault(7)
def test_another_world_size_is_refused_unless_allowed(tmp_path):
    RunDir.open(tmp_path / "a", Config()).close()
    edit_env(tmp_path / "a", world_size=4)
    with pytest.raises(ConfigError, match="world_size: 4 -> 1"):
        RunDir.open(tmp_path / "a", Config(), resume="auto")
    RunDir.open(tmp_path / "a", Config(), resume="auto", allow=["world_size"]).close()


def test_other_versions_are_a_warning_only(tmp_path, caplog):
    RunDir.open(tmp_path / "a", Config()).close()
    edit_env(tmp_path / "a", versions={"torch": "1.0"})
    RunDir.open(tmp_path / "a", Config(), resume="auto").close()
    assert "the last bits may differ: torch: 1.0 ->" in caplog.text


def test_a_run_whose_start_was_killed_after_its_configuration_can_be_resumed(tmp_path):
    RunDir.open(tmp_path / "a", Config()).close()
    (tmp_path / "a" / "env.json").unlink()
    with RunDir.open(tmp_path / "a", Config(), resume="auto") as run:
        assert run.resumed
    assert (tmp_path / "a" / "env.json").exists()


def test_a_damaged_env_or_config_is_an_error_with_the_file(tmp_path):
    RunDir.open(tmp_path / "a", Config()).close()
    whole = (tmp_path / "a" / "env.json").read_text()
    for damage in (whole[:30], "[]", "\x00"):
        (tmp_path / "a" / "env.json").write_text(damage)
        with pytest.raises(ConfigError, match=r"env\.json"):
            RunDir.open(tmp_path / "a", Config(), resume="auto")
    (tmp_path / "a" / "env.json").write_text(whole)
    (tmp_path / "a" / "config.json").write_text('{"train": {"epoch": 3}}')  # of another recipe
    with pytest.raises(ConfigError, match=r"config\.json.*'train\.epoch'.*same recipe"):
        RunDir.open(tmp_path / "a", Config(), resume="auto")


def test_an_unknown_field_in_the_allowed_list_is_refused_with_a_hint(tmp_path):
    with pytest.raises(ConfigError, match=r"'train\.epoch'.*did you mean 'train\.epochs'"):
        RunDir.open(tmp_path / "a", Config(), allow=["train.epoch"])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "loop"])
@pytest.mark.fault(4)
def test_a_path_that_cannot_be_a_folder_is_an_error_with_the_path(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=place[-7:]):  # a long path is cut in its middle
        RunDir.open(tmp_path / place, Config())
    with pytest.raises(ConfigError, match="file"):
        RunDir.open("", Config(), root=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.fault(4)
def test_a_read_only_folder_is_an_error_with_the_path(tmp_path, monkeypatch):
    def refuse(path, *rest, **more):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(
            ConfigError, match="new.*Read-only file system; choose another --run.out"
        ):
            RunDir.open(tmp_path / "new", Config())
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(ConfigError, match=r"cannot write .*config\.json.*Read-only"):
            RunDir.open(tmp_path / "new", Config())
    assert not (tmp_path / "new").exists()  # what could not begin gives the place back
    RunDir.open(tmp_path / "new", Config()).close()


OTHER = """
import sys, time
from dataclasses import dataclass
from spikeformer_lt.training.run import RunDir
@dataclass(frozen=True)
class Config:
    epochs: int = 3
run = RunDir.open(sys.argv[1], Config())
print("open", flush=True)
time.sleep(60)
"""


@pytest.mark.fault(4)
def test_a_run_in_progress_is_not_resumed_by_a_second_process(forks, tmp_path):
    @dataclass(frozen=True)
    class Same:
        epochs: int = 3

    path = str(tmp_path / "a")
    other = forks.start("-c", OTHER, path)
    try:
        assert other.readline() == "open\n"
        with pytest.raises(ConfigError, match=f"in use by process {other.pid}"):
            RunDir.open(path, Same(), resume="auto")
    finally:
        other.kill()
        other.wait(10)
    with RunDir.open(path, Same(), resume="auto") as run:
        assert run.resumed


def test_a_report_is_written_whole_and_refuses_what_is_not_finite(tmp_path):
    with RunDir.open(tmp_path / "a", Config()) as run:
        report = {"test_accuracy": 0.5, "firing_rate": {"a\n": 0.1}, "best_epoch": None}
        run.write_report(report)
        assert json.loads((run.path / "report.json").read_text()) == report
        with pytest.raises(ConfigError, match=r"report\.firing_rate\.conv is nan"):
            run.write_report({"firing_rate": {"conv": float("nan")}})
        assert json.loads((run.path / "report.json").read_text()) == report
        run.write_report({}, "../../x.json")
    assert names(tmp_path) == ["a"]


def test_every_table_goes_back_to_the_rows_of_the_checkpoint(tmp_path):
    with RunDir.open(tmp_path / "run", Config(), resume="auto") as run:
        for epoch in (1, 2, 3):
            run.append_row({"epoch": epoch})
            run.append_row({"epoch": epoch, "a.act": 0.5}, "firing")
    with RunDir.open(tmp_path / "run", Config(), resume="auto") as run:
        run.truncate(1)
        assert run.rows() == 1
    assert (tmp_path / "run/summary.csv").read_text().splitlines() == ["epoch", "1"]
    assert (tmp_path / "run/firing.csv").read_text().splitlines() == ["epoch,a.act", "1,0.5"]


def test_a_run_begun_before_its_rates_were_kept_goes_on(tmp_path):
    with RunDir.open(tmp_path / "run", Config(), resume="auto") as run:
        run.append_row({"epoch": 1})
    with RunDir.open(tmp_path / "run", Config(), resume="auto") as run:
        run.truncate(1)
        run.append_row({"epoch": 2})
        run.append_row({"epoch": 2, "a.act": 0.5}, "firing")
    with RunDir.open(tmp_path / "run", Config(), resume="auto") as run:
        run.truncate(2)
        run.append_row({"epoch": 3, "a.act": 0.25}, "firing")
    assert (tmp_path / "run/firing.csv").read_text().splitlines()[-2:] == ["2,0.5", "3,0.25"]


def test_a_rank_that_is_not_the_writer_writes_nothing(tmp_path):
    with RunDir.open(tmp_path / "a", Config()) as run:
        run.append_row({"epoch": 1})
        run.append_row({"epoch": 2})
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    follower = RunDir(run.path, resumed=True, writer=False)
    follower.append_row({"epoch": 3})
    follower.truncate(0)
    follower.write_report({})
    assert follower.rows() == 2
    follower.close()
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


RANKS = """
import sys, torch
from dataclasses import dataclass
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.run import RunDir
@dataclass(frozen=True)
class Config:
    epochs: int = 3
rank, store, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
run = RunDir.open("", Config(), root=root)
print(run.path.name, run.run_id, run.resumed, run.writer, end=" ")
run.close()
run = RunDir.open("", Config(), root=root, resume="auto")
print(run.resumed, end=" ")
run.close()
try:
    RunDir.open(sys.argv[4], Config())
except ConfigError as fault:
    print(type(fault).__name__, "is a file" in str(fault))
torch.distributed.destroy_process_group()
"""


@pytest.mark.fault(41)
def test_ranks_share_one_directory_which_the_first_makes(forks, tmp_path):
    (tmp_path / "file").touch()
    given = [str(tmp_path / name) for name in ("store", "runs", "file")]
    ranks = [forks.start("-c", RANKS, rank, *given) for rank in range(2)]
    said = [rank.communicate(60)[0].split() for rank in ranks]
    assert said[0][:2] == said[1][:2]
    assert said[0][2:] == ["False", "True", "True", "ConfigError", "True"]
    assert said[1][2:] == ["False", "False", "True", "ConfigError", "True"]
    assert names(tmp_path / "runs") == [said[0][0]]
    env = json.loads((tmp_path / "runs" / said[0][0] / "env.json").read_text())
    assert env["world_size"] == 2


@pytest.mark.fault(4)
def test_an_abandoned_start_gives_the_place_back(tmp_path):
    before = logging.getLogger("spikeformer_lt").handlers[:]
    for path in (str(tmp_path / "run"), ""):
        first = RunDir.open(path, Config(), root=tmp_path / "runs")
        first.abandon()
        assert not first.path.exists()
        with RunDir.open(path, Config(train=Train(epochs=4)), root=tmp_path / "runs") as again:
            assert not again.resumed
    assert logging.getLogger("spikeformer_lt").handlers == before


@pytest.mark.parametrize("kept", ["row", "checkpoint", "resumed"])
def test_a_run_that_did_something_is_never_abandoned(tmp_path, kept):
    run = RunDir.open(tmp_path / "run", Config())
    if kept == "row":
        run.append_row({"epoch": 1})
    elif kept == "checkpoint":
        (run.path / "last").mkdir()
    else:
        run.close()
        run = RunDir.open(tmp_path / "run", Config(), resume="auto")
    before = names(run.path)
    run.abandon()
    assert names(run.path) == before
    with RunDir.open(tmp_path / "run", Config(), resume="auto") as again:  # it is free, too
        assert again.resumed
