"""Files of a user that register names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import VARIABLE, create_dataset, create_model, list_models, use_plugins

MODEL = """
from torch import nn
from spikeformer_lt.registry import register_model

COUNT = []

@register_model
def {name}(width: int = 3) -> nn.Module:
    "A layer."
    return nn.Linear(width, width)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)

    def write(name, text=MODEL):
        path = tmp_path / f"{name}.py"
        path.write_text(text.format(name=name))
        return path

    return write


def test_a_file_brings_its_names_once_and_tells_child_processes(plugin, tmp_path, monkeypatch):
    path = plugin("plugged_in_model")
    monkeypatch.chdir(tmp_path)
    use_plugins([path.name])
    use_plugins([path])  # a second import would be a second definition
    assert "plugged_in_model" in list_models()
    assert create_model("plugged_in_model", width=5).in_features == 5
    assert os.environ[VARIABLE] == str(path)
    ask = "from spikeformer_lt import list_models; print('plugged_in_model' in list_models())"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", ask], capture_output=True, text=True, cwd=os.sep, check=True
    )
    assert ended.stdout == "True\n"


def test_a_name_that_is_not_there_says_how_to_bring_ones_own():
    with pytest.raises(ConfigError, match=r"unknown model 'mine_alone'.*--plugins FILE\.py"):
        create_model("mine_alone")
    with pytest.raises(ConfigError, match=r"unknown data set 'mine_alone'.*--plugins FILE\.py"):
        create_dataset("mine_alone")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('first line\\nsecond')", "RuntimeError: first line$"),
        ("import no_such_module_x", "no_such_module_x"),
        ("def f(:", "SyntaxError"),
        (MODEL.replace("{name}", "spikformer_toy"), "'spikformer_toy' .* is already registered"),
    ],
)
def test_a_file_that_fails_is_named_and_leaves_nothing(plugin, text, said):
    path = plugin("failing", text.replace("{", "{{").replace("}", "}}"))
    list_models()
    for _ in range(2):  # the second time it fails again: no half-made module stays
        with pytest.raises(ConfigError, match=said) as caught:
            use_plugins([path])
        assert str(path) in str(caught.value)
    assert VARIABLE not in os.environ


def test_what_is_no_python_file_is_refused(plugin, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path / "notes.txt", tmp_path / "lost.py", tmp_path):
        with pytest.raises(ConfigError, match=r"a Python file that exists, FILE\.py"):
            use_plugins([path])
