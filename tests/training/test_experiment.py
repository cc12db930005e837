"""What a recipe gets around its search."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.cli import PAPER
from spikeformer_lt.config import flat_values, parse, run_id, to_dict
from spikeformer_lt.disk import write_tensors
from spikeformer_lt.errors import CheckpointError, ConfigError, TicketError
from spikeformer_lt.export import export_ticket
from spikeformer_lt.images.augment import Mixing
from spikeformer_lt.mask import Mask
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.configs import ImpConfig, MultiSpConfig
from spikeformer_lt.tickets.multisp import MultiSp
from spikeformer_lt.tickets.surgery import model_from_ticket
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import (
    TRACKERS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.settle import CIFAR10, settle, with_published


@dataclass(frozen=True)
class Recipe:
    """A small recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(cpu=True, batch_size=16))
    run: RunConfig = field(default_factory=RunConfig)


SMALL = {
    "model.name": "spikformer_toy",
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "data.image_size": 16,
    "data.limit_train": 48,
    "data.limit_test": 40,
}


def opened(tmp_path, **groups) -> Experiment:
    run = RunConfig(out=str(tmp_path / "run"))
    data = groups.pop("data", DataConfig(root=str(tmp_path)))
    return Experiment(Recipe(run=run, data=data, **groups), fallback="digits", small=SMALL)


def test_without_cifar_the_digits_are_used_and_said_so(tmp_path):
    with opened(tmp_path) as experiment:
        assert experiment.data.name == "digits"
        assert "not CIFAR-10 results" in experiment.notice
        experiment.model()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "NOTICE" in log


def test_a_batch_is_that_of_all_parts_and_processes_before_anything_is_made(tmp_path, monkeypatch):
    for accumulate, processes in ((4, "1"), (2, "2")):
        monkeypatch.setenv("WORLD_SIZE", processes)
        train = TrainConfig(cpu=True, batch_size=16, accumulate=accumulate)
        rule = rf"batch_size=64 .*\(train set\), {accumulate} accumulated x {processes}"
        with pytest.raises(ConfigError, match=rule):
            Experiment(
                Recipe(run=RunConfig(out=str(tmp_path / "run")), train=train,
                       data=DataConfig(root=str(tmp_path))), fallback="digits", small=SMALL,
            ).dry_run()  # fmt: skip


def test_cifar_on_disk_is_taken(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    asked = Recipe(data=DataConfig(root=str(tmp_path)))
    taken = Recipe(data=DataConfig(name="cifar10", root=str(tmp_path)))
    assert settle(asked, CIFAR10, "digits", SMALL) == (taken, "", "")


def test_small_values_yield_to_what_the_user_set(tmp_path):
    with opened(tmp_path, model=ModelConfig(embed_dim=32)) as experiment:
        assert experiment.cfg.model.embed_dim == 32
        assert experiment.cfg.model.name == "spikformer_toy"
        assert experiment.cfg.data.image_size == 16


def test_small_values_yield_to_an_option_that_names_the_usual_default(tmp_path):
    usual = Recipe()
    named = f"--model.name {usual.model.name} --train.optim.lr {usual.train.optim.lr}"
    cfg = parse(Recipe, ["--data.name", "digits", *named.split()])
    quick = OptimConfig(lr=0.25, warmup_epochs=1, weight_decay=0.5)
    small, _, taken = settle(cfg, CIFAR10, "digits", {**SMALL, "train.optim": quick})
    assert small.model.name == usual.model.name
    assert small.train.optim == replace(quick, lr=usual.train.optim.lr)
    assert (small.model.embed_dim, small.data.limit_train) == (16, 48)
    assert "train.optim.weight_decay=0.5" in taken
    assert "lr=" not in taken


def test_mixing_is_the_papers_unless_an_option_says_else(tmp_path):
    with opened(tmp_path, data=DataConfig(root=str(tmp_path), augment="spikformer_cifar")) as found:
        assert found.trainer.mixing == Mixing(mixup=0.5, smoothing=0.1, until=2 / 3)
    data = DataConfig(root=str(tmp_path), mixup=0.2, mix_until=0.5)
    with opened(tmp_path / "b", data=data) as found:
        assert found.trainer.mixing == Mixing(mixup=0.2, until=0.5)


def test_a_saved_ticket_knows_its_model_and_its_splits(tmp_path):
    with opened(tmp_path) as experiment:
        model = experiment.model()
        ticket = MultiSp(MultiSpConfig(epochs=1)).find(model, experiment.trainer.fit)
        ticket = experiment.save_ticket(ticket)
        experiment.save_ticket(ticket)  # a resumed run saves it again
        assert ticket.provenance["split_sha256"] == experiment.data.split_sha256
        assert ticket.provenance["data"]["limit_train"] == 48
        other = Mask.random_like(ticket.mask, 1)
        with pytest.raises(TicketError, match="and its provenance is of mask"):
            experiment.save_ticket(Ticket.of(model, other, ticket.provenance))
        accuracy = experiment.trainer.evaluate(model, "test").accuracy
        again = experiment.trainer.evaluate(model_from_ticket(ticket), "test").accuracy
    assert again == accuracy


def test_a_preset_s_options_of_the_run_are_taken_where_the_user_names_none(tmp_path):
    published = {"train.loss": "tet", "data.augment": {"cifar10": "crop4_flip_cutout"}}
    cfg = Recipe(data=DataConfig(name="digits"))
    taken, differing = with_published(cfg, published, ())
    assert (taken.train.loss, taken.data.augment, differing) == ("tet", "auto", [])
    taken, differing = with_published(replace(cfg, data=DataConfig(name="cifar10")), published, ())
    assert taken.data.augment == "crop4_flip_cutout" and not differing
    taken, differing = with_published(cfg, published, {"train.loss"})
    assert taken.train.loss == "mean" and differing == ["--train.loss mean (published: tet)"]


@pytest.mark.fault(7)
def test_a_directory_in_use_by_another_configuration_is_refused(tmp_path):
    with opened(tmp_path):
        pass
    other = opened(tmp_path, train=TrainConfig(cpu=True, batch_size=8))
    other.cfg = replace(other.cfg, run=replace(other.cfg.run, resume="auto"))
    with pytest.raises(ConfigError, match=r"batch_size: 16 -> 8"), other:
        pass


def ids(**groups) -> str:
    return run_id(Recipe(**groups), "x", ["run"], {"recipe": "r", "search": "s", "split": "d"})


def test_the_id_of_a_run_is_that_of_its_whole_configuration_search_recipe_and_split():
    usual = Recipe()
    found = {ids()}
    assert ids(run=RunConfig("elsewhere", "auto", ("train.seed",), extend=3)) in found
    for group in ("data", "model", "train"):
        own = getattr(usual, group)
        for name, value in to_dict(own).items():
            if not isinstance(value, dict):
                other = "other" if isinstance(value, str) else 3 if value is None else None
                other = other or (("x",) if isinstance(value, list) else value + 1)
                made = copy.copy(own)
                object.__setattr__(made, name, other)
                found.add(ids(**{group: made}))
    fields = [name for name, _ in flat_values(to_dict(usual))]
    named = [n for n in fields if not n.startswith(("run.", "train.optim."))]
    assert len(found) == 1 + len(named)
    identity = {"recipe": "r", "search": "s", "split": "d"}
    for name in identity:
        found.add(run_id(usual, "x", ["run"], identity | {name: "other"}))
    assert len(found) == 4 + len(named)


def test_searches_with_equal_options_have_runs_of_their_own(tmp_path):
    """What their configurations do not say, the identity does."""
    names = ("multisp", "imp", "biprop", "edge_popup", "early_bird", "")
    found = set()
    for name in names:
        with RunDir.open("", Recipe(), root=tmp_path, identity={"search": name}) as run:
            found.add(run.run_id)
    assert len(found) == len(names) == len(list(tmp_path.iterdir()))


def test_a_field_that_does_not_exist_cannot_be_made_small():
    asked = Recipe(data=DataConfig(name="digits"))
    with pytest.raises(AttributeError):
        settle(asked, CIFAR10, "digits", {"model.widht": 3})


def test_a_run_starts_from_the_weights_it_is_given(tmp_path):
    sizes = {"image_size": 16, "embed_dim": 16, "num_heads": 2}
    torch.manual_seed(5)
    given = create_model("spikformer_toy", T=4, **sizes)
    write_tensors(tmp_path / "mine" / "model.safetensors", given.state_dict(), {"kind": "model"})
    with opened(tmp_path, model=ModelConfig(init_from=str(tmp_path / "mine"))) as experiment:
        model = experiment.model()
        for name, value in given.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        ticket = MultiSp(MultiSpConfig(epochs=1)).find(model, experiment.trainer.fit)
        experiment.save_ticket(ticket)
    values = {name: value + 1 for name, value in given.state_dict().items()}
    write_tensors(tmp_path / "mine" / "model.safetensors", values, {"kind": "model"})
    resumed = replace(experiment.cfg, run=replace(experiment.cfg.run, resume="auto"))
    with (
        pytest.raises(ConfigError, match=r"another run: model\.init_from: '[0-9a-f]+' -> "),
        Experiment(resumed, fallback="digits", small=SMALL),
    ):
        pass
    again = ModelConfig(init_from=str(tmp_path / "run"))  # a run stands for its ticket
    with opened(tmp_path / "second", model=again) as experiment:
        weight = experiment.model().conv_pep.rpe.conv.weight
        assert torch.equal(weight, ticket.tensors["conv_pep.rpe.conv.weight"])
    # Where its ticket has start weights, a run stands for the network trained from it.
    trained = {**ticket.tensors, "head.weight": ticket.tensors["head.weight"] + 2}
    Ticket(ticket.mask, trained, ticket.provenance).save(tmp_path / "run" / "trained")
    for place, wanted in (("run", trained), ("run/ticket", ticket.tensors)):
        found = ModelConfig(init_from=str(tmp_path / place)).start_weights()
        assert torch.equal(found["head.weight"], wanted["head.weight"])


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ({"embed_dim": 24}, CheckpointError, "does not fit the model"),
        (None, ConfigError, r"model.init_from=.*a folder with model.safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_leave_no_run(tmp_path, sizes, error, words):
    folder = tmp_path / "mine"
    if sizes:
        other = create_model("spikformer_toy", image_size=16, num_heads=2, **sizes)
        write_tensors(folder / "model.safetensors", other.state_dict(), {"kind": "model"})
    config = ModelConfig(init_from=str(folder))
    with pytest.raises(error, match=words), opened(tmp_path, model=config) as experiment:
        experiment.model()
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_trained_is_refused_before_anything_is_made(tmp_path):
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    double = nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).double()
    for network, said in ((lazy, "lazy layers"), (double, r"'1.weight: torch.float64'.*float32")):
        run = RunConfig(out=str(tmp_path / "run"))
        given = {"fallback": "digits", "small": SMALL, "network": network}
        with pytest.raises(ConfigError, match=said), Experiment(Recipe(run=run), **given):
            pass
        assert not (tmp_path / "run").exists()


def test_an_export_is_refused_by_name_as_start_weights(tmp_path):
    """Its tensors are packed streams, none of which is a weight."""
    sizes = {"image_size": 16, "embed_dim": 16, "num_heads": 2, "depth": 1, "T": 2}
    model = create_model("spikformer_toy", **sizes)
    known = {"model": {"name": "spikformer_toy", "args": sizes}}
    name = "conv_pep.rpe.conv.weight"
    mask = Mask({name: torch.ones_like(model.state_dict()[name], dtype=torch.bool)})
    export_ticket(Ticket.of(model, mask, known), tmp_path / "packed")
    config = ModelConfig(init_from=str(tmp_path / "packed"))
    with (
        pytest.raises(ConfigError, match=r"model\.init_from=.*packed.*the run or ticket"),
        opened(tmp_path, model=config) as experiment,
    ):
        experiment.model()
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Searching(Recipe):
    """A recipe with two searches, of other lengths on the fallback."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(optim=PAPER))
    imp: ImpConfig = field(default_factory=lambda: ImpConfig(epochs=300, rewind="20ep"))
    multisp: MultiSpConfig = field(
        default_factory=lambda: MultiSpConfig(epochs=300, stem_epochs=100)
    )


LENGTHS = {
    "": ("20ep", 100, 300),
    "--imp.epochs 30": ("2ep", 100, 300),
    "--imp.epochs 2": ("1ep", 100, 300),
    "--imp.epochs 1": ("0it", 100, 300),
    "--imp.epochs 30 --imp.rewind 7it": ("7it", 100, 300),
    "--imp.rewind 9ep": ("9ep", 100, 300),
    "--multisp.epochs 3": ("20ep", 1, 300),
    "--multisp.epochs 30 --multisp.stem-epochs 25": ("20ep", 25, 300),
    "--train.optim.warmup-epochs 5": ("20ep", 100, 0),
    "--train.optim.warmup-epochs 5 --train.optim.of-epochs 50": ("20ep", 100, 50),
    "--multisp.epochs 0 --multisp.dense-epochs 9 --multisp.weights.method off "
    "--multisp.patches.mode stop --multisp.patches.score tp": ("20ep", 1, 300),
    "--data.name digits": ("1ep", 6, 300),
    "--data.name digits --imp.epochs 16 --multisp.epochs 6": ("2ep", 3, 300),
}


@pytest.mark.parametrize("line", LENGTHS)
@pytest.mark.fault(62)
def test_lengths_that_nobody_named_follow_the_epochs_that_somebody_did(line):
    name = [] if "data.name" in line else ["--data.name", "cifar10"]
    cfg = parse(Searching, [*name, *line.split()])
    small = {"imp.epochs": 8, "imp.rewind": "1ep", "multisp.epochs": 12, "multisp.stem_epochs": 6}
    settled, _, taken = settle(cfg, CIFAR10, "digits", small)
    found = settled.imp.rewind, settled.multisp.stem_epochs, settled.train.optim.of_epochs
    assert found == LENGTHS[line]
    wanted = 2 if "multisp.epochs 6" in line else 1 if line.startswith("--multisp.epochs") else 5
    assert settled.multisp.patches.selector_epochs == wanted
    for group, name in (("imp", "rewind"), ("multisp", "stem_epochs")):
        changed = getattr(getattr(settled, group), name) != getattr(getattr(cfg, group), name)
        assert (f"{group}.{name}=" in taken) == changed


@pytest.mark.parametrize(
    ("line", "imp", "multisp", "of_epochs"),
    [
        ("--data.name cifar10", (2, "1it"), (2, 1, 1), 300),
        ("--data.name cifar10 --imp.epochs 30", (30, "1it"), (2, 1, 1), 300),
        ("--data.name digits", (1, "1it"), (2, 1, 1), 300),
        ("--data.name digits --imp.rewind 1ep --imp.epochs 3", (3, "1ep"), (2, 1, 1), 300),
        ("--data.name digits --train.optim.of-epochs 0", (1, "1it"), (2, 1, 1), 12),
        ("--data.name digits --train.optim.warmup-epochs 1", (1, "1it"), (2, 1, 1), 0),
    ],
)
def test_quick_shortens_in_proportion_what_nobody_named(line, imp, multisp, of_epochs):
    cfg = parse(Searching, [*line.split(), "--quick"])
    small = {"imp.epochs": 8, "imp.rewind": "1ep", "multisp.epochs": 12, "multisp.stem_epochs": 6}
    settled, _, taken = settle(cfg, CIFAR10, "digits", small)
    assert (settled.imp.epochs, settled.imp.rewind) == imp
    own = settled.multisp
    assert (own.epochs, own.stem_epochs, own.patches.selector_epochs) == multisp
    assert settled.train.optim.of_epochs == of_epochs and "multisp.epochs=2" in taken


def test_trackers_get_every_epoch_and_the_report(tmp_path):
    from accelerate.utils import LoggerType
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from spikeformer_lt import train

    small = {"data.limit-train": 64, "data.limit-test": 40, "data.image-size": 16}
    options = {**small, "train.cpu": True, "train.track": ("tensorboard",)}
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10))
    run = train("random", net, "digits", sparsity=0.5, epochs=2, out=tmp_path / "run",
                options=options)  # fmt: skip
    (folder,) = {path.parent for path in (run.folder / "track").rglob("events*") if path.is_file()}
    board = EventAccumulator(str(folder)).Reload()
    assert [one.step for one in board.Scalars("retrain/val_accuracy")] == [1, 2]
    (last,) = board.Scalars("test_accuracy")
    assert last.value == pytest.approx(run.report["test_accuracy"])
    with pytest.raises(
        ConfigError, match=r'options\["train.track"\]=\'tensorbord\' is not allowed'
    ):
        train("random", net, "digits", options={**small, "train.track": ("tensorbord",)})
    with pytest.raises(ConfigError, match="a tracker that is installed: pip install dvclive"):
        train("random", net, "digits", options={**small, "train.track": ("dvclive",)},
              out=tmp_path / "other")  # fmt: skip
    assert not (tmp_path / "other").exists()
    known = {kind.value for kind in LoggerType} - {"all"}
    assert set(TRACKERS) == known, "accelerate has other trackers than --help shows"
