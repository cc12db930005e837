"""What every search promises, on a transformer and on a CNN, with the real trainer."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt import create_search, list_searches
from spikeformer_lt.errors import Interrupted
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import PruneConfig, retrain
from spikeformer_lt.tickets.biprop import BipropConfig
from spikeformer_lt.tickets.early_bird import EarlyBirdConfig
from spikeformer_lt.tickets.early_time import EarlyTimeConfig
from spikeformer_lt.tickets.edge_popup import EdgePopupConfig
from spikeformer_lt.tickets.grasp import GraspConfig
from spikeformer_lt.tickets.imp import ImpConfig
from spikeformer_lt.tickets.joint import JointConfig
from spikeformer_lt.tickets.magnitude import MagnitudeConfig
from spikeformer_lt.tickets.multisp_config import PatchConfig
from spikeformer_lt.tickets.nm_mask import NmConfig
from spikeformer_lt.tickets.random_ticket import RandomConfig
from spikeformer_lt.tickets.snip import SnipConfig
from spikeformer_lt.tickets.sparse_training import SparseTrainingConfig
from spikeformer_lt.tickets.synflow import SynflowConfig

S = 0.7
IMP = ImpConfig(levels=(0.4, S), epochs=2, rewind="1it")
DST = {"sparsity": S, "epochs": 2, "every": 2}
EB = EarlyBirdConfig(sparsity=S, epochs=3, window=2, tolerance=0.5)
CHANNELS = EarlyBirdConfig(kind="channels", sparsity=0.5, epochs=2)
ET = EarlyTimeConfig(epochs=1, images=20)
BIPROP = BipropConfig(sparsity=S, epochs=2)
ENCODER = ImpConfig(levels=(0.4, S), epochs=1, rewind="1it", prune=PruneConfig(inside=("blocks.",)))
CASES: dict[str, tuple[str, Any]] = {
    "random": ("random", RandomConfig(S)),
    "random erk": ("random", RandomConfig(S, "erk")),
    "magnitude": ("magnitude", MagnitudeConfig(S)),
    "magnitude trained": ("magnitude", MagnitudeConfig(S, epochs=1, start="trained")),
    "imp": ("imp", IMP),
    "imp layer": ("imp", replace(IMP, scope="layer", buffers="reset", lr="resume", rewind="1ep")),
    "early_bird": ("early_bird", EB),
    "early_time imp": ("early_time", ET),
    "early_time early_bird": ("early_time", replace(ET, order="code")),
    "early_time edge_popup": ("early_time", ET),
    "edge_popup": ("edge_popup", EdgePopupConfig(sparsity=S, epochs=2)),
    "biprop": ("biprop", BIPROP),
    "biprop global": ("biprop", replace(BIPROP, scope="global", ramp_epochs=1.0)),
    "snip": ("snip", SnipConfig(S, images=8)),
    "grasp": ("grasp", GraspConfig(S, images=8)),
    "synflow": ("synflow", SynflowConfig(S, rounds=5)),
    "set": ("sparse_training", SparseTrainingConfig("set", **DST)),
    "rigl": ("sparse_training", SparseTrainingConfig("rigl", **DST)),
    "granet": ("sparse_training", SparseTrainingConfig("granet", **DST)),
    "nm": ("nm", NmConfig()),
    "early_bird channels": ("early_bird", CHANNELS),
    "joint": ("joint", JointConfig(PatchConfig(0.5), ENCODER)),
}
WITH_IMAGES = {"early_bird", "early_time", "snip", "grasp", "synflow"}
PATTERNED = {"nm", "early_bird channels"}  # their sparsity has tests of its own
LAYERED = {
    "imp layer",
    "edge_popup",
    "early_time edge_popup",
    "biprop",
}  # the same fraction of each layer
TRAINING = {name for name in CASES if name not in
            ("random", "random erk", "magnitude", "snip", "grasp", "synflow", "nm")}  # fmt: skip
Make = Callable[[], nn.Module]


def search_of(case: str, batch: Any = None) -> Any:
    name, config = CASES[case]
    options: dict[str, Any] = {"config": config}
    if name in WITH_IMAGES:
        options["batch"] = batch
    if name == "early_time":
        inner = case.partition(" ")[2]
        options["search"] = create_search(inner, config=CASES[inner][1])
    return create_search(name, **options)


def fits(case: str, model: nn.Module) -> bool:
    return case != "joint" or hasattr(model, "conv_pep")


def found(case: str, model: nn.Module, trainer: Any) -> tuple[Any, Ticket]:
    search = search_of(case, trainer.batch)
    return search, search.find(model, trainer.fit)


@pytest.fixture
def model(make: Make, case: str) -> nn.Module:
    made = make()
    if not fits(case, made):
        pytest.skip("joint needs patches; its test asks for a clear refusal elsewhere")
    return made


every = pytest.mark.parametrize("case", CASES)


def test_every_registered_search_is_here() -> None:
    assert {name for name, _ in CASES.values()} | {"multisp"} == set(list_searches())


@every
def test_ticket_is_exact_and_starts_from_the_rewind_state(case, model, bench, tmp_path):
    T = getattr(model, "T", None)
    search, ticket = found(case, model, bench.trainer(tmp_path))
    mask = ticket.mask
    if case in LAYERED:
        counts = {name: int((~kept).sum()) for name, kept in mask.items()}
        assert counts == {name: round(S * kept.numel()) for name, kept in mask.items()}
    elif case not in PATTERNED:
        assert mask.removed == round(S * mask.total)
    if case not in PATTERNED:
        assert ticket.provenance["prunable_sparsity"] == mask.sparsity
    assert not any(p.ndim < 2 for n, p in model.named_parameters() if n in mask) or (
        case == "early_bird channels"
    )
    state = model.state_dict()
    assert state.keys() == ticket.tensors.keys() == search.start.keys()
    for name, value in ticket.tensors.items():
        expected = search.start[name].clone()
        if name in mask:
            expected[~mask[name]] = 0
        assert torch.equal(value, expected), name
        assert torch.equal(state[name].cpu(), value), name
    assert getattr(model, "T", None) == T
    assert ticket.provenance["trained"] == search.trained
    ticket.save(tmp_path / "ticket")
    assert Ticket.load(tmp_path / "ticket").mask == mask


@every
@pytest.mark.parametrize(
    "training",
    [
        {"optim": "momentum"},
        {"optim": "adamw", "ema_decay": 0.9},
        {"optim": "adamw", "mixed_precision": "bf16"},
    ],
    ids=["SGD with momentum", "AdamW with EMA", "bf16"],
)
def test_nothing_removed_comes_back_in_training(case, model, training, bench, tmp_path):
    _, ticket = found(case, model, bench.trainer(tmp_path / "search"))
    trainer = bench.trainer(tmp_path / "train", **training)
    result = retrain(model, ticket, trainer.fit, epochs=2)
    assert result.epochs == 2
    moved = False
    for name, value in model.state_dict().items():
        if name in ticket.mask:
            assert bool((value[~ticket.mask[name]] == 0).all()), name
            moved |= not torch.equal(value, ticket.tensors[name])
    assert moved


class StopAfter:
    """A stop request that comes true when it has been asked `count` times."""

    def __init__(self, count: int) -> None:
        self.left = count

    @property
    def signum(self) -> int:
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else 0


@pytest.mark.parametrize("case", sorted(TRAINING))
def test_a_search_cut_off_anywhere_ends_with_the_same_ticket(case, make, model, bench, tmp_path):
    options = {"ema_decay": 0.5, "checkpoint_steps": 2}
    _, whole = found(case, model, bench.trainer(tmp_path / "whole", **options))
    cuts = 0
    for count in (2, 4, 3, 5, 10**6):
        trainer = bench.trainer(tmp_path / "cut", stop=StopAfter(count), **options)
        try:
            _, ticket = found(case, make(), trainer)
            break
        except Interrupted:
            cuts += 1
        finally:
            trainer.run.close()
    assert cuts >= 1
    assert ticket.mask.sha256 == whole.mask.sha256
    for name, value in whole.tensors.items():
        assert torch.equal(ticket.tensors[name], value), name


@every
def test_one_shot_searches_leave_buffers_and_modes(case, model, bench, tmp_path):
    if case in TRAINING:
        pytest.skip("this search trains")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    _, ticket = found(case, model, bench.trainer(tmp_path))
    assert [module.training for module in model.modules()] == modes
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
    assert ticket.provenance["phases"] == []
