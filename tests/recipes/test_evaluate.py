"""recipes/evaluate.py, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt import Mask, Ticket, create_dataset, create_model
from spikeformer_lt.training.evaluate import PREDICTIONS, read_predictions

pytestmark = pytest.mark.recipe

CIFAR = os.environ.get("SPIKEFORMER_CIFAR10", "")
SHIPPED = Path(__file__).parents[2] / "spikeformer_lt" / "pretrained"
LEDGER = (
    "sparsity", "conv_pep_bits_per_weight", "macs", "sops", "params", "firing_rate", "purity",
    "layers", "energy_pj",
)  # fmt: skip


def evaluated(recipes: Any, out: Path, *options: object, **kwargs: Any) -> dict[str, Any]:
    ended = recipes.run("evaluate", "--cpu", "--out", out, *options, **kwargs)
    assert (ended.code, ended.err) == (0, ""), ended.err
    return {**json.loads(out.read_text()), "printed": ended.out}


@pytest.mark.fault(50)
@pytest.mark.fault(87)
def test_a_run_evaluates_to_the_accuracy_and_ledger_of_its_report(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    """Returned as they were saved at the first reading, which is said; or read again."""
    place = tmp_path / "new" / "place" / "test.json"
    first = evaluated(recipes, tmp_path / "first.json", "--run", finished.path)
    assert first["saved"] and "saved at the first reading" in first["printed"]
    found = evaluated(recipes, place, "--run", finished.path, "--again")
    assert not found["saved"] and {**found, "saved": True, "printed": ""} == {
        **first,
        "printed": "",
    }
    report = finished.report
    assert found["accuracy_interval"] == report["test_accuracy_interval"]
    assert found["accuracy"] == report["test_accuracy"]
    assert (found["count"], found["split"]) == (report["test_count"], "test")
    assert found["loss"] == report["test_loss"]
    assert found["confusion"] == report["confusion"]
    assert {name: found[name] for name in LEDGER} == {name: report[name] for name in LEDGER}
    own, mine = read_predictions(finished.path / PREDICTIONS)
    read, facts = read_predictions(tmp_path / "new" / "place" / f"test.{PREDICTIONS}")
    assert facts == mine
    assert torch.equal(read.predicted, own.predicted) and torch.equal(read.logits, own.logits)
    first, *lines = found["printed"].splitlines()
    assert first.startswith(f"digits test: {report['test_accuracy']:.2f} % of 40 (top-5 ")
    sops = f"{report['macs']:,.0f} MACs, {report['sops']:,.0f} SOPs per input"
    assert f"  operations  {sops}" in lines


def test_validation_repeats_what_chose_the_ticket(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    found = evaluated(recipes, tmp_path / "val.json", "--run", finished.path, "--split", "val")
    assert found["accuracy"] == finished.report["val_accuracy"]
    assert found["count"] == 10


@pytest.mark.fault(60)
def test_samples_that_are_prepared_in_another_way_are_refused(recipes: Any, finished: Any) -> None:
    done = recipes.run("evaluate", "--cpu", "--run", finished.path, "--data.image-size", "32")
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert "was made for samples with image_size=16, the data set digits has 32" in done.err


@pytest.mark.fault(60)
def test_a_network_of_other_classes_is_refused(recipes: Any, tmp_path: Path) -> None:
    args = {"T": 2, "image_size": 8, "num_classes": 7, "in_channels": 3}
    model = create_model("spiking_vgg_toy", **args)
    known = {
        "model": {"name": "spiking_vgg_toy", "args": args},
        "dataset": "digits",
        "split_sha256": "",
        "data": {"image_size": 8},
    }
    whole = {"layers.0.conv.weight": torch.ones(16, 3, 3, 3, dtype=torch.bool)}
    Ticket.of(model, Mask(whole), known).save(tmp_path / "ticket")
    done = recipes.run("evaluate", "--cpu", "--run", tmp_path / "ticket")
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert "has 7 classes, digits has 10" in done.err


def test_a_cnn_is_evaluated_by_the_name_in_its_ticket(recipes: Any, tmp_path: Path) -> None:
    """Weights whose first layer is half removed; nothing of it is a Spikformer."""
    options = {"image_size": 8, "limit_train": 48, "limit_test": 40}
    splits = create_dataset("digits", **options)
    args = {"T": 2, "image_size": 8, "num_classes": 10, "in_channels": 3}
    model = create_model("spiking_vgg_toy", **args)
    name = "layers.0.conv.weight"
    kept = torch.arange(16 * 27).view(16, 3, 3, 3) % 2 == 0
    known = {
        "model": {"name": "spiking_vgg_toy", "args": args},
        "dataset": "digits",
        "split_sha256": splits.split_sha256,
        "data": options,
    }
    Ticket.of(model, Mask({name: kept}), known).save(tmp_path / "ticket")
    found = evaluated(recipes, tmp_path / "cnn.json", "--run", tmp_path / "ticket")
    assert found["count"] == 40
    assert found["sparsity"] == {
        "patch": 0.0,
        "conv_pep_weight": None,
        "total_weight": pytest.approx(216 / 30_000),
    }
    assert "NOTICE" not in found["printed"] and "ConvPEP" not in found["printed"]
    assert f"  bits        {found['bits_per_weight']:.2f} for each weight" in found["printed"]
    one = evaluated(recipes, tmp_path / "one.json", "--run", tmp_path / "ticket", "--T", "1")
    assert 0 < one["sops"] < found["sops"]


def test_a_ticket_folder_that_was_moved_is_enough(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    shutil.copytree(finished.path / "ticket", tmp_path / "elsewhere" / "mine")
    where = tmp_path / "elsewhere"
    found = evaluated(recipes, tmp_path / "a.json", "--run", "mine", cwd=where)
    assert found["loss"] == finished.report["test_loss"]
    assert {path.name for path in where.iterdir()} == {"mine"}  # nothing is left behind


@pytest.mark.slow
def test_a_ticket_of_simulated_gestures_that_comes_along_has_the_accuracy_of_its_card(
    recipes: Any, tmp_path: Path
) -> None:
    name = "spikformer_dvs_toy.moving_gestures"
    found = evaluated(recipes, tmp_path / "a.json", "--run", name, cwd=tmp_path)
    card = json.loads((SHIPPED / name / "config.json").read_text())["about"]
    assert found["count"] == card["test_count"]
    assert found["accuracy"] == pytest.approx(card["test_accuracy"], abs=100 / 288)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR, reason="SPIKEFORMER_CIFAR10 names no folder with CIFAR-10")
@pytest.mark.parametrize("name", ["spikformer_cifar.multisp_1bit", "spikformer_cifar.dense"])
def test_a_ticket_of_cifar_10_that_comes_along_has_the_accuracy_of_its_card(
    name: str, recipes: Any, tmp_path: Path
) -> None:
    found = evaluated(recipes, tmp_path / "a.json", "--run", name, "--data.root", CIFAR)
    card = json.loads((SHIPPED / name / "config.json").read_text())["about"]
    assert found["count"] == card["test_count"] == 10_000
    assert found["accuracy"] == pytest.approx(card["test_accuracy"], abs=0.05)


def test_other_time_steps_cost_in_proportion_and_none_are_refused(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    longer = evaluated(recipes, tmp_path / "a.json", "--run", finished.path, "--T", 4)
    assert longer["macs"] > 1.9 * finished.report["macs"]  # the first layer is computed once
    error = recipes.run("evaluate", "--run", finished.path, "--cpu", "--T", 0).error
    assert "T=0 is not allowed" in error


def test_an_option_of_the_data_goes_over_what_the_ticket_says(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    for name in ((), ("--data.name", "digits")):
        options = (*name, "--data.limit-test", 20)
        found = evaluated(recipes, tmp_path / "a.json", "--run", finished.path, *options)
        assert found["count"] == 20
        assert "NOTICE" not in found["printed"].splitlines()[-1]


def test_other_images_than_the_tickets_own_are_said_so(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    options = ("--data.name", "digits", "--data.limit-train", "None", "--data.limit-test", "None")
    found = evaluated(recipes, tmp_path / "a.json", "--run", finished.path, *options)
    assert found["count"] > 300
    own = finished.report["split_sha256"][:12]
    assert re.match(rf"NOTICE: split \w{{12}} is not the ticket's own \({own}\)", found["printed"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "--run is missing: a run directory, a ticket folder or an export: --run DIR"),
        ("--run nowhere", "--run='nowhere': there is no such folder; name a run directory"),
        (
            "--run RUN --split tset",
            "split='tset' is not allowed; did you mean 'test'\\? one of train, val, test",
        ),
        ("--run RUN --batch-size 0", "batch_size=0 is not allowed: at least 1"),
        ("--run RUN --data.name cifar10 --data.root nowhere", "cifar10 is not in '.*nowhere'"),
        ("--run RUN --data.nmae digits", "unknown option '--data.nmae'; did you mean"),
        ("--run RUN --out RUN", "is a folder, never replaced"),
    ],
)
@pytest.mark.fault(35)
def test_wrong_input_is_one_line_and_exit_2(
    recipes: Any, finished: Any, options: str, words: str
) -> None:
    argv = options.replace("RUN", str(finished.path)).split()
    assert re.match(f"error: .*{words}", recipes.run("evaluate", *argv, "--cpu").error)


@pytest.mark.fault(9)
def test_a_damaged_ticket_is_refused_by_file(recipes: Any, finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished.path / "ticket", tmp_path / "ticket")
    path = tmp_path / "ticket" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = recipes.run("evaluate", "--run", tmp_path, "--cpu").error
    assert "model.safetensors changed since the ticket was saved" in error
    ended = recipes.run("evaluate", "--run", tmp_path, "--cpu", "--debug")
    assert ended.code == 2 and ended.err.startswith("Traceback (most recent call last):\n")


def test_a_ticket_that_does_not_say_where_it_is_from_is_refused(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    ticket = Ticket.load(finished.path / "ticket")
    Ticket(ticket.mask, ticket.tensors, {}).save(tmp_path / "bare")
    error = recipes.run("evaluate", "--run", tmp_path / "bare", "--cpu").error
    assert "does not say its model, dataset, split_sha256" in error


def test_help_has_words_and_default_for_every_option(recipes: Any) -> None:
    told = recipes.help_of("evaluate")
    assert {"run", "split", "out", "batch_size", "T", "cpu", "data.name"} <= set(told)
    for name, text in told.items():
        words, default, _ = text.partition("(required)" if name == "run" else "(default:")
        assert default and len(re.findall(r"[a-z]{2,}", words)) >= 2, (name, text)


@pytest.mark.slow
@pytest.mark.fault(41)
def test_two_processes_report_the_network_that_they_save(recipes: Any, tmp_path: Path) -> None:
    """Each rank's BatchNorm has seen other batches: validation and test are of rank 0's."""
    run = tmp_path / "run"
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "multisp_cifar.py"
    words = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    small = "--data.name digits --data.limit-train 200 --multisp.epochs 2 --train.cpu"
    done = subprocess.run(
        [*words, str(recipe), *small.split(), "--run.out", str(run)],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "x 2 processes" in done.stderr
    report = json.loads((run / "report.json").read_text())
    found = evaluated(recipes, tmp_path / "test.json", "--run", run)
    assert found["loss"] == pytest.approx(report["test_loss"], abs=1e-6)
    found = evaluated(recipes, tmp_path / "val.json", "--run", run, "--split", "val")
    assert found["accuracy"] == report["val_accuracy"]
