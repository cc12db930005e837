from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from spikeformer_lt import runtime
from spikeformer_lt.runtime import describe_environment, environment_changes


def test_everything_that_a_number_depends_on_is_there(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "-q"])  # a test process of its own has another
    found = describe_environment(seed=7, world_size=2)
    assert json.loads(json.dumps(found)) == found
    versions = found["versions"]
    assert versions["torch"] == torch.__version__
    for name in ("python", "timm", "spikingjelly", "numpy", "spikeformer_lt", "accelerate"):
        assert versions[name][0].isdigit(), name
    assert found["seed"] == 7
    assert found["world_size"] == 2
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu_count"] >= 1
    assert found["cpu"]
    assert "pytest" in found["command"]


def test_a_package_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr(runtime, "PACKAGES", ("no-such-package-at-all",))
    assert describe_environment()["versions"]["no-such-package-at-all"] is None


def git(folder: Path, *words: str) -> str:
    names = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for who in ("AUTHOR", "COMMITTER"):
        names |= {f"GIT_{who}_NAME": "n", f"GIT_{who}_EMAIL": "e@example.org"}
    done = subprocess.run(
        ["git", "-C", str(folder), *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **names},
    )
    return done.stdout.strip()


def test_the_commit_of_our_own_tree_is_told_and_whether_it_is_changed(tmp_path, monkeypatch):
    package = tmp_path / "tree" / "spikeformer_lt"
    package.mkdir(parents=True)
    source = package / "runtime.py"
    source.write_text("1")
    monkeypatch.setattr(runtime, "__file__", str(source))
    told = describe_environment()
    assert (told["git_commit"], told["git_clean"]) == (None, None)
    tree = tmp_path / "tree"
    git(tree, "init", "-q")
    told = describe_environment()
    assert told["git_commit"] is None, "a tree without a commit"
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "first")
    told = describe_environment()
    assert (told["git_commit"], told["git_clean"]) == (git(tree, "rev-parse", "HEAD"), True)
    source.write_text("2")
    assert describe_environment()["git_clean"] is False


def test_the_commit_of_a_tree_that_only_surrounds_the_package_is_not_told(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "lib" / "spikeformer_lt"
    package.mkdir(parents=True)
    (package / "runtime.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "theirs")
    monkeypatch.setattr(runtime, "__file__", str(package / "runtime.py"))
    assert describe_environment()["git_commit"] is None


def test_a_machine_without_git_or_cpuinfo_is_described_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "none")
    found = describe_environment()
    assert found["git_commit"] is None
    assert found["cpu"]


def test_changes_name_versions_and_machine_but_not_command_and_commit():
    old = describe_environment(seed=1)
    new = json.loads(json.dumps(old))
    assert environment_changes(old, new) == []
    new["versions"]["torch"] = "9.9"
    new["threads"] = old["threads"] + 1
    new["command"] = "other"
    new["git_commit"] = "other"
    new["versions"]["extra"] = "1"
    assert environment_changes(old, new) == [
        f"threads: {old['threads']} -> {old['threads'] + 1}",
        f"torch: {torch.__version__} -> 9.9",
        "extra: None -> 1",
    ]
    assert environment_changes({"versions": "damaged"}, {"versions": {}}) == []
