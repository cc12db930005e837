"""A phase, a run and a ticket are taken up again by what made them, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from spikeformer_lt import create_dataset, create_model
from spikeformer_lt.config import load_config
from spikeformer_lt.errors import CheckpointError, ConfigError, Interrupted
from spikeformer_lt.images.augment import Augment, Mixing
from spikeformer_lt.mask import Mask
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import prunable, retrain
from spikeformer_lt.tickets.configs import (
    ImpConfig,
    MultiSpConfig,
    PruneConfig,
    RandomConfig,
    WeightConfig,
)
from spikeformer_lt.tickets.imp import Imp
from spikeformer_lt.tickets.multisp import MultiSp
from spikeformer_lt.tickets.one_shot import RandomTicket
from spikeformer_lt.training.checkpoint import CheckpointStore
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Step,
    TrainConfig,
)
from spikeformer_lt.training.phase import FitResult, Hook, Masked, Phase
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.trainer import Trainer

OPTIM = OptimConfig(lr=5e-3)
TRAIN = TrainConfig(batch_size=16, cpu=True, optim=OPTIM)
SIZES = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}


@dataclass(frozen=True)
class Config:
    """A small recipe."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig("digits", image_size=16, limit_train=48, limit_test=40)
    )
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("spikformer_toy", embed_dim=16, depth=1, num_heads=2)
    )
    train: TrainConfig = TRAIN
    run: RunConfig = field(default_factory=RunConfig)


@pytest.fixture(scope="module")
def data():
    return create_dataset("digits", image_size=16, limit_train=48, limit_test=40)


def toy() -> nn.Module:
    torch.manual_seed(0)
    return create_model("spikformer_toy", **SIZES)


def fit(
    folder: Path, data, phase: Phase, config: TrainConfig = TRAIN, model=None, **given
) -> FitResult:
    run = RunDir(folder, resumed=folder.exists())
    folder.mkdir(exist_ok=True)
    usual = {"augment": Augment.standard("digits"), "mixing": Mixing()}
    trainer = Trainer(data, config, run, Accelerator(cpu=True), **{**usual, **given})
    return trainer.fit(model or toy(), phase)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A run with one finished phase."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder, data, Phase("joint", 1, origin={"multisp.epochs": 1}))
    return folder


@pytest.fixture(scope="module")
def interrupted(data, tmp_path_factory, stop_after) -> Path:
    """A run that was stopped amid a phase."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Interrupted, match="joint epoch 1 step 2"):
        fit(folder, data, Phase("joint", 1, origin={"multisp.epochs": 1}), stop=stop_after(1))
    return folder


PHASE = Phase("joint", 1, origin={"multisp.epochs": 1})
MASK = Masked(Mask({"head.weight": torch.ones(10, 16, dtype=torch.bool)}))
OTHERS = {
    "joint.epochs: 1 -> 2": {"phase": replace(PHASE, epochs=2)},
    "multisp.epochs: 1 -> 3": {"phase": replace(PHASE, origin={"multisp.epochs": 3})},
    "multisp.epochs: 1 -> 'absent'": {"phase": replace(PHASE, origin={})},
    "joint.distill: 0.0 -> 0.5": {"phase": replace(PHASE, distill=0.5)},
    "joint.frozen: [] -> ['conv_pep']": {"phase": replace(PHASE, frozen=("conv_pep",))},
    "joint.settled_from: 0 -> 1": {"phase": replace(PHASE, settled_from=1)},
    "joint.lr_factor: 1.0 -> 2.0": {"phase": replace(PHASE, lr_factor=2.0)},
    "joint.lr_from: '0it' -> '1ep'": {"phase": replace(PHASE, lr_from=Step(1))},
    "joint.hooks: [] -> ['Hook']": {"phase": replace(PHASE, hooks=(Hook(),))},
    f"joint.masks: [] -> ['{MASK.mask.sha256}']": {"phase": replace(PHASE, hooks=(MASK,))},
    "train.optim.lr: 0.005 -> 'absent'": {"phase": replace(PHASE, optim=OPTIM)},
    "train.optim.lr: 0.005 -> 0.1": {"config": replace(TRAIN, optim=OptimConfig(lr=0.1))},
    "train.seed: 42 -> 1": {"config": replace(TRAIN, seed=1)},
    "train.batch_size: 16 -> 8": {"config": replace(TRAIN, batch_size=8)},
    "train.loss: 'mean' -> 'tet'": {"config": replace(TRAIN, loss="tet")},
    "mixing.mixup: 0.0 -> 0.5": {"mixing": Mixing(mixup=0.5)},
}


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.fault(61)
def test_a_phase_is_resumed_under_the_same_facts_alone(state, data, request):
    folder = request.getfixturevalue(state)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for change, given in OTHERS.items():
        given = {"phase": PHASE, **given}
        with pytest.raises(ConfigError) as caught:
            fit(folder, data, **given)
        message = str(caught.value)
        assert message.startswith("phase joint was made otherwise: ")
        assert change in message.replace(f"{MASK.mask.sha256[:60]}...", "")
        assert "--run.out" in message and "--model.init-from" in message
    slower = create_model("spikformer_toy", **{**SIZES, "T": 3})
    with pytest.raises(ConfigError, match=r"joint\.T: 2 -> 3"):
        fit(folder, data, PHASE, model=slower)
    wider = create_model("spikformer_toy", **{**SIZES, "embed_dim": 32})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit(folder, data, PHASE, model=wider)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 10), nn.Unflatten(1, (1, 10)))
    with pytest.raises(ConfigError, match=r"joint\.network: '\w+' -> 'Sequential'"):
        fit(folder, data, PHASE, model=flat)
    other = create_dataset("digits", image_size=16, limit_train=40, limit_test=40)
    with pytest.raises(ConfigError, match=r"data\.split: '\w+' -> '\w+'"):
        fit(folder, other, PHASE)
    brighter = replace(data, preprocess=replace(data.preprocess, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(ConfigError, match=r"data\.preprocess\.mean: .* -> \[0\.5, 0\.5, 0\.5\]"):
        fit(folder, brighter, PHASE)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.fault(61)
def test_a_second_network_gets_no_phase_of_the_first(tmp_path, data):
    with RunDir(tmp_path) as run:
        usual = {"augment": Augment.standard("digits"), "mixing": Mixing()}
        trainer = Trainer(data, TRAIN, run, Accelerator(cpu=True), **usual)
        first, same, second = toy(), toy(), toy()
        torch.nn.init.ones_(second.head.weight)
        trainer.fit(first, PHASE)
        trainer.fit(same, PHASE)
        assert torch.equal(same.head.weight, first.head.weight)
        with pytest.raises(ConfigError, match="phase joint of this run began with other weights"):
            trainer.fit(second, PHASE)
        trainer.fit(second, replace(PHASE, name="second"))


@pytest.mark.fault(61)
def test_how_a_run_is_computed_may_change(finished, data):
    free = {"workers": 1, "threads": 1, "checkpoint_steps": 1, "eval_batch_size": 8}
    again = fit(finished, data, PHASE, replace(TRAIN, nonfinite="skip", recompute=True, **free))
    assert again.epochs == 1


@pytest.mark.fault(61)
def test_a_checkpoint_of_an_older_version_is_taken_with_a_warning(tmp_path, data, caplog):
    fit(tmp_path / "run", data, PHASE)
    store = CheckpointStore(tmp_path / "run" / "best" / "joint", keep=1)
    found = store.load()
    state = {name: value for name, value in found.state.items() if name != "made_by"}
    store.save(1, found.tensors, state)
    assert fit(tmp_path / "run", data, replace(PHASE, distill=0.5)).epochs == 1
    assert "does not say what made it: phase joint is taken as it is" in caplog.text


def experiment(folder: Path, search: str = "", allow: tuple[str, ...] = (), **groups) -> Experiment:
    run = RunConfig(str(folder), "auto", allow)
    return Experiment(Config(run=run, **groups), fallback="digits", small={}, search=search)


def multisp(sparsity: float, **given) -> MultiSp:
    return MultiSp(MultiSpConfig(weights=WeightConfig(sparsity=sparsity), **given), seed=42)


@pytest.mark.fault(61)
def test_a_resume_from_python_under_another_search_is_refused(tmp_path):
    with experiment(tmp_path / "run") as first:
        ticket = multisp(0.5, epochs=1).find(first.model(), first.trainer.fit)
        first.save_ticket(ticket)
    saved = (tmp_path / "run" / "ticket" / "ticket.json").read_bytes()
    for search, words in (
        (multisp(0.9, epochs=1), r"multisp\.weights\.sparsity: 0\.5 -> 0\.9"),
        (multisp(0.5, epochs=2), r"multisp\.epochs: 1 -> 2; .*joint\.epochs: 1 -> 2"),
    ):
        with pytest.raises(ConfigError, match=words), experiment(tmp_path / "run") as again:
            again.save_ticket(search.find(again.model(), again.trainer.fit))
    assert (tmp_path / "run" / "ticket" / "ticket.json").read_bytes() == saved


@pytest.mark.fault(61)
def test_rounds_of_another_fraction_are_not_taken_over(tmp_path):
    def found(fraction: float) -> Ticket:
        config = ImpConfig(epochs=1, rounds=2, fraction=fraction, rewind="0it")
        with experiment(tmp_path / "run") as one:
            return one.save_ticket(Imp(config).find(one.model(), one.trainer.fit))

    assert found(0.2).mask.sparsity == pytest.approx(0.36, abs=1e-3)
    with pytest.raises(ConfigError, match=r"imp\.fraction: 0\.2 -> 0\.6"):
        found(0.6)


@pytest.mark.fault(61)
def test_a_ticket_found_without_training_is_not_replaced_by_another_searchs(tmp_path):
    def found(sparsity: float) -> Ticket:
        search = RandomTicket(RandomConfig(sparsity, prune=PruneConfig(head=False)), seed=1)
        with experiment(tmp_path / "run") as one:
            return one.save_ticket(search.find(one.model(), one.trainer.fit))

    prints = {found(0.5).provenance["fingerprint"] for _ in range(2)}
    assert len(prints) == 1
    with pytest.raises(ConfigError, match=r"ticket' was found otherwise: config\.sparsity: 0\.5"):
        found(0.9)
    assert Ticket.load(tmp_path / "run" / "ticket").provenance["fingerprint"] in prints


@pytest.mark.fault(61)
def test_a_training_goes_on_from_the_same_ticket_alone(tmp_path, data):
    def trained(seed: int, scale: float) -> FitResult:
        model = toy()
        mask = Mask.random_like(Mask.from_scores(prunable(model, PruneConfig()), 0.5), seed)
        with torch.no_grad():
            model.head.weight.mul_(scale)

        def through(model: nn.Module, phase: Phase) -> FitResult:
            return fit(tmp_path / "run", data, phase)

        return retrain(model, Ticket.of(model, mask), through, 1)

    assert trained(0, 1.0).epochs == trained(0, 1.0).epochs == 1
    with pytest.raises(ConfigError, match=r"retrain\.masks"):
        trained(1, 1.0)
    with pytest.raises(ConfigError, match=r"ticket\.weights: '\w+.*' -> '\w+"):
        trained(0, 2.0)


@pytest.mark.fault(61)
def test_an_allowed_change_that_no_phase_allows_leaves_the_runs_records(tmp_path):
    folder = tmp_path / "run"
    with experiment(folder) as first:
        first.trainer.fit(first.model(), PHASE)
    kept = [(folder / name).read_bytes() for name in ("config.json", "env.json")]
    longer = replace(TRAIN, optim=OptimConfig(lr=0.1))
    again = experiment(folder, allow=("train.optim.lr",), train=longer)
    with pytest.raises(ConfigError, match=r"train\.optim\.lr: 0\.005 -> 0\.1"), again:
        again.trainer.fit(again.model(), PHASE)
    assert [(folder / name).read_bytes() for name in ("config.json", "env.json")] == kept
    with again:  # another phase may be trained so
        again.trainer.fit(again.model(), Phase("after", 1))
    assert load_config(Config, folder / "config.json").train.optim.lr == 0.1
    changed = json.loads((folder / "env.json").read_text())["changed_on_resume"]
    assert any(line.startswith("train.optim.lr: 0.005 -> 0.1") for line in changed)


@pytest.mark.fault(61)
def test_a_run_of_another_search_is_not_gone_on_with(tmp_path):
    with experiment(tmp_path / "run", "imp"):
        pass
    another = r"holds another run: search: 'imp' -> 'snip'; choose"
    with pytest.raises(ConfigError, match=another), experiment(tmp_path / "run", "snip"):
        pass
    with pytest.raises(ConfigError, match=another):
        experiment(tmp_path / "run", "snip").dry_run()
    assert experiment(tmp_path / "run", "imp").dry_run().startswith("dry run: ")
