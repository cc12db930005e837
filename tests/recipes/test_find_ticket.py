"""recipes/find_ticket.py with a model, a data set and a search of the guides, one file each."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikeformer_lt import Ticket

pytestmark = pytest.mark.recipe
DOCS = Path(__file__).resolve().parents[2] / "docs"
TRAIN = ("--train.cpu", "--train.batch-size", "16")


@dataclass(frozen=True)
class Plugged:
    """A run of find_ticket with the three files of the guides."""

    home: Path
    plugins: tuple[str, ...]
    data: tuple[str, ...]
    run: Path
    said: str


@pytest.fixture(scope="module")
def plugged(recipes: Any, tmp_path_factory: pytest.TempPathFactory) -> Plugged:
    home = tmp_path_factory.mktemp("plugged")
    files = []
    for guide in ("own_model", "own_search", "own_dataset"):
        text = (DOCS / f"{guide}.md").read_text("utf-8")
        name, body = re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", text, re.DOTALL)[0]
        (home / name).write_text(body, "utf-8")
        files.append(str(home / name))
    draw, labels = np.random.default_rng(0), np.arange(96) % 4
    images = draw.integers(0, 100, (96, 16, 16, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 120
    parts = {"train": slice(0, 72), "test": slice(72, 96)}
    arrays = {f"{part}_images": images[at] for part, at in parts.items()}
    arrays |= {f"{part}_labels": labels[at] for part, at in parts.items()}
    np.savez(home / "my_images.npz", **arrays)
    plugins = ("--plugins", *files)
    data = ("--data.name", "my_images", "--data.root", str(home))
    network = ("--model.name", "my_net", "--my-net.width", "8", "--model.T", "2")
    ended = recipes.run(
        "find_ticket", "growth", *plugins, *data, "--my-images.fraction", 0.5, *network, *TRAIN,
        "--sparsity", 0.6, "--growth.epochs", 1, "--epochs", 1, "--run.out", home / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return Plugged(home, plugins, data, home / "run", ended.err)


def test_the_options_are_recorded_and_in_force(plugged: Plugged) -> None:
    config = json.loads((plugged.run / "config.json").read_text())
    assert config["growth"] | {"epochs": 1, "sparsity": 0.6} == config["growth"]
    assert config["my_net"] == {"width": 8} and config["my_images"] == {"fraction": 0.5}
    about = Ticket.load(plugged.run / "ticket").provenance
    assert about["search"] == "growth" and about["config"]["epochs"] == 1
    assert about["model"]["args"]["width"] == 8
    assert about["data_options"] == {"fraction": 0.5}
    tensors = Ticket.load(plugged.run / "ticket").tensors
    assert tensors["first.conv.weight"].shape[0] == 8
    report = json.loads((plugged.run / "report.json").read_text())
    assert report["ticket"]["prunable_sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert report["sparsity"]["total_weight"] > 0.5
    assert re.search(r"data my_images: 3\d train", plugged.said)  # half of 72, less validation


def test_it_goes_on_under_the_same_options_only(plugged: Plugged, recipes: Any) -> None:
    line = (*plugged.plugins, "--config", plugged.run / "config.json", "--run.resume", plugged.run)
    assert recipes.run("find_ticket", "growth", *line).code == 0
    changed = recipes.run("find_ticket", "growth", *line, "--my-net.width", 9)
    assert "my_net.width: 8 -> 9" in changed.error


def test_it_is_evaluated_on_its_own_split_and_exported(plugged: Plugged, recipes: Any) -> None:
    out = plugged.home / "found.json"
    ended = recipes.run("evaluate", *plugged.plugins, "--run", plugged.run, "--cpu", "--out", out)
    assert ended.code == 0, ended.err
    assert "NOTICE: split" not in ended.out
    report = json.loads((plugged.run / "report.json").read_text())
    assert json.loads(out.read_text())["accuracy"] == report["test_accuracy"]
    other = recipes.run(
        "evaluate", *plugged.plugins, "--run", plugged.run, "--cpu", *plugged.data,
        "--my-images.fraction", 0.9,
    )  # fmt: skip
    # this data set's mean follows its fraction, and the run's network was trained with another
    assert other.code == 2 and "mean" in other.err and other.err.count("\n") == 1
    packed = recipes.run(
        "export", *plugged.plugins, "--run", plugged.run, "--out", plugged.home / "packed"
    )
    assert packed.code == 0, packed.err


def test_the_search_is_a_row_of_a_comparison(plugged: Plugged, recipes: Any) -> None:
    options = f"--data.root {plugged.home} --model.name my_net --model.T 2 {' '.join(TRAIN)}"
    ended = recipes.run(
        "compare_tickets", *plugged.plugins, "--searches", "growth", "--sparsities", 0.5,
        "--data", "my_images", "--seeds", 0, f"--options={options}", "--search-options",
        "growth=--growth.epochs 1 --epochs 1 --my-net.width 6", "dense=--epochs 1",
        "--out", plugged.home / "compared", fork_jobs=True,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    with open(plugged.home / "compared" / "comparison.csv", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["dense", "growth 0.5"]
    assert float(rows["growth 0.5"]["prunable weights removed %"]) == pytest.approx(50, abs=0.1)
    known = json.loads(
        (plugged.home / "compared" / "runs" / "growth-0.5-seed0" / "config.json").read_text()
    )
    assert known["my_net"] == {"width": 6}


def test_help_lists_the_own_options(plugged: Plugged, recipes: Any) -> None:
    ended = recipes.run("find_ticket", "growth", *plugged.plugins, "--help")
    assert ended.code == 0 and "--growth.epochs INT" in ended.out
    named = recipes.run("imp_cifar", *plugged.plugins, "--model.name", "my_net", "--help")
    assert "--my-net.width INT" in named.out and "--imp.rounds INT" in named.out


PLAIN = '''
"""A search that is no subclass of ours."""
from dataclasses import dataclass
import torch
from spikeformer_lt import Mask, Ticket, register_search
from spikeformer_lt.training import Phase

@dataclass(frozen=True)
class PlainConfig:
    """A search of its own kind."""
    epochs: int = 1
    """Epochs."""

@register_search("plain", PlainConfig)
class Plain:
    trained = True
    def __init__(self, config=None, seed=0, batch=None):
        self.config = config or PlainConfig()
    def find(self, model, fit):
        fit(model, Phase("own", 1))
        mask = Mask({n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()
                     if p.ndim > 1})
        about = {"search": "plain", "trained": True, "phases": []}
        return Ticket.of(model, mask, about)
'''


@pytest.mark.fault(61)
def test_a_phase_of_a_search_of_any_kind_is_that_of_its_options(
    recipes: Any, tmp_path: Path
) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    common = ("plain", "--plugins", tmp_path / "plain.py", "--run.out", tmp_path / "run")
    common += (
        "--data.name",
        "digits",
        "--data.limit-train",
        "48",
        "--data.limit-test",
        "40",
        *TRAIN,
    )
    common += ("--model.name", "spikformer_toy", "--model.T", "2", "--data.image-size", "16")
    assert recipes.run("find_ticket", *common).code == 0
    resumed = ("--run.resume", "auto", "--run.allow-config-change", "plain.epochs")
    ended = recipes.run("find_ticket", *common, *resumed, "--plain.epochs", 2)
    assert ended.code == 2
    assert re.search(r"phase own was made otherwise: plain\.epochs: 1 -> 2", ended.err)


SPARSE = ("--sparsity", 0.8)
OWN = {
    "imp": ("--imp.levels", 0.8, "--imp.epochs", 1, "--imp.rewind", "1it"),
    "snip": (*SPARSE, "--snip.images", 16),
    "sparse_training": (*SPARSE, "--sparse-training.epochs", 1, "--sparse-training.every", 1),
}
FOREIGN = ["tv_resnet18", "sj_vgg", "sj_vgg_wrapped", "sj_vgg_reset", "sj_spikformer", "snn_torch"]

SMALLER = """
from spikingjelly.activation_based import layer
from spikingjelly.activation_based.model import spiking_vgg
made = spiking_vgg.spiking_vgg11_bn
def smaller(**options):
    net = made(**options)
    net.classifier = layer.Linear(512 * 7 * 7, options["num_classes"])
    return net
spiking_vgg.spiking_vgg11_bn = smaller
"""
"""A plug-in: VGGs without the 120 M weights of their classifier, whose files take minutes."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "search", "whole"),
    [*((n, search, False) for n in FOREIGN for search in OWN), ("sj_vgg", "snip", True)],
)
def test_a_network_of_others_is_searched_trained_and_exported_from_its_file(
    network: str, search: str, whole: bool, recipes: Any, shared: Path, tmp_path: Path
) -> None:
    """torchvision's ResNet-18; spikingjelly's VGG-11 as it is, wrapped and resetting itself, and
    its Spikformer; one of snntorch."""
    if network == "snn_torch":
        pytest.importorskip("snntorch")
    (tmp_path / "smaller.py").write_text(SMALLER)
    smaller = [] if whole or "vgg" not in network else [tmp_path / "smaller.py"]
    plugins = ("--plugins", shared / "cases" / "42-foreign-models" / "plugin.py", *smaller)
    steps = 4 if network == "sj_spikformer" else 2
    data = ("--data.name", "digits", "--data.limit-train", 20, "--data.limit-test", 10)
    ended = recipes.run(
        "find_ticket", search, *plugins, "--model.name", network, "--model.T", steps, *data,
        "--data.image-size", 32, *TRAIN, "--train.batch-size", 8, "--train.optim.opt", "sgd",
        *OWN[search], "--epochs", 1, "--run.out", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    ticket = Ticket.load(tmp_path / "run" / "ticket")
    assert ticket.mask.removed == round(0.8 * ticket.mask.total)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["sparsity"]["total_weight"] == pytest.approx(0.8, abs=1e-3)
    assert report["macs"] > 0 and report["test_count"] == 10
    ended = recipes.run("export", *plugins, "--run", tmp_path / "run", "--out", tmp_path / "packed")
    assert ended.code == 0, ended.err
