"""A number is taken only from a finished run that has the row's configuration, and is whole."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from papers.finished import Run, expected_config, load_recipe, read_run, recipe_class
from papers.jobs import job_of

from spikeformer_lt.config import differences, from_dict, to_dict
from spikeformer_lt.errors import ConfigError, DataError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
COMMAND = tuple(
    shlex.split(
        "sparse_training_cifar.py --method random --sparsity 0 --epochs 8 --data.name digits "
        "--model.name spiking_vgg_toy --model.T 5"
    )
)


def asked(tmp_path, command=COMMAND, seed=0):
    job = job_of("a row", command, seed, RECIPES, tmp_path)
    path, *options = job.command
    return job, Path(path), expected_config(Path(path), options)


def edit(file: Path, **changed: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def test_a_run_of_the_row_is_taken(tmp_path, finish_row) -> None:
    job, path, wanted = asked(tmp_path)
    assert read_run(job.folder, path, wanted) == "not run"
    finish_row(job, 380)
    run = read_run(job.folder, path, wanted)
    assert isinstance(run, Run)
    assert (run.accuracy, run.seed, run.epochs) == (95.0, 0, 2)
    assert run.config["model"]["T"] == 5 and run.env["threads"] == 1


def test_a_run_in_progress_is_no_run(tmp_path, finish_row) -> None:
    job, path, wanted = asked(tmp_path)
    (finish_row(job, 380) / "report.json").unlink()
    assert read_run(job.folder, path, wanted) == "not finished"


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("report", {"test_accuracy": 99.0}, "accuracy is 99.0, its confusion matrix says 380 of"),
        ("report", {"accuracy_at_t": [1.0, 99.0]}, "at the last time step 99.0"),
        ("report", {"confusion": [[396, 4], [0, 0]]}, "says 396 of 400"),
        ("report", {"test_count": 1000}, "380 of 400 right"),
        ("report", {"confusion": []}, "0 of 0"),
        ("report", {"confusion": None}, "no test accuracy"),
        ("report", {"run_id": "other-12345678"}, "run_id is 'other-12345678'"),
        ("report", {"seed": 1}, "seed is 1"),
        ("report", {"dataset": "cifar10"}, "dataset is 'cifar10'"),
        ("config", {"epochs": 80}, "another configuration: epochs: 80 -> 8"),
        ("config", {"surprise": 1}, "cannot be read"),
        ("env", {"command": "recipes/imp_cifar.py --x"}, "made by imp_cifar"),
        ("env", {"command": ""}, "was made by"),
    ],
)
def test_an_edited_or_foreign_run_is_refused(tmp_path, finish_row, name, changed, words) -> None:
    job, path, wanted = asked(tmp_path)
    edit(finish_row(job, 380) / f"{name}.json", **changed)
    found = read_run(job.folder, path, wanted)
    assert isinstance(found, str) and words in found


@pytest.mark.parametrize(
    "other",
    [
        (*COMMAND[:2], "snip", *COMMAND[3:]),
        tuple(word.replace("0", "0.5") if word == "0" else word for word in COMMAND),
        (*COMMAND[:-1], "4"),
    ],
)
def test_a_run_of_another_row_is_refused(tmp_path, finish_row, other) -> None:
    foreign, _, _ = asked(tmp_path, other)
    folder = finish_row(foreign, 380)
    _, path, wanted = asked(tmp_path)
    assert "another configuration" in read_run(folder, path, wanted)


def test_the_seed_counts_and_the_data_folder_does_not(tmp_path, finish_row) -> None:
    job, path, _ = asked(tmp_path)
    folder = finish_row(job, 380)
    options = [*job.command[1:], "--train.threads", "3"]
    options[options.index("--data.root") + 1] = "elsewhere"
    assert isinstance(read_run(folder, path, expected_config(path, options)), Run)
    options = list(job.command[1:])
    options[options.index("--train.seed") + 1] = "7"
    assert "train.seed: 0 -> 7" in read_run(folder, path, expected_config(path, options))


def test_expected_is_what_the_recipe_saves(tmp_path) -> None:
    """Digits bring small values for options that were not named, as the recipe announces."""
    _, path, wanted = asked(tmp_path)
    assert (wanted.data.image_size, wanted.train.batch_size, wanted.epochs) == (16, 16, 8)
    again = from_dict(recipe_class(path), to_dict(wanted))
    assert differences(again, wanted) == []


def test_a_recipe_is_loaded_once_and_refused_by_name() -> None:
    path = RECIPES / "imp_cifar.py"
    assert load_recipe(path) is load_recipe(path)
    assert recipe_class(path).__name__ == "ImpCifar"
    with pytest.raises(DataError, match=r"no recipe magic\.py"):
        load_recipe(RECIPES / "magic.py")
    with pytest.raises(ConfigError, match="unknown option"):
        expected_config(path, ["--data.name", "digits", "--sparsitee", "1"])
